#include "transfer/measure/bootstrap.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/rng.h"
#include "kernels/error.h"

namespace graft {
namespace {

constexpr double kPart = 0.8;

}  // namespace

Bootstrap bootstrap(std::span<const int64_t> stratum_of,
                    const std::function<double(const std::vector<int64_t>&)>& score, RngKey key,
                    int64_t draws) {
  std::vector<std::vector<int64_t>> strata;
  for (size_t i = 0; i < stratum_of.size(); ++i) {
    const auto stratum = static_cast<size_t>(stratum_of[i]);
    if (stratum >= strata.size()) strata.resize(stratum + 1);
    strata[stratum].push_back(static_cast<int64_t>(i));
  }
  std::erase_if(strata, [](const auto& rows) { return rows.empty(); });
  GRAFT_CHECK(stratum_of.size() > strata.size() && draws >= 2,
              "bootstrap: expected more rows than strata and at least 2 draws, got ",
              stratum_of.size(), " rows, ", strata.size(), " strata and ", draws, " draws");
  Bootstrap result;
  std::vector<int64_t> rows(stratum_of.size());
  std::iota(rows.begin(), rows.end(), int64_t{0});
  result.value = score(rows);
  RandomStream random(key);
  for (int64_t i = 0; i < draws; ++i) {
    rows.clear();
    for (std::vector<int64_t>& stratum : strata) {
      const int64_t n = std::ssize(stratum);
      const double part = kPart * static_cast<double>(n) + random.uniform();
      const int64_t m = std::max<int64_t>(1, static_cast<int64_t>(part));
      for (int64_t j = 0; j < m; ++j) {  // the beginning of a shuffle
        std::swap(stratum[static_cast<size_t>(j)],
                  stratum[static_cast<size_t>(j + random.below(n - j))]);
        rows.push_back(stratum[static_cast<size_t>(j)]);
      }
    }
    std::sort(rows.begin(), rows.end());
    result.drawn.push_back(score(rows));
  }
  return result;
}

Interval interval_of(const Bootstrap& score, double confidence) {
  const double freedom = static_cast<double>(score.drawn.size()) - 1;
  const double error = std::sqrt(kPart / (1 - kPart)) * deviation_of(score.drawn);
  const double reach = student_t_quantile(0.5 + confidence / 2, freedom) * error;
  return {score.value, score.value - reach, score.value + reach};
}

Interval difference_of(const Bootstrap& a, const Bootstrap& b, double confidence) {
  GRAFT_CHECK(a.drawn.size() == b.drawn.size(), "bootstrap: the scores are of ", a.drawn.size(),
              " and ", b.drawn.size(), " draws");
  Bootstrap difference{a.value - b.value, {}};
  for (size_t i = 0; i < a.drawn.size(); ++i) {
    difference.drawn.push_back(a.drawn[i] - b.drawn[i]);
  }
  return interval_of(difference, confidence);
}

}  // namespace graft
