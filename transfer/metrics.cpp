#include "transfer/metrics.h"

#include <numeric>

#include "kernels/error.h"

namespace graft {

ConfusionMatrix::ConfusionMatrix(int64_t classes)
    : classes_(classes), counts_(static_cast<size_t>(classes * classes)) {}

void ConfusionMatrix::add(int64_t actual, int64_t predicted, int64_t count) {
  GRAFT_CHECK(actual >= 0 && actual < classes_ && predicted >= 0 && predicted < classes_,
              "confusion matrix: classes are 0..", classes_ - 1, ", got actual ", actual,
              " and predicted ", predicted);
  counts_[static_cast<size_t>(actual * classes_ + predicted)] += count;
}

int64_t ConfusionMatrix::count(int64_t actual, int64_t predicted) const {
  return counts_.at(static_cast<size_t>(actual * classes_ + predicted));
}

int64_t ConfusionMatrix::total() const {
  return std::accumulate(counts_.begin(), counts_.end(), int64_t{0});
}

Metrics metrics_of(const ConfusionMatrix& confusion, int64_t positive) {
  const auto ratio = [](int64_t part, int64_t whole) {
    return whole == 0 ? 0.0 : static_cast<double>(part) / static_cast<double>(whole);
  };
  Metrics result;
  result.samples = confusion.total();
  int64_t right_in_all = 0, with_samples = 0, seen = 0;
  double recalls = 0, f1s = 0;
  for (int64_t c = 0; c < confusion.classes(); ++c) {
    ClassMetrics one;
    for (int64_t other = 0; other < confusion.classes(); ++other) {
      one.count += confusion.count(c, other);
      one.predicted += confusion.count(other, c);
    }
    const int64_t right = confusion.count(c, c);
    one.precision = ratio(right, one.predicted);
    one.recall = ratio(right, one.count);
    one.f1 = ratio(2 * right, one.count + one.predicted);
    right_in_all += right;
    recalls += one.recall;
    f1s += one.f1;
    with_samples += one.count > 0;
    seen += one.count + one.predicted > 0;
    result.per_class.push_back(one);
  }
  result.accuracy = ratio(right_in_all, result.samples);
  if (with_samples > 0) result.balanced_accuracy = recalls / static_cast<double>(with_samples);
  if (seen > 0) result.macro_f1 = f1s / static_cast<double>(seen);
  if (confusion.classes() == 2) {
    result.positive_f1 = result.per_class.at(static_cast<size_t>(positive)).f1;
  }
  return result;
}

}  // namespace graft
