// How far a target domain lies from a source domain in the eyes of a network: distances between
// its features of two folders, with intervals.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "transfer/features.h"
#include "transfer/measure/statistics.h"

namespace graft {

struct DomainGap {
  int64_t source_images = 0, target_images = 0, width = 0;
  // The proxy A-distance, 0 (alike) to 2 (a line separates them), over random halves; the interval
  // is Nadeau and Bengio's (2003), as the halves overlap. `within`: the same between random halves
  // of each domain, what no gap at all looks like with so few images.
  Interval a_distance;
  double a_distance_within = 0;
  // Squared maximum mean discrepancy, and the probability of one as large without a gap.
  Interval mmd;
  double mmd_p = 1;
  Interval coral;
};
// What is seen of a gap.
//   none     no more than halves of one domain differ, and no sign of MMD
//   small    there is one, but a line tells the domains apart in less than three of four images
//            (an A-distance below 1)
//   large    more than that
//   unclear  the interval holds more than one of these
enum class GapSize : uint8_t { none, small, large, unclear };
GapSize size_of(const DomainGap& gap);

// source (n, d), target (m, d), f32 on the CPU, at least 20 rows each.
DomainGap domain_gap(const Tensor& source, const Tensor& target, uint64_t seed);

struct DomainGapOptions {
  std::filesystem::path source, target, weights;
  int64_t most = 500;  // images of a domain; of more, a random draw
  uint64_t seed = 0;
  ExtractOptions reading;
  Device device;
  Dtype precision = Dtype::f32;
};
// `keep_going` is told the images done of both; false ends the work, and the result has none.
DomainGap measure_domain_gap(const DomainGapOptions& options,
                             const std::function<bool(int64_t done, int64_t total)>& keep_going);

}  // namespace graft
