#include "transfer/adapt/health.h"

#include <algorithm>
#include <cmath>

#include "engine/rng.h"
#include "kernels/error.h"
#include "transfer/adapt/judge.h"
#include "transfer/measure/logistic.h"

namespace graft {
namespace {

constexpr double kContraction = 0.25, kForgetting = 0.1;
constexpr int64_t kProbeRows = 500;  // of each domain

double relative_entropy_of(const std::vector<double>& shares) {
  double sum = 0;
  for (const double p : shares) sum -= p > 0 ? p * std::log(p) : 0;
  return shares.size() < 2 ? 0 : sum / std::log(static_cast<double>(shares.size()));
}

std::vector<double> shares_of(const std::vector<int64_t>& labels, int64_t classes) {
  std::vector<double> shares(static_cast<size_t>(classes));
  for (const int64_t label : labels) {
    shares[static_cast<size_t>(label)] += 1.0 / static_cast<double>(labels.size());
  }
  return shares;
}

// A linear probe, fitted on a random half of each domain's rows and judged on the others.
double domain_accuracy(const Tensor& source, const Tensor& target) {
  const int64_t n = std::min({kProbeRows, source.dim(0), target.dim(0)});
  if (n < 4) return 0.5;
  const int64_t width = source.dim(1);
  std::vector<float> rows[2];
  std::vector<int64_t> domains[2];
  for (const int64_t label : {0, 1}) {
    const Tensor domain = thinned(label == 0 ? source : target, n);
    // The same halves in every epoch: numbers that can be compared.
    const std::vector<int64_t> order = permutation(n, {0, 0, static_cast<uint32_t>(label)});
    for (int64_t i = 0; i < n; ++i) {
      const float* row = domain.data<float>() + order[static_cast<size_t>(i)] * width;
      rows[i % 2].insert(rows[i % 2].end(), row, row + width);
      domains[i % 2].push_back(label);
    }
  }
  const auto tensor = [&](int half) {
    return Tensor::of(rows[half], {static_cast<int64_t>(domains[half].size()), width});
  };
  const auto probe = LogisticRegression::fit(tensor(0), domains[0], 2, {.l2 = 1e-2});
  const std::vector<int64_t> said = probe.predict(tensor(1));
  int64_t correct = 0;
  for (size_t i = 0; i < said.size(); ++i) correct += said[i] == domains[1][i];
  return static_cast<double>(correct) / static_cast<double>(said.size());
}

double spread_of(const Tensor& features) {
  const int64_t n = features.dim(0), width = features.dim(1);
  double variance = 0;
  for (int64_t j = 0; j < width; ++j) {
    double sum = 0, squares = 0;
    for (int64_t i = 0; i < n; ++i)
      sum += static_cast<double>(features.data<float>()[i * width + j]);
    for (int64_t i = 0; i < n; ++i) {
      const double d =
          static_cast<double>(features.data<float>()[i * width + j]) - sum / static_cast<double>(n);
      squares += d * d;
    }
    variance += squares / static_cast<double>(n) / static_cast<double>(width);
  }
  return std::sqrt(variance);
}

std::string percent(double part) { return text(std::lround(part * 100), " %"); }

}  // namespace

Health health_of(const DomainView& source, const DomainView& target,
                 const HealthBaseline& baseline) {
  const int64_t classes = target.probabilities.dim(1), n = target.probabilities.dim(0);
  Health health;
  health.domain_accuracy = domain_accuracy(source.features, target.features);
  std::vector<double> mean(static_cast<size_t>(classes));
  for (int64_t i = 0; i < n * classes; ++i) {
    mean[static_cast<size_t>(i % classes)] +=
        static_cast<double>(target.probabilities.data<float>()[i]) / static_cast<double>(n);
  }
  health.balance = relative_entropy_of(mean);
  const std::vector<double> shares = shares_of(target.predicted, classes);
  const auto largest = std::max_element(shares.begin(), shares.end());
  health.largest_share = *largest;
  health.largest_class = largest - shares.begin();
  health.spread = spread_of(target.features);

  const std::vector<double> priors = shares_of(source.labels, classes);
  const double prior = *std::max_element(priors.begin(), priors.end());
  if (health.largest_share > (1 + prior) / 2) {
    health.alarms.push_back(text("one class: ", percent(health.largest_share),
                                 " of the target are taken for class ", health.largest_class,
                                 ", the source's largest has ", percent(prior)));
  }
  if (health.balance < relative_entropy_of(priors) / 2) {
    health.alarms.push_back(text("lopsided: the mean target prediction has an entropy of ",
                                 percent(health.balance), " of the most, the source's classes ",
                                 percent(relative_entropy_of(priors))));
  }
  if (health.spread < kContraction * baseline.largest_spread) {
    health.alarms.push_back(text("contraction: the target's features spread over ",
                                 percent(health.spread / baseline.largest_spread),
                                 " of their largest spread so far"));
  }
  if (source.accuracy() < baseline.best_source_accuracy - kForgetting) {
    health.alarms.push_back(text("forgetting: source accuracy fell from ",
                                 percent(baseline.best_source_accuracy), " to ",
                                 percent(source.accuracy())));
  }
  return health;
}

}  // namespace graft
