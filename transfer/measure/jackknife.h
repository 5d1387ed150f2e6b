// How sure a score of a set of rows is: the delete-a-group jackknife.
//
// The rows are dealt into groups, and the score is taken again without each of them (Quenouille
// 1956, Tukey 1958; groups: Shao and Wu 1989). Why not the bootstrap: it draws rows twice, and
// scores that look for structure in features (H-score, LogME, MMD, neighbours) take a row and its
// copy for structure: on resamples they are larger than they are.
#pragma once

#include <functional>

#include "transfer/measure/statistics.h"

namespace graft {

struct Jackknife {
  double value = 0;             // of all rows
  std::vector<double> without;  // of all rows but those of a group
};

// `score` of the rows whose numbers it is given, ascending. group_of: of each row, 0..groups-1,
// none empty; at least 2 groups.
Jackknife jackknife(std::span<const int64_t> group_of,
                    const std::function<double(const std::vector<int64_t>&)>& score);
// For a score that is a mean of one number a row: each row is a group, and the interval is the t
// interval of the mean.
Jackknife jackknife_of_mean(std::span<const double> values);

// The t interval with groups - 1 degrees of freedom.
Interval interval_of(const Jackknife& score, double confidence = 0.95);
// a - b, of scores over the same rows in the same groups.
Interval difference_of(const Jackknife& a, const Jackknife& b, double confidence = 0.95);

}  // namespace graft
