// One row of a depthwise correlation over NHWC images:
//
//   y[o][c] = bias[c] + sum over rows r and taps k of
//                   x[r][o stride + shift + k dilation][c] w[r][k][c]
//
// then clamped to low..high where the caller wants it. Forward is this with the filter as it is;
// backward-data is this with the filter flipped, once for each residue of the stride. Columns
// outside the image contribute nothing and are not read.
//
// A tile of output columns is held in registers: an input column is loaded once and feeds every
// output that it touches. Sums run over rows, then columns, in f32, in the same order whatever the
// tile: results do not depend on tiling or threads. The last tile of a row, and the last block of
// channels, overlap their neighbours instead of being narrower.
#pragma once

#include <algorithm>
#include <cstdint>

#include "kernels/cpu/vector/lanes.h"

namespace graft::cpu::GRAFT_ISA {

template <class T>
struct Correlation {
  T* y;
  int64_t y_step, width;  // elements between output columns; number of output columns
  const T* x;             // column 0 of the first row
  int64_t x_row_step, x_width;
  const float* w;  // (rows, taps, channels)
  int64_t rows, taps, stride, shift, dilation, channels;
  const float* bias;  // or null
  bool clamped = false;
  float low = 0, high = 0;
};

template <int V, class T>
[[gnu::always_inline]] inline void finish(const Correlation<T>& r, T* y, Lanes<V> value) {
  if (r.clamped) {
    // These comparisons let NaN through.
    value = value < r.low ? Lanes<V>{} + r.low : value;
    value = value > r.high ? Lanes<V>{} + r.high : value;
  }
  store<V>(y, value);
}

template <int Taps, int Stride, int Tile, bool Edge, class T>
[[gnu::always_inline]] inline void correlate_tile(const Correlation<T>& r, int64_t o, int64_t c) {
  constexpr int V = kLanes;
  Lanes<V> sum[Tile];
  const Lanes<V> start = r.bias != nullptr ? load<V>(r.bias + c) : Lanes<V>{};
#pragma GCC unroll 32
  for (int t = 0; t < Tile; ++t) sum[t] = start;
  const int64_t first = o * Stride + r.shift;
  const float* w = r.w + c;
  const T* x = r.x + c;
  for (int64_t row = 0; row < r.rows; ++row, w += Taps * r.channels, x += r.x_row_step) {
    Lanes<V> tap[Taps];
#pragma GCC unroll 32
    for (int k = 0; k < Taps; ++k) tap[k] = load<V>(w + k * r.channels);
#pragma GCC unroll 64
    for (int j = 0; j < (Tile - 1) * Stride + Taps; ++j) {
      if (Edge && static_cast<uint64_t>(first + j) >= static_cast<uint64_t>(r.x_width)) continue;
      const Lanes<V> value = load<V>(x + (first + j) * r.channels);
#pragma GCC unroll 32
      for (int t = 0; t < Tile; ++t) {
        const int k = j - t * Stride;
        if (k >= 0 && k < Taps) sum[t] += value * tap[k];
      }
    }
  }
#pragma GCC unroll 32
  for (int t = 0; t < Tile; ++t) finish<V>(r, r.y + (o + t) * r.y_step + c, sum[t]);
}

template <int Taps, int Stride, int Tile, class T>
void correlate_tiles(const Correlation<T>& r) {
  const T* last = r.x + (r.rows - 1) * r.x_row_step;
  for (int64_t next = 0; next < r.width; next += Tile) {
    const int64_t o = std::min<int64_t>(next, r.width - Tile);
    const int64_t first = o * Stride + r.shift;
    const bool edge = first < 0 || first + (Tile - 1) * Stride + Taps > r.x_width;
    for (int64_t next_c = 0; next_c < r.channels; next_c += kLanes) {
      const int64_t c = std::min<int64_t>(next_c, r.channels - kLanes);
      // The next tile's part of the rows that no earlier output row has brought into the cache.
      // Columns are too far apart for the hardware to guess; worth up to a factor of 2 (measured).
#pragma GCC unroll 32
      for (int t = 0; t < Tile * Stride; ++t) {
        const T* next_tile = last + (first + Tile * Stride + t) * r.channels + c;
        __builtin_prefetch(next_tile);
        if (Stride == 2) __builtin_prefetch(next_tile - r.x_row_step);
      }
      if (edge) {
        correlate_tile<Taps, Stride, Tile, true>(r, o, c);
      } else {
        correlate_tile<Taps, Stride, Tile, false>(r, o, c);
      }
    }
  }
}

// Widths of image networks are multiples of 7. Wide tiles pay for five taps only (measured).
template <int Taps, int Stride, class T>
void correlate_row(const Correlation<T>& r) {
  constexpr bool kWide = kRegisters == 32 && Taps == 5;
  if (kWide && r.width >= 14) {
    correlate_tiles<Taps, Stride, kWide ? 14 : 7>(r);
  } else if (r.width >= 7) {
    correlate_tiles<Taps, Stride, 7>(r);
  } else if (r.width >= 4) {
    correlate_tiles<Taps, Stride, 4>(r);
  } else if (r.width >= 2) {
    correlate_tiles<Taps, Stride, 2>(r);
  } else {
    correlate_tiles<Taps, Stride, 1>(r);
  }
}

// Any size, one output at a time.
template <int V, class T>
void correlate_any(const Correlation<T>& r) {
  for (int64_t o = 0; o < r.width; ++o) {
    const int64_t first = o * r.stride + r.shift;
    for (int64_t next_c = 0; next_c < r.channels; next_c += V) {
      const int64_t c = std::min<int64_t>(next_c, r.channels - V);
      Lanes<V> sum = r.bias != nullptr ? load<V>(r.bias + c) : Lanes<V>{};
      for (int64_t row = 0; row < r.rows; ++row) {
        for (int64_t k = 0; k < r.taps; ++k) {
          const int64_t column = first + k * r.dilation;
          if (column < 0 || column >= r.x_width) continue;
          sum += load<V>(r.x + row * r.x_row_step + column * r.channels + c) *
                 load<V>(r.w + (row * r.taps + k) * r.channels + c);
        }
      }
      finish<V>(r, r.y + o * r.y_step + c, sum);
    }
  }
}

template <class T>
void correlate(const Correlation<T>& r) {
  if (r.channels < 4) return correlate_any<1>(r);
  if (r.channels < kLanes) return correlate_any<4>(r);
  if (r.dilation != 1 && r.taps > 1) return correlate_any<kLanes>(r);
  switch (r.taps * 10 + r.stride) {
    case 11:
      return correlate_row<1, 1>(r);
    case 21:
      return correlate_row<2, 1>(r);
    case 31:
      return correlate_row<3, 1>(r);
    case 51:
      return correlate_row<5, 1>(r);
    case 32:
      return correlate_row<3, 2>(r);
    case 52:
      return correlate_row<5, 2>(r);
    default:
      return correlate_any<kLanes>(r);
  }
}

}  // namespace graft::cpu::GRAFT_ISA
