// A convolution's images, filters and gradients as the matrices of gemm.cuh. Batches of products
// are the groups; a patch is what one output pixel sees, taps by channels. T: float, or uint16_t
// for bf16.
#pragma once

#include <cstdint>

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/gemm.cuh"
#include "kernels/functors.h"
#include "kernels/types.h"

namespace graft::cuda {

// One direction of a sliding window: pixel i of the grid sees at tap j the image's row
// i * scale + shift + j * step.
struct ConvAxis {
  int64_t grid = 0, taps = 0;
  int scale = 1, shift = 0, step = 1;
};

// The patches that a grid of pixels sees, as a matrix (pixels, taps x channels of a group): neither
// is stored anywhere. A batch has fewer than 2^31 pixels, a patch fewer than 2^31 numbers.
template <class T>
struct Patches {
  const T* images;  // (batch, height, width, channels)
  int height, width, channels, group_channels;
  int pixels, depth;
  ConvAxis down, across;
  Divider by_grid, by_grid_row, by_channel, by_tap_row;

  Patches(const T* images_, int64_t batch, int64_t height_, int64_t width_, int64_t channels_,
          int64_t groups, const ConvAxis& down_, const ConvAxis& across_)
      : images(images_),
        height(static_cast<int>(height_)),
        width(static_cast<int>(width_)),
        channels(static_cast<int>(channels_)),
        group_channels(static_cast<int>(channels_ / groups)),
        pixels(static_cast<int>(batch * down_.grid * across_.grid)),
        depth(static_cast<int>(down_.taps * across_.taps * group_channels)),
        down(down_),
        across(across_),
        by_grid(down_.grid * across_.grid),
        by_grid_row(across_.grid),
        by_channel(group_channels),
        by_tap_row(across_.taps > 0 ? across_.taps : 1) {}

  // Outside the image whatever is added.
  static constexpr int kNowhere = -(1 << 30);
  struct Pixel {
    int row, column;  // of tap 0 in the image
    unsigned place;   // the same as a pixel number of the batch, modulo 2^32
    int channel;
  };
  struct Tap {
    int row, column;
    unsigned place;
    int channel;
  };
  __device__ Pixel pixel(int64_t i, int64_t group) const {
    const Divider::Result image = by_grid(static_cast<uint32_t>(i));
    const Divider::Result at = by_grid_row(image.rest);
    const int row = static_cast<int>(at.quotient) * down.scale + down.shift;
    const int column = static_cast<int>(at.rest) * across.scale + across.shift;
    return {i < pixels ? row : kNowhere, column,
            place(static_cast<int>(image.quotient) * height + row, column),
            static_cast<int>(group) * group_channels};
  }
  __device__ Tap tap(int k, int64_t group) const {
    const Divider::Result tap = by_channel(static_cast<uint32_t>(k));
    const Divider::Result at = by_tap_row(tap.quotient);
    const int row = static_cast<int>(at.quotient) * down.step;
    const int column = static_cast<int>(at.rest) * across.step;
    return {k < depth ? row : kNowhere, column, place(row, column),
            static_cast<int>(tap.rest) + static_cast<int>(group) * group_channels};
  }
  __device__ const T* at(const Pixel& pixel, const Tap& tap) const {
    const int row = pixel.row + tap.row, column = pixel.column + tap.column;
    if (static_cast<unsigned>(row) >= static_cast<unsigned>(height) ||
        static_cast<unsigned>(column) >= static_cast<unsigned>(width)) {
      return nullptr;
    }
    return images + int64_t{pixel.place + tap.place} * channels + (pixel.channel + tap.channel);
  }

 private:
  __device__ unsigned place(int row, int column) const {
    return static_cast<unsigned>(row) * static_cast<unsigned>(width) +
           static_cast<unsigned>(column);
  }
};

// Pixels as rows. kPack 8 wants aligned images and group_channels that 8 divides.
template <class T, int kPack_>
struct PatchRows {
  static constexpr bool kAlongRows = false;
  static constexpr int kPack = kPack_;
  Patches<T> patches;

  using Row = typename Patches<T>::Pixel;
  using Column = typename Patches<T>::Tap;
  __device__ Row row(int64_t group, int64_t r) const { return patches.pixel(r, group); }
  __device__ Column column(int k) const { return patches.tap(k, 0); }
  __device__ const T* at(const Row& row, const Column& column) const {
    return patches.at(row, column);
  }
};

// The transpose: taps x channels as rows, to be summed over pixels. kPack wants aligned images and
// divides group_channels.
template <class T, int kPack_>
struct PatchColumns {
  static constexpr bool kAlongRows = true;
  static constexpr int kPack = kPack_;
  Patches<T> patches;

  using Row = typename Patches<T>::Tap;
  using Column = typename Patches<T>::Pixel;
  __device__ Row row(int64_t group, int64_t r) const {
    return patches.tap(static_cast<int>(r), group);
  }
  __device__ Column column(int k) const { return patches.pixel(k, 0); }
  __device__ const T* at(const Row& row, const Column& column) const {
    return patches.at(column, row);
  }
};

// The images' own pixels (pixels, channels of a group) with channels as rows, to be summed over
// pixels: gradients, and images under 1x1 filters. kPack wants aligned images and divides the
// channels of a group.
template <class T, int kPack_>
struct PixelColumns {
  static constexpr bool kAlongRows = true;
  static constexpr int kPack = kPack_;
  const T* images;
  int64_t pixels, channels, group_channels;

  struct Row {
    const T* first;  // null: outside
  };
  struct Column {
    int64_t offset;  // negative: outside
  };
  __device__ Row row(int64_t group, int64_t r) const {
    return {r < group_channels ? images + group * group_channels + r : nullptr};
  }
  __device__ Column column(int k) const { return {k < pixels ? k * channels : -1}; }
  __device__ const T* at(const Row& row, const Column& column) const {
    return row.first != nullptr && column.offset >= 0 ? row.first + column.offset : nullptr;
  }
};

// Filters (out, kernel height, kernel width, in) read backwards: input channels as rows; k are the
// taps first, first + step, ... down and across, by output channel. kPack wants aligned filters and
// divides the input channels of a group. Fewer than 2^31 numbers in all.
template <class T, int kPack_>
struct FilterTaps {
  static constexpr bool kAlongRows = true;
  static constexpr int kPack = kPack_;
  const T* filters;
  int in, out;  // of a group
  int kernel_height, kernel_width;
  int depth;
  int first_down, step_down, first_across, step_across;
  Divider by_out, by_tap_row;

  struct Row {
    const T* first;  // null: outside
  };
  struct Column {
    int offset;  // negative: outside
  };
  __device__ Row row(int64_t group, int64_t r) const {
    return {r < in ? filters + group * (out * kernel_height * kernel_width * in) + r : nullptr};
  }
  __device__ Column column(int k) const {
    if (k >= depth) return {-1};
    const Divider::Result tap = by_out(static_cast<uint32_t>(k));
    const Divider::Result at = by_tap_row(tap.quotient);
    const int down = first_down + static_cast<int>(at.quotient) * step_down;
    const int across = first_across + static_cast<int>(at.rest) * step_across;
    return {((static_cast<int>(tap.rest) * kernel_height + down) * kernel_width + across) * in};
  }
  __device__ const T* at(const Row& row, const Column& column) const {
    return row.first != nullptr && column.offset >= 0 ? row.first + column.offset : nullptr;
  }
};

// Floats whole, bf16 rounded.
template <class T, int W>
__device__ void store_result(T* to, const Pack<float, W>& sums) {
  if constexpr (sizeof(T) == sizeof(float)) {
    store_whole(to, sums);
  } else {
    store_floats(to, sums);
  }
}

// y = act(sums + bias + residual), rows are pixels in order. residual may be y. T: float or Bf16.
template <class T>
struct ImageOutput {
  T* y;
  const float* bias;  // or null
  const T* residual;  // or null
  Activation activation;
  int channels, group_channels;
  bool wide;

  template <int W>
  __device__ void store(int64_t group, int64_t pixel, int64_t column, Pack<float, W> sums) const {
    const int channel = static_cast<int>(group) * group_channels + static_cast<int>(column);
    const int64_t at = pixel * channels + channel;
    if (bias != nullptr) {
      const Pack<float, W> more = load<W>(bias + channel);
      for (int i = 0; i < W; ++i) sums.v[i] += more.v[i];
    }
    if (residual != nullptr) {
      const Pack<float, W> more = load_floats<W>(residual + at);
      for (int i = 0; i < W; ++i) sums.v[i] += more.v[i];
    }
    if (activation == Activation::relu) {
      for (float& value : sums.v) value = fn::Relu::f(value, {});
    } else if (activation == Activation::relu6) {
      for (float& value : sums.v) value = fn::Relu6::f(value, {});
    }
    store_result(y + at, sums);
  }
};

// Rows are the pixels of a grid that takes every stride_down-th row and stride_across-th column of
// the images.
template <class T>
struct GridOutput {
  T* images;
  int height, width, channels, group_channels;
  int first_row, stride_down, first_column, stride_across;
  Divider by_grid, by_grid_row;
  bool wide;

  template <int W>
  __device__ void store(int64_t group, int64_t pixel, int64_t column, Pack<float, W> sums) const {
    const Divider::Result image = by_grid(static_cast<uint32_t>(pixel));
    const Divider::Result at = by_grid_row(image.rest);
    const int down = static_cast<int>(image.quotient) * height + first_row +
                     static_cast<int>(at.quotient) * stride_down;
    const int across = first_column + static_cast<int>(at.rest) * stride_across;
    T* first = images + group * group_channels + column;
    store_result(first + int64_t{down * width + across} * channels, sums);
  }
};

// Filters, group after group: (out of a group, taps x in).
struct FilterOutput {
  float* filters;
  int64_t rows, columns;
  bool wide;

  template <int W>
  __device__ void store(int64_t group, int64_t row, int64_t column, Pack<float, W> sums) const {
    store_whole(filters + (group * rows + row) * columns + column, sums);
  }
};

}  // namespace graft::cuda
