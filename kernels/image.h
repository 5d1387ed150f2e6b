// How a batch of 8-bit pictures of any sizes becomes the input of a model: for the CPU and CUDA
// alike.
#pragma once

#include <cstdint>

#include "kernels/augment.h"
#include "kernels/isa.h"

namespace graft {

// Weights of a resize are integers with this many bits after the point.
constexpr int kResizeBits = 22;

// One picture and its view. A filter is `taps` + 2 words for each output: the first input, how many
// there are, and their weights. An axis that is not resized has one input of weight 1.
struct ImageView {
  int64_t pixels = 0, stride = 0;  // the first byte that is read, and bytes from row to row
  int64_t between = 0;             // where the picture between the two passes begins, bytes
  int64_t rows = 0, columns = 0;   // where the filters begin, words
  int32_t row_taps = 0, column_taps = 0;
  int32_t height = 0, width = 0;  // of what the filters make,
  int32_t top = 0, left = 0;      // and where it lies in the result; black around it
  int32_t between_height = 0, between_width = 0;
  bool rows_first = false;                       // the vertical pass is the first of the two
  bool flip_rows = false, flip_columns = false;  // of the whole result
};

struct ImageBatch {
  int64_t images = 0, height = 0, width = 0, channels = 0;  // of the result
  int64_t most_between_rows = 0;                            // of any picture between passes
  const ImageView* views = nullptr;
  const int32_t* filters = nullptr;
  const float* levels = nullptr;  // (channels, 256): what a byte becomes
  const uint8_t* pixels = nullptr;
  int64_t steps = 0;                       // most changes of any picture
  const PictureChange* changes = nullptr;  // (images, steps)
  // Working memory, contents arbitrary: pictures between passes; with changes the views
  // before even and odd steps, and the tables of a step (images, channels, 256).
  uint8_t *between = nullptr, *even = nullptr, *odd = nullptr, *tables = nullptr;
};

inline namespace GRAFT_ISA_NAMESPACE {

GRAFT_HD inline int64_t view_bytes(const ImageBatch& in) {
  return in.height * in.width * in.channels;
}

// The views before a step.
GRAFT_HD inline uint8_t* views_before(const ImageBatch& in, int64_t step) {
  return step % 2 == 0 ? in.even : in.odd;
}

// One byte of a pass: inputs `step` bytes apart, rounded to the nearest.
GRAFT_HD inline uint8_t resample(const uint8_t* in, int64_t step, const int32_t* filter) {
  const int32_t first = filter[0], count = filter[1];
  const uint8_t* next = in + first * step;
  int32_t sum = 1 << (kResizeBits - 1);
  for (int32_t k = 0; k < count; ++k, next += step) sum += *next * filter[2 + k];
  sum >>= kResizeBits;
  return static_cast<uint8_t>(sum < 0 ? 0 : (sum > 255 ? 255 : sum));
}

// A byte of the picture between the passes.
GRAFT_HD inline uint8_t image_between(const ImageBatch& in, const ImageView& view, int64_t row,
                                      int64_t column, int64_t channel) {
  const uint8_t* pixels = in.pixels + view.pixels + channel;
  if (view.rows_first) {
    return resample(pixels + column * in.channels, view.stride,
                    in.filters + view.rows + row * (view.row_taps + 2));
  }
  return resample(pixels + row * view.stride, in.channels,
                  in.filters + view.columns + column * (view.column_taps + 2));
}

// A byte of the view before its changes.
GRAFT_HD inline uint8_t image_byte(const ImageBatch& in, const ImageView& view, int64_t row,
                                   int64_t column, int64_t channel) {
  if (view.flip_rows) row = in.height - 1 - row;
  if (view.flip_columns) column = in.width - 1 - column;
  row -= view.top;
  column -= view.left;
  if (row < 0 || row >= view.height || column < 0 || column >= view.width) return 0;
  const int64_t stride = view.between_width * in.channels;
  const uint8_t* between = in.between + view.between + channel;
  if (view.rows_first) {
    return resample(between + row * stride, in.channels,
                    in.filters + view.columns + column * (view.column_taps + 2));
  }
  return resample(between + column * in.channels, stride,
                  in.filters + view.rows + row * (view.row_taps + 2));
}

// A pixel of view `image` after change `step`.
GRAFT_HD inline void image_changed(const ImageBatch& in, int64_t step, int64_t image, int64_t row,
                                   int64_t column, uint8_t* out) {
  change_pixel(in.changes[image * in.steps + step], views_before(in, step) + image * view_bytes(in),
               in.tables + image * in.channels * 256, in.width, in.height, in.channels, column, row,
               out);
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
