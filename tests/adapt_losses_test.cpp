// Discrepancies between batches against their formulas in double precision, written out over pairs
// and rows, and the gradients of all of them against finite differences of those.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <functional>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "tests/support/test_device.h"
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

using test::test_device;

// A batch on the host in double.
struct Rows {
  int64_t n, d;
  std::vector<double> values;
  double operator()(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * d + j)]; }
};

Rows random_rows(int64_t n, int64_t d, uint64_t seed, double shift = 0) {
  const std::vector<float> x =
      normal({n, d}, static_cast<float>(shift), 1, {seed, 0, 0}).to_vector<float>();
  return {n, d, {x.begin(), x.end()}};
}
Tensor tensor_of(const Rows& rows) {
  const std::vector<float> x(rows.values.begin(), rows.values.end());
  return Tensor::of(x, {rows.n, rows.d}).to(test_device());
}

using Batches = std::vector<Rows>;
using Loss = std::function<Tensor(const std::vector<Tensor>&)>;
using Formula = std::function<double(const Batches&)>;

// The loss is the formula's, and its gradient in every number of every batch is that of `moved`:
// the formula with its constants held where `at` has them (the same formula where it has none).
void check_loss(const Batches& at, const Loss& loss, const Formula& formula,
                const std::function<double(const Batches& constants, const Batches&)>& moved) {
  std::vector<Tensor> leaves;
  for (const Rows& rows : at) leaves.push_back(tensor_of(rows).set_requires_grad());
  const Tensor value = loss(leaves);
  const double expected = formula(at);
  CHECK(static_cast<double>(value.item()) == doctest::Approx(expected).epsilon(2e-5).scale(1e-3));
  backward(value);
  double largest = 0;
  std::vector<std::vector<double>> slopes;
  for (size_t b = 0; b < at.size(); ++b) {
    slopes.emplace_back();
    for (size_t i = 0; i < at[b].values.size(); ++i) {
      constexpr double kStep = 1e-5;
      Batches up = at, down = at;
      up[b].values[i] += kStep;
      down[b].values[i] -= kStep;
      slopes[b].push_back((moved(at, up) - moved(at, down)) / (2 * kStep));
      largest = std::max(largest, std::fabs(slopes[b].back()));
    }
  }
  CHECK(largest > 1e-6);  // a gradient of nothing is no test
  for (size_t b = 0; b < at.size(); ++b) {
    const std::vector<float> got = leaves[b].grad().to_vector<float>();
    for (size_t i = 0; i < got.size(); ++i) {
      CAPTURE(b);
      CAPTURE(i);
      CHECK(std::fabs(static_cast<double>(got[i]) - slopes[b][i]) <= 2e-4 * largest);
    }
  }
}
void check_loss(const Batches& at, const Loss& loss, const Formula& formula) {
  check_loss(at, loss, formula, [&](const Batches&, const Batches& x) { return formula(x); });
}

double squared_distance(const Rows& a, int64_t i, const Rows& b, int64_t j) {
  double sum = 0;
  for (int64_t k = 0; k < a.d; ++k) sum += (a(i, k) - b(j, k)) * (a(i, k) - b(j, k));
  return sum;
}

Rows stacked(const Rows& a, const Rows& b) {
  Rows all{a.n + b.n, a.d, a.values};
  all.values.insert(all.values.end(), b.values.begin(), b.values.end());
  return all;
}

double mean_distance(const Rows& all) {
  double sum = 0;
  for (int64_t i = 0; i < all.n; ++i) {
    for (int64_t j = 0; j < i; ++j) sum += squared_distance(all, i, all, j);
  }
  return sum / (0.5 * static_cast<double>(all.n * (all.n - 1)));
}

// Over pairs, three sums: the definition. layers: (source, target), ...; spreads: mean distance of
// each layer.
double mmd_by_pairs(const std::vector<std::pair<Rows, Rows>>& layers,
                    const std::vector<std::vector<double>>& bandwidths) {
  const auto kernel = [&](bool a_source, int64_t i, bool b_source, int64_t j) {
    double product = 1;
    for (size_t l = 0; l < layers.size(); ++l) {
      const auto& [source, target] = layers[l];
      const double distance =
          squared_distance(a_source ? source : target, i, b_source ? source : target, j);
      double sum = 0;
      for (const double s : bandwidths[l]) sum += std::exp(-distance / (2 * s));
      product *= sum;
    }
    return product;
  };
  const auto n = layers[0].first.n, m = layers[0].second.n;
  double within_source = 0, within_target = 0, across = 0;
  for (int64_t i = 0; i < n; ++i) {
    for (int64_t j = 0; j < n; ++j) within_source += i == j ? 0 : kernel(true, i, true, j);
    for (int64_t j = 0; j < m; ++j) across += kernel(true, i, false, j);
  }
  for (int64_t i = 0; i < m; ++i) {
    for (int64_t j = 0; j < m; ++j) within_target += i == j ? 0 : kernel(false, i, false, j);
  }
  return within_source / static_cast<double>(n * (n - 1)) +
         within_target / static_cast<double>(m * (m - 1)) - 2 * across / static_cast<double>(n * m);
}

std::vector<double> family(double spread) {
  return {spread / 4, spread / 2, spread, spread * 2, spread * 4};
}

std::vector<double> softmax_of(const Rows& x, int64_t i, double temperature = 1) {
  std::vector<double> p;
  double sum = 0;
  for (int64_t j = 0; j < x.d; ++j) {
    p.push_back(std::exp(x(i, j) / temperature));
    sum += p.back();
  }
  for (double& value : p) value /= sum;
  return p;
}

TEST_CASE("mmd: the sums over pairs, bandwidths from the mean distance as a constant") {
  const Batches at{random_rows(5, 3, 1), random_rows(4, 3, 2, 1)};
  const auto with_spread = [](const Batches& constants, const Batches& x) {
    return mmd_by_pairs({{x[0], x[1]}},
                        {family(mean_distance(stacked(constants[0], constants[1])))});
  };
  check_loss(
      at,
      [](const std::vector<Tensor>& x) {
        return mmd({{x[0], x[1], kernel_family(5)}});
      },
      [&](const Batches& x) { return with_spread(x, x); }, with_spread);
  CHECK_THROWS_WITH_AS(mmd({{Tensor::zeros({1, 3}), Tensor::zeros({4, 3}), kernel_family(1)}}),
                       doctest::Contains("at least two rows"), Error);
}

TEST_CASE("mmd of two layers: the product of their kernels") {
  const Batches at{random_rows(4, 3, 3), random_rows(5, 3, 4, 0.5), random_rows(4, 2, 5),
                   random_rows(5, 2, 6)};
  const auto with_spread = [](const Batches& constants, const Batches& x) {
    return mmd_by_pairs({{x[0], x[1]}, {x[2], x[3]}},
                        {family(mean_distance(stacked(constants[0], constants[1]))), {0.8464}});
  };
  check_loss(
      at,
      [](const std::vector<Tensor>& x) {
        return mmd({{x[0], x[1], kernel_family(5)}, {x[2], x[3], {{1.0f}, 0.8464f}}});
      },
      [&](const Batches& x) { return with_spread(x, x); }, with_spread);
}

TEST_CASE("mmd of samples of one distribution is 0 on average, and not of two") {
  double same = 0, other = 0;
  constexpr int kDraws = 200;
  for (int i = 0; i < kDraws; ++i) {
    const auto seed = static_cast<uint64_t>(i);
    const Tensor x = tensor_of(random_rows(8, 2, 3 * seed));
    same += static_cast<double>(
        mmd({{x, tensor_of(random_rows(8, 2, 3 * seed + 1)), kernel_family(5)}}).item());
    other += static_cast<double>(
        mmd({{x, tensor_of(random_rows(8, 2, 3 * seed + 2, 1)), kernel_family(5)}}).item());
  }
  CHECK(std::fabs(same / kDraws) < 0.03);
  CHECK(other / kDraws > 0.3);
}

TEST_CASE("coral: covariances entry by entry, blind to means") {
  const auto covariance = [](const Rows& x, int64_t a, int64_t b) {
    double mean_a = 0, mean_b = 0, sum = 0;
    for (int64_t i = 0; i < x.n; ++i) {
      mean_a += x(i, a) / static_cast<double>(x.n);
      mean_b += x(i, b) / static_cast<double>(x.n);
    }
    for (int64_t i = 0; i < x.n; ++i) sum += (x(i, a) - mean_a) * (x(i, b) - mean_b);
    return sum / static_cast<double>(x.n - 1);
  };
  const Batches at{random_rows(6, 3, 7), random_rows(4, 3, 8)};
  check_loss(
      at, [](const std::vector<Tensor>& x) { return coral(x[0], x[1]); },
      [&](const Batches& x) {
        double sum = 0;
        for (int64_t a = 0; a < 3; ++a) {
          for (int64_t b = 0; b < 3; ++b) {
            const double difference = covariance(x[0], a, b) - covariance(x[1], a, b);
            sum += difference * difference;
          }
        }
        return sum / (4 * 9);
      });
  const Tensor x = tensor_of(at[0]);
  CHECK(std::fabs(coral(x, add(x, 3)).item()) < 1e-6f);
}

TEST_CASE("norm_step: every norm is asked for more, whatever it is") {
  const Batches at{random_rows(5, 4, 9)};
  const auto value = [](const Batches& constants, const Batches& x) {
    double sum = 0;
    for (int64_t i = 0; i < 5; ++i) {
      double now = 0, then = 0;
      for (int64_t j = 0; j < 4; ++j) {
        now += x[0](i, j) * x[0](i, j);
        then += constants[0](i, j) * constants[0](i, j);
      }
      const double gap = std::sqrt(now) - (std::sqrt(then) + 0.7);
      sum += gap * gap / 5;
    }
    return sum;
  };
  check_loss(
      at, [](const std::vector<Tensor>& x) { return norm_step(x[0], 0.7f); },
      [&](const Batches& x) { return value(x, x); }, value);
}

TEST_CASE("class_confusion: the class correlation, row by row") {
  const Batches at{random_rows(6, 3, 10)};
  const auto value = [](const Batches& constants, const Batches& x) {
    double total = 0, weights[6];
    for (int64_t i = 0; i < 6; ++i) {
      double entropy = 0;
      for (const double p : softmax_of(constants[0], i, 2.5)) entropy -= p * std::log(p);
      weights[i] = 1 + std::exp(-entropy);
      total += weights[i];
    }
    double confusion[3][3] = {}, loss = 0;
    for (int64_t i = 0; i < 6; ++i) {
      const std::vector<double> p = softmax_of(x[0], i, 2.5);
      for (size_t a = 0; a < 3; ++a) {
        for (size_t b = 0; b < 3; ++b) confusion[a][b] += weights[i] * 6 / total * p[a] * p[b];
      }
    }
    for (size_t a = 0; a < 3; ++a) {
      const double row = confusion[a][0] + confusion[a][1] + confusion[a][2];
      loss += (row - confusion[a][a]) / row / 3;
    }
    return loss;
  };
  check_loss(
      at, [](const std::vector<Tensor>& x) { return class_confusion(x[0], 2.5f); },
      [&](const Batches& x) { return value(x, x); }, value);
}

TEST_CASE("what two heads make of a row") {
  const Batches at{random_rows(5, 3, 11), random_rows(5, 3, 12)};
  check_loss(
      at, [](const std::vector<Tensor>& x) { return classifier_discrepancy(x[0], x[1]); },
      [](const Batches& x) {
        double sum = 0;
        for (int64_t i = 0; i < 5; ++i) {
          const std::vector<double> a = softmax_of(x[0], i), b = softmax_of(x[1], i);
          for (size_t c = 0; c < 3; ++c) sum += std::fabs(a[c] - b[c]) / 15;
        }
        return sum;
      });
  const std::vector<int64_t> labels{2, 0, 1, 1, 2};
  check_loss(
      {at[0]},
      [&](const std::vector<Tensor>& x) {
        return not_that_class(x[0], Tensor::of(labels).to(test_device()));
      },
      [&](const Batches& x) {
        double sum = 0;
        for (int64_t i = 0; i < 5; ++i) {
          const auto c = static_cast<size_t>(labels[static_cast<size_t>(i)]);
          sum -= std::log(1 - softmax_of(x[0], i)[c]) / 5;
        }
        return sum;
      });
}

// ---- the methods: signs, and what moves

DomainPass pass_of(int64_t rows, uint64_t seed) {
  DomainPass pass;
  pass.features = pass.aligned =
      normal({rows, 4}, 0, 1, {seed, 0, 0}).to(test_device()).set_requires_grad();
  pass.logits = normal({rows, 3}, 0, 1, {seed, 0, 1}).to(test_device()).set_requires_grad();
  return pass;
}

TEST_CASE("mdd: the adversary lowers its loss, the features raise it, and f is left alone") {
  MethodContext context;
  context.aligned_width = context.feature_width = 4;
  context.classes = 3;
  context.key = {7, 0, 0};
  const MethodInfo info = mdd_method();
  const auto gradients = [&](const std::vector<std::string>& given) {
    const auto method = info.make(MethodSettings("mdd", info.options, given), context);
    method->extra()->to(test_device());
    DomainPair pair{pass_of(5, 1), pass_of(6, 2), {}};
    backward(method->transfer_loss(pair, {.progress = 1}));
    CHECK_FALSE(pair.source.logits.grad().defined());
    CHECK_FALSE(pair.target.logits.grad().defined());
    std::vector<float> all = pair.source.features.grad().to_vector<float>();
    const std::vector<float> more = pair.target.features.grad().to_vector<float>();
    all.insert(all.end(), more.begin(), more.end());
    const Tensor head = method->extra()->named_parameters().front().tensor->grad();
    return std::make_pair(all, head.to_vector<float>());
  };
  const auto once = gradients({"gamma=0", "weight=1"}), twice = gradients({"gamma=0", "weight=2"});
  REQUIRE(once.first.size() == 44);
  CHECK(once.second == twice.second);  // lambda is the features' alone
  double largest = 0;
  for (size_t i = 0; i < once.first.size(); ++i) {
    CHECK(twice.first[i] == doctest::Approx(2 * once.first[i]));
    largest = std::max(largest, std::fabs(static_cast<double>(once.first[i])));
  }
  CHECK(largest > 1e-4);
  // Along the features' own gradient step the adversary's loss rises.
  const auto method = info.make(MethodSettings("mdd", info.options, {"gamma=0"}), context);
  method->extra()->to(test_device());
  DomainPair pair{pass_of(5, 1), pass_of(6, 2), {}};
  const double before = static_cast<double>(method->transfer_loss(pair, {.progress = 1}).item());
  const std::vector<float> step(once.first.begin(), once.first.begin() + 20);
  pair.source.aligned =
      sub(pair.source.aligned, mul(Tensor::of(step, {5, 4}).to(test_device()), 0.1f));
  CHECK(static_cast<double>(method->transfer_loss(pair, {.progress = 1}).item()) > before);
}

TEST_CASE("a batch of one row has no discrepancy: no term rather than a wrong one") {
  for (const char* name : {"dan", "jan", "coral"}) {
    const MethodInfo& info = adapt_method(name);
    const auto method = info.make(MethodSettings(name, info.options, {}), {});
    CHECK_FALSE(method->transfer_loss({pass_of(1, 1), pass_of(6, 2), {}}, {}).defined());
    CHECK(method->transfer_loss({pass_of(2, 1), pass_of(6, 2), {}}, {.progress = 0.5}).defined());
  }
}

}  // namespace
}  // namespace graft
