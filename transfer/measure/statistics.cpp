#include "transfer/measure/statistics.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>

#include "engine/rng.h"
#include "kernels/error.h"

namespace graft {
namespace {

void check_confidence(double confidence) {
  GRAFT_CHECK(confidence > 0 && confidence < 1,
              "interval: expected a confidence between 0 and 1, got ", confidence);
}

// The regularised incomplete beta function I_x(a, b) by Lentz's continued fraction.
double incomplete_beta(double a, double b, double x) {
  if (x <= 0) return 0;
  if (x >= 1) return 1;
  // The fraction converges fast below the mean; above it the symmetry is used.
  if (x > (a + 1) / (a + b + 2)) return 1 - incomplete_beta(b, a, 1 - x);
  constexpr double kTiny = 1e-300;
  const double front = std::exp(std::lgamma(a + b) - std::lgamma(a) - std::lgamma(b) +
                                a * std::log(x) + b * std::log1p(-x)) /
                       a;
  double c = 1, d = 1 - (a + b) * x / (a + 1);
  d = 1 / (std::fabs(d) < kTiny ? kTiny : d);
  double fraction = d;
  for (int i = 1; i <= 500; ++i) {
    const double m = i;
    for (const double term : {m * (b - m) * x / ((a + 2 * m - 1) * (a + 2 * m)),
                              -(a + m) * (a + b + m) * x / ((a + 2 * m) * (a + 2 * m + 1))}) {
      d = 1 + term * d;
      d = 1 / (std::fabs(d) < kTiny ? kTiny : d);
      c = 1 + term / c;
      if (std::fabs(c) < kTiny) c = kTiny;
      fraction *= c * d;
    }
    if (std::fabs(c * d - 1) < 1e-15) break;
  }
  return front * fraction;
}

// The x in [-limit, limit] where a rising function takes the value p.
template <class F>
double invert(const F& rising, double p, double limit) {
  double low = -1, high = 1;
  while (low > -limit && rising(low) >= p) low = std::max(low * 4, -limit);
  while (high < limit && rising(high) < p) high = std::min(high * 4, limit);
  for (double middle = 0; (middle = low + (high - low) / 2) > low && middle < high;) {
    (rising(middle) < p ? low : high) = middle;
  }
  return high;
}

void check_probability(double p) {
  GRAFT_CHECK(p > 0 && p < 1, "quantile: expected a probability between 0 and 1, got ", p);
}

}  // namespace

double mean_of(std::span<const double> values) {
  if (values.empty()) return 0;
  return std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double deviation_of(std::span<const double> values) {
  if (values.size() < 2) return 0;
  const double mean = mean_of(values);
  double sum = 0;
  for (const double value : values) sum += (value - mean) * (value - mean);
  return std::sqrt(sum / static_cast<double>(values.size() - 1));
}

double normal_quantile(double p) {
  check_probability(p);
  return invert([](double x) { return 0.5 * std::erfc(-x / std::sqrt(2.0)); }, p, 40);
}

double student_t_probability(double t, double freedom) {
  GRAFT_CHECK(freedom > 0, "student_t: expected positive degrees of freedom, got ", freedom);
  const double tail = 0.5 * incomplete_beta(freedom / 2, 0.5, freedom / (freedom + t * t));
  return t < 0 ? tail : 1 - tail;
}

double student_t_quantile(double p, double freedom) {
  check_probability(p);
  // The tails of one degree of freedom reach far: its quantile at 1e-9 is 3e8.
  return invert([=](double t) { return student_t_probability(t, freedom); }, p, 1e12);
}

Interval mean_interval(std::span<const double> values, double confidence) {
  check_confidence(confidence);
  GRAFT_CHECK(!values.empty(), "mean_interval: there are no values");
  const double mean = mean_of(values);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (values.size() < 2) return {mean, -kInfinity, kInfinity};
  const double n = static_cast<double>(values.size());
  const double reach =
      student_t_quantile(0.5 + confidence / 2, n - 1) * deviation_of(values) / std::sqrt(n);
  return {mean, mean - reach, mean + reach};
}

Interval resampled_interval(std::span<const double> values, double held_out_ratio,
                            double confidence) {
  check_confidence(confidence);
  GRAFT_CHECK(values.size() >= 2 && held_out_ratio > 0,
              "resampled_interval: expected at least 2 values and a positive ratio, got ",
              values.size(), " and ", held_out_ratio);
  const double mean = mean_of(values), n = static_cast<double>(values.size());
  const double reach = student_t_quantile(0.5 + confidence / 2, n - 1) * deviation_of(values) *
                       std::sqrt(1 / n + held_out_ratio);
  return {mean, mean - reach, mean + reach};
}

Interval proportion_interval(int64_t successes, int64_t trials, double confidence) {
  check_confidence(confidence);
  GRAFT_CHECK(trials > 0 && successes >= 0 && successes <= trials,
              "proportion_interval: expected 0 to ", trials, " successes of at least 1 trial, got ",
              successes, " of ", trials);
  const double n = static_cast<double>(trials), p = static_cast<double>(successes) / n;
  const double z = normal_quantile(0.5 + confidence / 2), z2 = z * z;
  const double centre = (p + z2 / (2 * n)) / (1 + z2 / n);
  const double reach = z / (1 + z2 / n) * std::sqrt(p * (1 - p) / n + z2 / (4 * n * n));
  return {p, std::max(0.0, centre - reach), std::min(1.0, centre + reach)};
}

Interval bootstrap_interval(int64_t n,
                            const std::function<double(const std::vector<int64_t>&)>& statistic,
                            RngKey key, int64_t resamples, double confidence) {
  check_confidence(confidence);
  GRAFT_CHECK(n > 0 && resamples > 1, "bootstrap: expected rows and at least 2 resamples, got ", n,
              " and ", resamples);
  std::vector<int64_t> rows(static_cast<size_t>(n));
  std::iota(rows.begin(), rows.end(), int64_t{0});
  const double value = statistic(rows);
  RandomStream random(key);
  std::vector<double> values;
  for (int64_t i = 0; i < resamples; ++i) {
    for (int64_t& row : rows) row = random.below(n);
    // Sorted rows are kinder to the caches, and a statistic of a set does not notice.
    std::sort(rows.begin(), rows.end());
    const double drawn = statistic(rows);
    if (std::isfinite(drawn)) values.push_back(drawn);
  }
  GRAFT_CHECK(!values.empty(), "bootstrap: the statistic is finite on none of ", resamples,
              " resamples");
  std::sort(values.begin(), values.end());
  const auto at = [&](double p) {  // linear between neighbours
    const double place = p * static_cast<double>(values.size() - 1);
    const auto below = static_cast<size_t>(place);
    const size_t above = std::min(below + 1, values.size() - 1);
    return values[below] + (place - static_cast<double>(below)) * (values[above] - values[below]);
  };
  return {value, at((1 - confidence) / 2), at((1 + confidence) / 2)};
}

}  // namespace graft
