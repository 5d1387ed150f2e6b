// Numbers with their uncertainty.
#pragma once

#include <cstdint>
#include <functional>
#include <span>
#include <vector>

#include "kernels/types.h"

namespace graft {

// An estimate and the interval that covers the truth with the stated confidence.
struct Interval {
  double value = 0, low = 0, high = 0;
};

// 0 for an empty list.
double mean_of(std::span<const double> values);
// With n - 1 in the divisor; 0 for fewer than two values.
double deviation_of(std::span<const double> values);

// The x below which a standard normal variable falls with probability p, 0 < p < 1.
double normal_quantile(double p);
// Likewise for Student's t with `freedom` degrees of freedom (any positive number).
double student_t_quantile(double p, double freedom);
// The probability that Student's t is at most t.
double student_t_probability(double t, double freedom);

// The mean and its t interval: of paired differences, that of a paired t-test. A single value says
// nothing about its uncertainty: the interval is infinite.
Interval mean_interval(std::span<const double> values, double confidence = 0.95);
// The mean of values from random splits of one collection into a part that trained and a part that
// judged, with the corrected resampled t interval (Nadeau and Bengio 2003): the splits overlap, so
// that held_out_ratio, judging rows over training rows, is added to 1 / n. Two values at least.
Interval resampled_interval(std::span<const double> values, double held_out_ratio,
                            double confidence = 0.95);
// Wilson's score interval of a proportion (Wilson 1927): sane near 0 and 1, where the usual one
// leaves [0, 1].
Interval proportion_interval(int64_t successes, int64_t trials, double confidence = 0.95);
// The percentile bootstrap (Efron 1979): `statistic` of all rows 0..n-1, and the interval of what
// it gives on `resamples` draws of n rows with replacement. A resample on which it is not finite is
// left out.
Interval bootstrap_interval(int64_t n,
                            const std::function<double(const std::vector<int64_t>&)>& statistic,
                            RngKey key, int64_t resamples = 200, double confidence = 0.95);

}  // namespace graft
