#include "transfer/measure/jackknife.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/error.h"

namespace graft {

Jackknife jackknife(std::span<const int64_t> group_of,
                    const std::function<double(const std::vector<int64_t>&)>& score) {
  std::vector<int64_t> rows(group_of.size());
  std::iota(rows.begin(), rows.end(), int64_t{0});
  const int64_t groups =
      group_of.empty() ? 0 : 1 + *std::max_element(group_of.begin(), group_of.end());
  GRAFT_CHECK(groups >= 2, "jackknife: expected at least 2 groups, got ", groups);
  Jackknife result;
  result.value = score(rows);
  for (int64_t group = 0; group < groups; ++group) {
    rows.clear();
    for (size_t i = 0; i < group_of.size(); ++i) {
      if (group_of[i] != group) rows.push_back(static_cast<int64_t>(i));
    }
    GRAFT_CHECK(rows.size() < group_of.size(), "jackknife: group ", group, " is empty");
    result.without.push_back(score(rows));
  }
  return result;
}

Jackknife jackknife_of_mean(std::span<const double> values) {
  GRAFT_CHECK(values.size() >= 2, "jackknife: expected at least 2 rows, got ", values.size());
  const auto n = static_cast<double>(values.size());
  Jackknife result;
  result.value = mean_of(values);
  for (const double value : values) {
    result.without.push_back((result.value * n - value) / (n - 1));
  }
  return result;
}

Interval interval_of(const Jackknife& score, double confidence) {
  const auto groups = static_cast<double>(score.without.size());
  const double error = deviation_of(score.without) * (groups - 1) / std::sqrt(groups);
  const double reach = student_t_quantile(0.5 + confidence / 2, groups - 1) * error;
  return {score.value, score.value - reach, score.value + reach};
}

Interval difference_of(const Jackknife& a, const Jackknife& b, double confidence) {
  GRAFT_CHECK(a.without.size() == b.without.size(), "jackknife: the scores have ", a.without.size(),
              " and ", b.without.size(), " groups");
  Jackknife difference{a.value - b.value, {}};
  for (size_t i = 0; i < a.without.size(); ++i) {
    difference.without.push_back(a.without[i] - b.without[i]);
  }
  return interval_of(difference, confidence);
}

}  // namespace graft
