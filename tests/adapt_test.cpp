// Methods of domain adaptation: their formulas against double precision, and which way each
// gradient points.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>

#include "engine/autograd.h"
#include "tests/support/test_device.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"
#include "transfer/measure/validators.h"

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

// Softmax of each row of logits, in double.
std::vector<double> softmax_rows(const Tensor& logits) {
  std::vector<double> p = doubles(logits);
  const auto width = static_cast<size_t>(logits.dim(1));
  for (size_t i = 0; i < p.size(); i += width) {
    double sum = 0;
    for (size_t j = 0; j < width; ++j) sum += p[i + j] = std::exp(p[i + j]);
    for (size_t j = 0; j < width; ++j) p[i + j] /= sum;
  }
  return p;
}

double entropy_of(const double* p, size_t n) {
  double sum = 0;
  for (size_t j = 0; j < n; ++j) sum -= p[j] * std::log(p[j]);
  return sum;
}

TEST_CASE("cdan: the domain classifier sees features times classes; sure examples count more") {
  constexpr size_t kWidth = 4, kClasses = 3;
  for (const bool weighted : {false, true}) {
    CAPTURE(weighted);
    const auto method = made(weighted ? cdan_e_method() : cdan_method(), {"depth=0", "gamma=0"},
                             narrow_context(kWidth, kClasses));
    const std::vector<NamedTensor> head = method->extra()->named_parameters();
    const LinearDomains reference{doubles(*head[0].tensor), doubles(*head[1].tensor)[0]};
    DomainPair pair;
    pair.source = random_pass(5, kWidth, kClasses, 3);
    pair.target = random_pass(7, kWidth, kClasses, 4);
    double loss = 0;
    for (const DomainPass* pass : {&pair.source, &pair.target}) {
      const std::vector<double> f = doubles(pass->aligned), g = softmax_rows(pass->logits);
      const size_t rows = f.size() / kWidth;
      double sum = 0, weights = 0;
      for (size_t i = 0; i < rows; ++i) {
        std::vector<double> joint;
        for (size_t j = 0; j < kWidth; ++j) {
          for (size_t c = 0; c < kClasses; ++c)
            joint.push_back(f[i * kWidth + j] * g[i * kClasses + c]);
        }
        const double weight =
            weighted ? 1 + std::exp(-entropy_of(&g[i * kClasses], kClasses)) : 1.0;
        sum += weight * reference.loss(joint, pass == &pair.source);
        weights += weight;
      }
      loss += sum / weights / 2;
    }
    const Tensor ours = method->transfer_loss(pair, {});
    CHECK(ours.item() == doctest::Approx(loss).epsilon(1e-5));
    backward(ours);
    CHECK(pair.source.aligned.grad().defined());
    CHECK_FALSE(pair.source.logits.grad().defined());  // the classes are a constant
  }
}

TEST_CASE("cdan: the random map keeps inner products in expectation") {
  constexpr int64_t kWidth = 6, kClasses = 4;
  const auto method =
      made(cdan_method(), {"random_width=20", "depth=1"}, narrow_context(kWidth, kClasses));
  std::vector<double> features, classes;
  for (const NamedTensor& entry : method->extra()->named_buffers()) {
    (entry.name == "map_features" ? features : classes) = doubles(*entry.tensor);
  }
  CHECK(features.size() == kWidth * 20);
  CHECK(classes.size() == kClasses * 20);
  // Saved with the run, never trained.
  for (const NamedTensor& entry : method->extra()->named_parameters()) {
    CHECK_FALSE(contains(entry.name, "map"));
  }
  double squares = 0;
  for (const double x : features) squares += x * x / static_cast<double>(features.size());
  CHECK(squares == doctest::Approx(1 / std::sqrt(20.0)).epsilon(0.3));
}

TEST_CASE("entropy: the mean entropy of the target's predictions, less that of their mean") {
  constexpr size_t kClasses = 4;
  DomainPair pair;
  pair.target = random_pass(6, 3, kClasses, 5);
  const std::vector<double> p = softmax_rows(pair.target.logits);
  std::vector<double> average(kClasses);
  double mean_entropy = 0;
  for (size_t i = 0; i < 6; ++i) {
    mean_entropy += entropy_of(&p[i * kClasses], kClasses) / 6;
    for (size_t c = 0; c < kClasses; ++c) average[c] += p[i * kClasses + c] / 6;
  }
  const auto loss_of = [&](const std::string& diversity) {
    return static_cast<double>(made(entropy_method(),
                                    {"weight=0.5", "gamma=0", "diversity=" + diversity},
                                    narrow_context(3, kClasses))
                                   ->transfer_loss(pair, {})
                                   .item());
  };
  CHECK(loss_of("0") == doctest::Approx(0.5 * mean_entropy).epsilon(1e-5));
  CHECK(loss_of("2") ==
        doctest::Approx(0.5 * (mean_entropy - 2 * entropy_of(average.data(), kClasses)))
            .epsilon(1e-5));
}

TEST_CASE("adabn: the first batch norm gets exactly the target's mean and variance") {
  constexpr int64_t kImages = 10, kSide = 8;
  std::unique_ptr<ImageModel> model = make_model("small_cnn", {2, 3}, {3, 0, 0});
  model->to(test_device());
  freeze_batch_norm(*model, true);
  Tap tap(*model, "conv1");
  const Tensor images = normal({kImages, kSide, kSide, 3}, 0.7f, 2, {9, 0, 0});
  model->eval();
  model->features(images.to(test_device()));
  const std::vector<double> seen = doubles(tap.output());

  // Batches of four, four and two.
  struct Pictures : Batches {
    explicit Pictures(Tensor all) : images(std::move(all)) {}
    int64_t samples() const override { return images.dim(0); }
    int64_t count() const override { return 3; }
    void start_epoch(int64_t, int64_t first) override { at = first * 4; }
    bool next(Batch& batch) override {
      if (at >= samples()) return false;
      const int64_t n = std::min<int64_t>(4, samples() - at);
      batch.images = narrow(images, at, n);
      batch.labels = Tensor::zeros({n}, Dtype::i64);
      at += n;
      return true;
    }
    Tensor images;
    int64_t at = 0;
  } pictures(images);
  KeptBuffers kept(*model);
  estimate_statistics(*model, pictures, test_device());

  BatchNorm2d* norm = nullptr;
  for (const auto& [name, module] : model->named_modules()) {
    if (name == "bn1") norm = dynamic_cast<BatchNorm2d*>(module);
  }
  REQUIRE(norm != nullptr);
  const std::vector<double> mean = doubles(norm->running_mean), var = doubles(norm->running_var);
  const size_t channels = mean.size(), rows = seen.size() / channels;
  for (size_t c = 0; c < channels; ++c) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < rows; ++i) sum += seen[i * channels + c];
    const double m = sum / static_cast<double>(rows);
    for (size_t i = 0; i < rows; ++i) squares += std::pow(seen[i * channels + c] - m, 2);
    CHECK(mean[c] == doctest::Approx(m).epsilon(1e-4));
    CHECK(var[c] == doctest::Approx(squares / static_cast<double>(rows - 1)).epsilon(1e-4));
  }
  CHECK(norm->statistics_frozen());  // as it was
  CHECK(norm->momentum() == doctest::Approx(0.1));
  kept.restore();
  CHECK(doubles(norm->running_mean)[0] == 0);
  CHECK(doubles(norm->running_var)[0] == 1);
}

TEST_CASE("domain norm: each domain keeps running statistics of its own") {
  std::unique_ptr<ImageModel> model = make_model("small_cnn", {2, 3}, {3, 0, 0});
  model->to(test_device());
  DomainNorm norm(*model, NormMode::domain);
  model->train();
  const auto pass = [&](Domain domain, float mean) {
    norm.use(domain);
    model->features(normal({4, 8, 8, 3}, mean, 1, {5, 0, 0}).to(test_device()));
  };
  pass(Domain::source, 0);
  pass(Domain::target, 4);
  StateDict target = model->state_dict();
  const StateDict source = norm.source_state();
  const std::string name = "bn1.running_mean";
  CHECK(doubles(source.at(name)) != doubles(target.at(name)));
  norm.use(Domain::source);
  CHECK(doubles(model->state_dict().at(name)) == doubles(source.at(name)));
  CHECK_THROWS_AS(norm.source_state(), Error);
  norm.use(Domain::target);
  CHECK(doubles(model->state_dict().at(name)) == doubles(target.at(name)));
}

TEST_CASE("reverse validation: labels that lead back to the source's own score high") {
  std::vector<float> rows;
  std::vector<int64_t> labels, swapped;
  for (int i = 0; i < 40; ++i) {
    labels.push_back(i % 2);
    swapped.push_back(1 - i % 2);
    rows.push_back(static_cast<float>(i % 2 == 0 ? -1 : 1) + 0.01f * static_cast<float>(i % 7));
  }
  const Tensor features = Tensor::of(rows, {40, 1});
  CHECK(reverse_validation(features, labels, features, labels, 2) == 1);
  CHECK(reverse_validation(features, swapped, features, labels, 2) == 0);
  const std::vector<int64_t> one_class(40, 1);
  CHECK(reverse_validation(features, one_class, features, labels, 2) == 0.5);
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
  for (const char* name : {"dan", "jan"}) {
    const MethodInfo& family = adapt_method(name);
    const auto kernels = [&](const std::string& given) {
      return error_of([&] { MethodSettings(name, family.options, {given}); });
    };
    CHECK(kernels("kernels=7").empty());
    for (const char* wrong : {"kernels=4", "kernels=2.5"}) {
      CHECK(contains(kernels(wrong), "option kernels: expected an odd number"));
    }
  }
  CHECK(contains(error_of([] { adapt_method("dan_n"); }), "did you mean"));
  CHECK(adapt_method("dann").name == "dann");
}

}  // namespace
}  // namespace graft
