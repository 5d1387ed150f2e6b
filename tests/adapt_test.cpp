// Methods of domain adaptation: their formulas against double precision, and which way each
// gradient points.
#include <cmath>
#include <doctest/doctest.h>

#include "engine/autograd.h"
#include "tests/support/test_device.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

using test::test_device;

std::unique_ptr<AdaptMethod> made(const MethodInfo& info, const std::vector<std::string>& given,
                                  MethodContext context) {
  context.key = {7, 0, 0};
  auto method = info.make(MethodSettings(info.name, info.options, given), context);
  if (method->extra() != nullptr) method->extra()->to(test_device());
  return method;
}

MethodContext narrow_context(int64_t width, int64_t classes) {
  MethodContext context;
  context.aligned_width = context.feature_width = width;
  context.classes = classes;
  return context;
}

DomainPass random_pass(int64_t rows, int64_t width, int64_t classes, uint64_t seed) {
  DomainPass pass;
  pass.features = pass.aligned =
      normal({rows, width}, 0, 1, {seed, 0, 0}).to(test_device()).set_requires_grad();
  pass.logits = normal({rows, classes}, 0, 1, {seed, 0, 1}).to(test_device()).set_requires_grad();
  return pass;
}

std::vector<double> doubles(const Tensor& x) {
  const std::vector<float> values = x.to_vector<float>();
  return {values.begin(), values.end()};
}

std::string error_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// Binary cross-entropy of a linear domain head, and its gradients in one row's features, in double.
struct LinearDomains {
  std::vector<double> weight;
  double bias;
  double logit(const double* x) const {
    double z = bias;
    for (size_t j = 0; j < weight.size(); ++j) z += weight[j] * x[j];
    return z;
  }
  double loss(const std::vector<double>& rows, bool source) const {
    const size_t n = rows.size() / weight.size();
    double sum = 0;
    for (size_t i = 0; i < n; ++i) {
      const double z = logit(&rows[i * weight.size()]);
      sum += std::log(1 + std::exp(source ? -z : z));
    }
    return sum / static_cast<double>(n);
  }
};

TEST_CASE("dann: the loss is the domain classifier's, and its gradient into the features turned") {
  constexpr int64_t kWidth = 5;
  const auto pair_of = [] {
    DomainPair pair;
    pair.source = random_pass(6, kWidth, 3, 1);
    pair.target = random_pass(4, kWidth, 3, 2);
    return pair;
  };
  const StepPlace place{0.3, 0.8, 0};
  const double lambda = 2.5 * (2 / (1 + std::exp(-10 * 0.3)) - 1) * 0.8;
  for (const std::string placement : {"features", "loss"}) {
    CAPTURE(placement);
    const auto method = made(dann_method(), {"depth=0", "weight=2.5", "placement=" + placement},
                             narrow_context(kWidth, 3));
    const std::vector<NamedTensor> head = method->extra()->named_parameters();
    const LinearDomains reference{doubles(*head[0].tensor), doubles(*head[1].tensor)[0]};
    const DomainPair pair = pair_of();
    const std::vector<double> source = doubles(pair.source.aligned);
    const std::vector<double> target = doubles(pair.target.aligned);
    const double loss = (reference.loss(source, true) + reference.loss(target, false)) / 2;
    const Tensor ours = method->transfer_loss(pair, place);
    const bool on_features = placement == "features";
    CHECK(ours.item() == doctest::Approx(on_features ? loss : lambda * loss).epsilon(1e-5));

    backward(ours);
    const std::vector<double> into_source = doubles(pair.source.aligned.grad());
    constexpr double kStep = 1e-5;
    for (size_t j = 0; j < source.size(); ++j) {
      std::vector<double> up = source, down = source;
      up[j] += kStep;
      down[j] -= kStep;
      const double slope =
          (reference.loss(up, true) - reference.loss(down, true)) / 2 / (2 * kStep);
      // Ascends the domain loss: the sign of the reversal.
      CHECK(into_source[j] == doctest::Approx(-lambda * slope).epsilon(1e-3));
    }
    // The domain classifier itself descends.
    LinearDomains up = reference, down = reference;
    up.bias += kStep;
    down.bias -= kStep;
    const double slope = (up.loss(source, true) + up.loss(target, false) - down.loss(source, true) -
                          down.loss(target, false)) /
                         2 / (2 * kStep);
    CHECK(doubles(head[1].tensor->grad())[0] ==
          doctest::Approx(on_features ? slope : lambda * slope).epsilon(1e-3));
  }
}

TEST_CASE("an option that is not there, out of range or no number is refused by name") {
  const MethodInfo info = dann_method();
  const auto settings = [&](const std::string& given) {
    return error_of([&] { MethodSettings(info.name, info.options, {given}); });
  };
  CHECK(settings("weight=2").empty());
  CHECK(contains(settings("wieght=2"), "did you mean weight?"));
  CHECK(contains(settings("weight=-1"), "expected 0 to 1000"));
  CHECK(contains(settings("weight=two"), "expected a number"));
  CHECK(contains(settings("weight"), "expected NAME=VALUE"));
  CHECK(contains(settings("placement=feature"), "did you mean features?"));
  CHECK(contains(error_of([] { adapt_method("dan_n"); }), "did you mean"));
  CHECK(adapt_method("dann").name == "dann");
}

}  // namespace
}  // namespace graft
