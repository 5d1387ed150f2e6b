// What the depthwise kernels share: how an image is cut into tiles, one a thread, and which taps
// tie the pixels of a tile to the pixels it reads.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/kernels.h"

namespace graft::cuda::depthwise {

// Columns of a thread's tile.
constexpr int kTileColumns = 4;

// A block works on 32 neighbouring channels (with packs of 4: whole cache lines), each thread on
// one pack of them and one tile, its slot.
constexpr int kChannels = 32;
template <int W>
constexpr int kLanes = kChannels / W;
template <int W>
constexpr int kSlots = static_cast<int>(kThreads) / kLanes<W>;
GRAFT_HD inline int64_t channel_blocks(int64_t channels) {
  return (channels + kChannels - 1) / kChannels;
}

// One axis of a stencil of K taps and stride S between a tile and the pixels that meet it, counted
// from the first one. `transposed`: the tile is of the input's gradient, reading the output's.
template <int K, int S, bool kTransposed>
struct Reach {
  static constexpr int kBefore = (K - 1) / S;  // transposed: outputs before the tile's own
  static constexpr int met(int tile) {
    return kTransposed ? (tile - 1) / S + kBefore + 1 : (tile - 1) * S + K;
  }
  // The pixel that tap k gives to pixel t of the tile, or -1.
  static constexpr int source(int t, int k) {
    if (!kTransposed) return t * S + k;
    return (t - k + K * S) % S == 0 ? (t - k + kBefore * S) / S : -1;
  }
  // Where the pixels that meet a tile begin.
  __device__ static int first(int tile, int pad) {
    return kTransposed ? (tile + pad) / S - kBefore : tile * S - pad;
  }
};

// The tiles of all images, numbered so that neighbours in number are neighbours in both directions
// and share what they read through the first-level cache: down a band of up to kMostBand rows of
// tiles, then along it.
struct Tiles {
  static constexpr int64_t kMostBand = 4;
  int tile_rows;
  int64_t columns, band, bands, count;  // count: with those that fill up the last bands

  Tiles(int64_t batch, int64_t height, int64_t width, int rows_)
      : tile_rows(rows_), columns((width + kTileColumns - 1) / kTileColumns) {
    const int64_t rows = (height + tile_rows - 1) / tile_rows;
    bands = std::max<int64_t>(1, (rows + kMostBand - 1) / kMostBand);
    band = (rows + bands - 1) / bands;
    count = batch * bands * band * columns;
  }
  struct Place {
    int64_t image;
    int row, column;  // of the first pixel
  };
  __device__ Place at(int64_t tile) const {
    const int64_t in_band = tile % band, strip = tile / band;
    const int64_t column = strip % columns, from_band = strip / columns;
    return {from_band / bands, static_cast<int>(from_band % bands * band + in_band) * tile_rows,
            static_cast<int>(column) * kTileColumns};
  }
};

// Small enough for 32-bit arithmetic within an image's row (fits()).
struct Image {
  int height, width, channels;
};

inline Image image_of(int64_t height, int64_t width, int64_t channels) {
  return {static_cast<int>(height), static_cast<int>(width), static_cast<int>(channels)};
}
template <class T>
__device__ T* at(T* images, const Image& size, int64_t image, int row, int column) {
  return images + ((image * size.height + row) * size.width + column) * size.channels;
}

// kCount neighbours in a row of an image, the first one at (row, column); zeros beyond the row's
// ends.
template <int W, int kCount, class T>
__device__ void load_row(float (&to)[kCount][W], const T* images, const Image& size, int64_t image,
                         int row, int column, int channel) {
  const T* const first = at(images, size, image, row, column) + channel;
#pragma unroll
  for (int i = 0; i < kCount; ++i) {
    Pack<T, W> pack{};
    if (column + i >= 0 && column + i < size.width) {
      pack = load<W>(first + i * size.channels);
    }
#pragma unroll
    for (int w = 0; w < W; ++w) to[i][w] = static_cast<float>(pack.v[w]);
  }
}

// use.operator()<K, S>() for the filters that have kernels of their own; false for the others.
template <class Use>
bool visit_filter(const ConvShape& s, const Use& use) {
  if (s.kernel_height != s.kernel_width || s.stride_height != s.stride_width) return false;
  if (s.dilation_height != 1 || s.dilation_width != 1) return false;
  for (int64_t size : {s.in_height, s.in_width, s.out_height, s.out_width, s.in_channels}) {
    if (size >= int64_t{1} << 24) return false;
  }
  switch (s.kernel_width * 10 + s.stride_width) {
    case 31:
      return use.template operator()<3, 1>(), true;
    case 32:
      return use.template operator()<3, 2>(), true;
    case 51:
      return use.template operator()<5, 1>(), true;
    case 52:
      return use.template operator()<5, 2>(), true;
  }
  return false;
}

}  // namespace graft::cuda::depthwise
