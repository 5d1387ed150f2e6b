// Methods whose step is more than one loss, against gradient descent written out in double: ADDA's
// two stages, MCD's three parts, BSP's penalty. Every weight of the network and of the method's own
// modules must go where the numeric gradient of the paper's loss says, or stay.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <functional>
#include <map>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "tests/support/test_device.h"
#include "transfer/adapt/methods.h"
#include "transfer/adapt/vector_network.h"

namespace graft {
namespace {

using test::test_device;

// --- the reference

struct Rows {
  int64_t n, d;
  std::vector<double> values;
  double operator()(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * d + j)]; }
};
using Weights = std::map<std::string, std::vector<double>>;

Rows linear(const Weights& all, const std::string& name, const Rows& x) {
  const std::vector<double>&w = all.at(name + ".weight"), &b = all.at(name + ".bias");
  Rows y{x.n, static_cast<int64_t>(b.size()), {}};
  for (int64_t i = 0; i < x.n; ++i) {
    for (int64_t o = 0; o < y.d; ++o) {
      double sum = b[static_cast<size_t>(o)];
      for (int64_t j = 0; j < x.d; ++j) sum += w[static_cast<size_t>(o * x.d + j)] * x(i, j);
      y.values.push_back(sum);
    }
  }
  return y;
}
// The network: fc1, ReLU: the features; fc: the head.
Rows features(const Weights& all, const Rows& x, const std::string& prefix = "") {
  Rows y = linear(all, prefix + "fc1", x);
  for (double& value : y.values) value = std::max(value, 0.0);
  return y;
}
double probability(const Rows& logits, int64_t i, int64_t c) {
  double sum = 0;
  for (int64_t k = 0; k < logits.d; ++k) sum += std::exp(logits(i, k) - logits(i, c));
  return 1 / sum;
}
double cross_entropy_of(const Rows& logits, const std::vector<int64_t>& labels) {
  double sum = 0;
  for (int64_t i = 0; i < logits.n; ++i) {
    sum -= std::log(probability(logits, i, labels[static_cast<size_t>(i)]));
  }
  return sum / static_cast<double>(logits.n);
}
// Mean of -log of being taken for a domain: for the source with sign 1, for the target with -1.
double taken_for(const Rows& logits, double sign) {
  double sum = 0;
  for (const double z : logits.values) sum += std::log1p(std::exp(-sign * z));
  return sum / static_cast<double>(logits.n);
}

bool starts_with_one_of(const std::string& name, const std::vector<std::string>& prefixes) {
  return std::any_of(prefixes.begin(), prefixes.end(),
                     [&](const std::string& prefix) { return name.starts_with(prefix); });
}

constexpr double kRate = 0.2;

// A step of plain gradient descent on the weights whose names begin so.
void descend(Weights& all, const std::vector<std::string>& moves,
             const std::function<double(const Weights&)>& loss) {
  Weights at = all;
  for (auto& [name, values] : at) {
    if (!starts_with_one_of(name, moves)) continue;
    for (size_t i = 0; i < values.size(); ++i) {
      constexpr double kStep = 1e-5;
      const double here = values[i];
      values[i] = here + kStep;
      const double up = loss(at);
      values[i] = here - kStep;
      const double down = loss(at);
      values[i] = here;
      all[name][i] -= kRate * (up - down) / (2 * kStep);
    }
  }
}

// --- what is tested

Rows random_rows(int64_t n, int64_t d, uint64_t seed, double shift) {
  const std::vector<float> x =
      normal({n, d}, static_cast<float>(shift), 1, {seed, 0, 0}).to_vector<float>();
  return {n, d, {x.begin(), x.end()}};
}
Tensor tensor_of(const Rows& rows) {
  const std::vector<float> x(rows.values.begin(), rows.values.end());
  return Tensor::of(x, {rows.n, rows.d}).to(test_device());
}

void read_weights(Module& module, const std::string& prefix, Weights& into) {
  for (const NamedTensor& entry : module.named_parameters()) {
    const std::vector<float> values = entry.tensor->to_vector<float>();
    into[prefix + entry.name] = {values.begin(), values.end()};
  }
}

// A method with a network of three features and two classes, trained by plain SGD; "own/" are the
// method's modules.
struct Bench {
  explicit Bench(const MethodInfo& info, const std::vector<std::string>& settings) {
    model->to(test_device());
    MethodContext context;
    context.feature_width = context.aligned_width = 3;
    context.classes = 2;
    context.key = {7, 0, 0};
    context.blank = [] {
      auto blank = make_vector_network(2, {3}, 2, {0, 0, 0});
      blank->to(test_device());
      return blank;
    };
    method = info.make(MethodSettings(info.name, info.options, settings), context);
    method->extra()->to(test_device());
    std::array<ParameterGroup, 3> groups;
    const auto add = [&](size_t part, const NamedTensor& entry) {
      groups[part].learning_rate = static_cast<float>(kRate);
      groups[part].parameters.push_back({entry.name, *entry.tensor});
    };
    for (const NamedTensor& entry : model->named_parameters()) {
      entry.tensor->set_requires_grad();
      add(entry.name.starts_with("fc.") ? 1 : 0, entry);
    }
    for (const NamedTensor& entry : method->extra()->named_parameters()) {
      if (entry.tensor->requires_grad()) add(2, entry);
    }
    for (size_t part = 0; part < 3; ++part) {
      optimizers[part] = make_sgd({groups[part]}, {.momentum = 0});
    }
  }

  void step(double progress, double strength) {
    AdaptStep step(*model, norm, nullptr,
                   {optimizers[0].get(), optimizers[1].get(), optimizers[2].get()},
                   tensor_of(source), Tensor::of(labels), tensor_of(target),
                   {.progress = progress, .strength = strength});
    method->step(step);
  }

  Weights weights() const {
    Weights all;
    read_weights(*model, "", all);
    read_weights(*method->extra(), "own/", all);
    return all;
  }

  std::unique_ptr<ImageModel> model = make_vector_network(2, {3}, 2, {3, 0, 0});
  DomainNorm norm{*model, NormMode::joint};
  std::unique_ptr<AdaptMethod> method;
  std::array<std::unique_ptr<Optimizer>, 3> optimizers;
  Rows source = random_rows(6, 2, 1, 0), target = random_rows(5, 2, 2, 1);
  std::vector<int64_t> labels{0, 1, 1, 0, 1, 0};
};

double largest_difference(const Weights& a, const Weights& b) {
  double largest = 0;
  for (const auto& [name, values] : a) {
    for (size_t i = 0; i < values.size(); ++i) {
      largest = std::max(largest, std::fabs(values[i] - b.at(name)[i]));
    }
  }
  return largest;
}
// Single precision rounds weights of about 1 by 6e-8, a few times a step.
constexpr double kSame = 1e-6;

const std::vector<std::string> kFeatures{"fc1."}, kHead{"fc."}, kEverything{"fc1.", "fc.", "own/"};

// ---

TEST_CASE("adda: the source first; then the discriminator, then the target's features alone") {
  Bench bench(adda_method(), {"depth=0", "pretrain=0.5", "encoder_scale=0.7"});
  const std::vector<std::string> discriminator{"own/discriminator."};
  Weights expected = bench.weights();
  const Rows &source = bench.source, &target = bench.target;
  const auto agree = [&](const Weights& now) {
    Weights seen = now, reference = expected;
    for (Weights* one : {&seen, &reference}) {  // the copy is looked at by itself
      std::erase_if(*one, [](const auto& entry) { return entry.first.starts_with("own/source."); });
    }
    CHECK(largest_difference(reference, seen) < kSame);
  };

  // progress, strength
  bench.step(0.49, 1);
  descend(expected, {"fc1.", "fc."}, [&](const Weights& w) {
    return cross_entropy_of(linear(w, "fc", features(w, source)), bench.labels);
  });
  agree(bench.weights());

  const Weights copied = expected;
  for (const double strength : {1.0, 0.5}) {
    const Weights before = bench.weights();
    bench.step(0.5, strength);
    descend(expected, discriminator, [&](const Weights& w) {
      return 0.5 * (taken_for(linear(w, "own/discriminator.fc1", features(copied, source)), 1) +
                    taken_for(linear(w, "own/discriminator.fc1", features(w, target)), -1));
    });
    descend(expected, kFeatures, [&](const Weights& w) {
      return 0.7 * strength * taken_for(linear(w, "own/discriminator.fc1", features(w, target)), 1);
    });
    const Weights now = bench.weights();
    agree(now);
    for (const char* kept : {"fc.weight", "fc.bias"}) CHECK(now.at(kept) == before.at(kept));
    for (const char* moved : {"fc1.weight", "own/discriminator.fc1.weight"}) {
      CHECK(now.at(moved) != before.at(moved));
    }
    for (const char* layer : {"fc1.weight", "fc1.bias", "fc.weight", "fc.bias"}) {
      const std::vector<double>&copy = now.at(std::string("own/source.") + layer),
            &pretrained = copied.at(layer);
      for (size_t i = 0; i < copy.size(); ++i) CHECK(std::fabs(copy[i] - pretrained[i]) < kSame);
    }
  }
}

TEST_CASE("mcd: everything learns the source; the heads part on the target; the features follow") {
  const auto settings = std::vector<std::string>{"depth=0", "weight=1.5", "rounds=2"};
  Bench bench(mcd_method(), settings);
  const Rows &source = bench.source, &target = bench.target;
  const double weight = 1.5 * 0.8;
  const auto classification = [&](const Weights& w) {
    const Rows f = features(w, source);
    return cross_entropy_of(linear(w, "fc", f), bench.labels) +
           cross_entropy_of(linear(w, "own/fc1", f), bench.labels);
  };
  const auto discrepancy = [&](const Weights& w) {
    const Rows f = features(w, target), a = linear(w, "fc", f), b = linear(w, "own/fc1", f);
    double sum = 0;
    for (int64_t i = 0; i < f.n; ++i) {
      for (int64_t c = 0; c < 2; ++c) {
        sum += std::fabs(probability(a, i, c) - probability(b, i, c));
      }
    }
    return sum / static_cast<double>(2 * f.n);
  };
  // What three parts, each with a weight of its discrepancy, make of the same start.
  const auto after = [&](double heads, double follow, int rounds) {
    Weights w = bench.weights();
    descend(w, kEverything, classification);
    descend(w, {"fc.", "own/"},
            [&](const Weights& x) { return classification(x) - heads * discrepancy(x); });
    for (int i = 0; i < rounds; ++i) {
      descend(w, kFeatures, [&](const Weights& x) { return follow * discrepancy(x); });
    }
    return w;
  };
  const Weights expected = after(weight, weight, 2);
  const std::vector<Weights> mistakes{after(-weight, weight, 2), after(weight, -weight, 2),
                                      after(weight, weight, 1), after(0, weight, 2)};
  bench.step(0.3, 0.8);
  CHECK(largest_difference(expected, bench.weights()) < kSame);
  for (const Weights& mistake : mistakes) {
    CHECK(largest_difference(mistake, bench.weights()) > 1000 * kSame);
  }
}

// Squared singular values by power iteration on the Gram matrix, each taken out before the next.
double largest_squares(const Rows& x, int64_t count) {
  const auto d = static_cast<size_t>(x.d);
  std::vector<double> gram(d * d);
  for (size_t a = 0; a < d; ++a) {
    for (size_t b = 0; b < d; ++b) {
      for (int64_t i = 0; i < x.n; ++i) {
        gram[a * d + b] += x(i, static_cast<int64_t>(a)) * x(i, static_cast<int64_t>(b));
      }
    }
  }
  double total = 0;
  for (int64_t k = 0; k < count; ++k) {
    std::vector<double> v(d);
    for (size_t a = 0; a < d; ++a) v[a] = 1 + 0.3 * static_cast<double>(a);
    double value = 0;
    for (int round = 0; round < 2000; ++round) {
      std::vector<double> next(d);
      for (size_t a = 0; a < d; ++a) {
        for (size_t b = 0; b < d; ++b) next[a] += gram[a * d + b] * v[b];
      }
      value = 0;
      for (const double entry : next) value += entry * entry;
      value = std::sqrt(value);
      for (size_t a = 0; a < d; ++a) v[a] = next[a] / value;
    }
    total += value;
    for (size_t a = 0; a < d; ++a) {
      for (size_t b = 0; b < d; ++b) gram[a * d + b] -= value * v[a] * v[b];
    }
  }
  return total;
}

TEST_CASE("bsp: the penalty is the sum of each domain's largest squared singular values") {
  const MethodInfo info = bsp_method();
  const Rows source = random_rows(6, 4, 5, 0.3), target = random_rows(5, 4, 6, -0.2);
  const double strength = 0.5, penalty = 0.02;
  for (const int64_t values : {1, 2, 4}) {
    CAPTURE(values);
    // weight=0: the adversary moves no feature, so that their gradient is the penalty's.
    const std::vector<std::string> settings{"hidden=8", "gamma=0", "weight=0",
                                            text("values=", values)};
    MethodContext context;
    context.aligned_width = context.feature_width = 4;
    context.classes = 2;
    const auto loss = [&](const std::string& more, DomainPair& pair) {
      std::vector<std::string> given = settings;
      given.push_back(more);
      const auto method = info.make(MethodSettings("bsp", info.options, given), context);
      method->extra()->to(test_device());
      return method->transfer_loss(pair, {.progress = 0.5, .strength = strength});
    };
    DomainPair pair;
    pair.source.aligned = tensor_of(source).set_requires_grad();
    pair.target.aligned = tensor_of(target).set_requires_grad();
    const Tensor with = loss("penalty=0.02", pair), without = loss("penalty=0", pair);
    const auto formula = [&](const Rows& s, const Rows& t) {
      return strength * penalty * (largest_squares(s, values) + largest_squares(t, values));
    };
    CHECK(static_cast<double>(with.item()) - static_cast<double>(without.item()) ==
          doctest::Approx(formula(source, target)).epsilon(1e-5));
    backward(with);
    for (const bool of_source : {true, false}) {
      const Rows& rows = of_source ? source : target;
      const Tensor grad = (of_source ? pair.source : pair.target).aligned.grad();
      const std::vector<float> got = grad.to_vector<float>();
      double largest = 0;
      std::vector<double> slopes;
      for (size_t i = 0; i < got.size(); ++i) {
        constexpr double kStep = 1e-5;
        Rows up = rows, down = rows;
        up.values[i] += kStep;
        down.values[i] -= kStep;
        slopes.push_back((of_source ? formula(up, target) - formula(down, target)
                                    : formula(source, up) - formula(source, down)) /
                         (2 * kStep));
        largest = std::max(largest, std::fabs(slopes.back()));
      }
      CHECK(largest > 1e-3);
      for (size_t i = 0; i < got.size(); ++i) {
        CHECK(std::fabs(static_cast<double>(got[i]) - slopes[i]) <= 2e-5 * largest);
      }
    }
  }
}

}  // namespace
}  // namespace graft
