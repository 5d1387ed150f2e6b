// The weights of Pillow's resampling, for whoever applies them: resize.cpp, and the kernels that
// make a batch's views on a GPU.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/data/image.h"
#include "kernels/image.h"

namespace graft {

// For each output position: the first input, counted from `begin`, and `taps` weights (padded with
// zeros) in fixed point, kResizeBits after the point. Inputs outside [begin, end) are not read.
struct ResizeFilter {
  struct Range {
    int64_t first, count;
  };
  std::vector<Range> ranges;
  std::vector<int32_t> weights;  // ranges.size() * taps
  int64_t taps = 0;
  int64_t begin = 0, end = 0;
};

// The filter of outputs [start, start + count) of a resize of `in` samples to `out`; where nothing
// is resized, no ranges.
ResizeFilter resize_filter(int64_t in, int64_t out, int64_t start, int64_t count,
                           Interpolation interpolation);
// Which of two passes comes first: both round to 8 bits, so it shows.
bool vertical_first(int64_t width, int64_t height, int64_t to_width, int64_t to_height);

}  // namespace graft
