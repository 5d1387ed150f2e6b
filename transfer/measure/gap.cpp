#include "transfer/measure/gap.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "kernels/error.h"

namespace graft {
namespace {

struct Spread {
  double mean = 0;
  double of_pair = 0;    // variance of one pair's difference
  double of_images = 0;  // variance of the mean that comes from the choice of images
  double images = 0;     // different ones
};

double difference(const JudgedPair& pair, size_t i) {
  return static_cast<double>(pair.wrong_with[i]) - static_cast<double>(pair.wrong_without[i]);
}

Spread spread_of(std::span<const JudgedPair> pairs) {
  GRAFT_CHECK(pairs.size() >= 2, "gap: expected at least 2 pairs, got ", pairs.size());
  std::vector<double> means;
  for (const JudgedPair& pair : pairs) {
    const size_t n = pair.images.size();
    GRAFT_CHECK(n > 0 && pair.wrong_with.size() == n && pair.wrong_without.size() == n,
                "gap: expected both members of pair ", means.size(),
                " to be judged on the same images, at least one; got ", pair.wrong_with.size(),
                " and ", pair.wrong_without.size(), " of ", n);
    double sum = 0;
    for (size_t i = 0; i < n; ++i) sum += difference(pair, i);
    means.push_back(sum / static_cast<double>(n));
  }
  Spread spread;
  spread.mean = mean_of(means);
  const double deviation = deviation_of(means);
  spread.of_pair = deviation * deviation;
  // What each image added to the mean, over all pairs that it judged.
  std::map<int64_t, double> share;
  for (const JudgedPair& pair : pairs) {
    const double weight = 1 / static_cast<double>(pairs.size() * pair.images.size());
    for (size_t i = 0; i < pair.images.size(); ++i) {
      share[pair.images[i]] += weight * (difference(pair, i) - spread.mean);
    }
  }
  spread.images = static_cast<double>(share.size());
  for (const auto& [image, part] : share) spread.of_images += part * part;
  if (share.size() > 1) spread.of_images *= spread.images / (spread.images - 1);
  return spread;
}

Interval interval_of(const Spread& spread, int64_t pairs, double confidence) {
  const double n = static_cast<double>(pairs), of_pairs = spread.of_pair / n;
  const double variance = of_pairs + spread.of_images;
  double freedom = n - 1;
  if (variance > 0) {
    freedom = variance * variance /
              (of_pairs * of_pairs / (n - 1) +
               spread.of_images * spread.of_images / std::max(spread.images - 1, 1.0));
  }
  const double reach = std::max(
      student_t_quantile(0.5 + confidence / 2, freedom) * std::sqrt(variance), 3 / spread.images);
  return {spread.mean, spread.mean - reach, spread.mean + reach};
}

}  // namespace

Interval gap_of(std::span<const JudgedPair> pairs, double confidence) {
  return interval_of(spread_of(pairs), static_cast<int64_t>(pairs.size()), confidence);
}

Answer answer_of(const Interval& gap, double margin) {
  GRAFT_CHECK(margin >= 0, "answer: expected a margin of at least 0, got ", margin);
  if (gap.low > -margin && gap.high < margin) return Answer::neutral;
  if (gap.high < 0) return Answer::helps;
  if (gap.low > 0) return Answer::harms;
  return Answer::undecided;
}

std::string name_of(Answer answer) {
  switch (answer) {
    case Answer::helps:
      return "helps";
    case Answer::neutral:
      return "neutral";
    case Answer::harms:
      return "harms";
    case Answer::undecided:
      break;
  }
  return "undecided";
}

std::optional<int64_t> pairs_needed(std::span<const JudgedPair> pairs, double margin,
                                    int64_t most) {
  const Spread spread = spread_of(pairs);
  for (auto n = static_cast<int64_t>(pairs.size()); n <= most; ++n) {
    if (answer_of(interval_of(spread, n, 0.95), margin) != Answer::undecided) return n;
  }
  return std::nullopt;
}

}  // namespace graft
