// Depthwise convolution, derivative by the filter:
// dw[c,kh,kw] = sum over n, oh, ow of g[n,oh,ow,c] x[n, oh sh - pad_top + kh dh, ow sw - pad_left +
// kw dw, c].
//
// The taps of one vector of channels are held in registers while the kernel sweeps a band of output
// rows; a tile of up to four gradients stays in registers too, so that an input column is loaded
// once for all the taps it meets.
//
// NHWC, f32 or bf16, any alignment. Numerics: f32, band by band, then chunk by chunk
// (depthwise_chunks in plan.h); neither depends on the number of threads, so results are bitwise
// repeatable.
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/lanes.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

// A band's part of x and g stays in the second-level cache while the blocks of channels pass over
// it.
constexpr int64_t kBandBytes = 1024 << 10;

template <class T>
struct Band {
  const ConvShape& s;
  const T* x;
  const T* g;
  int64_t begin, end;  // output rows, counted through the batch
  float* partial;      // (kh, kw, c), added to

  // The input row that tap row kh meets in this output row, or null in the padding.
  const T* input_row(int64_t row, int64_t kh) const {
    const int64_t n = row / s.out_height, oh = row % s.out_height;
    const int64_t ih = oh * s.stride_height - s.pad_top + kh * s.dilation_height;
    if (ih < 0 || ih >= s.in_height) return nullptr;
    return x + (n * s.in_height + ih) * s.in_width * s.in_channels;
  }
  // Adds lanes skip..V-1: the last block of channels overlaps the one before.
  template <int V>
  void add(int64_t tap, int64_t c, int64_t skip, Lanes<V> value) const {
    float* to = partial + tap * s.in_channels + c;
    if (skip == 0) return store<V>(to, load<V>(to) + value);
    for (int64_t i = skip; i < V; ++i) to[i] += value[i];
  }
};

template <int Rows, int Taps, int Stride, int Tile, bool Edge, class T>
[[gnu::always_inline]] inline void meet(Lanes<kLanes> (&sum)[Rows][Taps], const T* const* x,
                                        const T* g, int64_t first, int64_t width,
                                        int64_t channels) {
  Lanes<kLanes> gradient[Tile];
#pragma GCC unroll 8
  for (int t = 0; t < Tile; ++t) gradient[t] = load<kLanes>(g + t * channels);
#pragma GCC unroll 8
  for (int r = 0; r < Rows; ++r) {
    if (x[r] == nullptr) continue;
#pragma GCC unroll 16
    for (int j = 0; j < (Tile - 1) * Stride + Taps; ++j) {
      if (Edge && static_cast<uint64_t>(first + j) >= static_cast<uint64_t>(width)) continue;
      const Lanes<kLanes> value = load<kLanes>(x[r] + (first + j) * channels);
#pragma GCC unroll 8
      for (int t = 0; t < Tile; ++t) {
        const int k = j - t * Stride;
        if (k >= 0 && k < Taps) sum[r][k] += value * gradient[t];
      }
    }
  }
}

// Tap rows kh..kh+Rows-1 of one vector of channels over the band.
template <int Rows, int Taps, int Stride, class T>
void sweep(const Band<T>& band, int64_t kh, int64_t c, int64_t skip) {
  const ConvShape& s = band.s;
  const int64_t channels = s.in_channels;
  Lanes<kLanes> sum[Rows][Taps] = {};
  for (int64_t row = band.begin; row < band.end; ++row) {
    const T* x[Rows];
    for (int r = 0; r < Rows; ++r) {
      x[r] = band.input_row(row, kh + r);
      if (x[r] != nullptr) x[r] += c;
    }
    const T* g = band.g + row * s.out_width * channels + c;
    const auto tile = [&]<int Tile>(int64_t o) __attribute__((always_inline)) {
      const int64_t first = o * Stride - s.pad_left;
      if (first < 0 || first + (Tile - 1) * Stride + Taps > s.in_width) {
        meet<Rows, Taps, Stride, Tile, true>(sum, x, g + o * channels, first, s.in_width, channels);
      } else {
        meet<Rows, Taps, Stride, Tile, false>(sum, x, g + o * channels, first, s.in_width,
                                              channels);
      }
    };
    int64_t o = 0;
    for (; o + 4 <= s.out_width; o += 4) tile.template operator()<4>(o);
    switch (s.out_width - o) {
      case 3:
        tile.template operator()<3>(o);
        break;
      case 2:
        tile.template operator()<2>(o);
        break;
      case 1:
        tile.template operator()<1>(o);
        break;
    }
  }
  for (int r = 0; r < Rows; ++r) {
    for (int k = 0; k < Taps; ++k) {
      band.template add<kLanes>((kh + r) * Taps + k, c, skip, sum[r][k]);
    }
  }
}

// As many tap rows at once as there are registers for.
template <int Taps, int Stride, class T>
void sweep_filter(const Band<T>& band, int64_t c, int64_t skip) {
  constexpr int kRows = std::clamp((kRegisters - 7) / Taps, 1, Taps);
  int64_t kh = 0;
  for (; kh + kRows <= band.s.kernel_height; kh += kRows) {
    sweep<kRows, Taps, Stride>(band, kh, c, skip);
  }
  for (; kh < band.s.kernel_height; ++kh) sweep<1, Taps, Stride>(band, kh, c, skip);
}

// Any size, one tap at a time.
template <int V, class T>
void sweep_any(const Band<T>& band, int64_t c, int64_t skip) {
  const ConvShape& s = band.s;
  for (int64_t kh = 0; kh < s.kernel_height; ++kh) {
    for (int64_t kw = 0; kw < s.kernel_width; ++kw) {
      Lanes<V> sum = {};
      for (int64_t row = band.begin; row < band.end; ++row) {
        const T* x = band.input_row(row, kh);
        if (x == nullptr) continue;
        const T* g = band.g + row * s.out_width * s.in_channels + c;
        for (int64_t o = 0; o < s.out_width; ++o) {
          const int64_t column = o * s.stride_width - s.pad_left + kw * s.dilation_width;
          if (column < 0 || column >= s.in_width) continue;
          sum += load<V>(g + o * s.in_channels) * load<V>(x + column * s.in_channels + c);
        }
      }
      band.template add<V>(kh * s.kernel_width + kw, c, skip, sum);
    }
  }
}

template <int V, class T>
void sweep_block(const Band<T>& band, int64_t c, int64_t skip) {
  if constexpr (V == kLanes) {
    const ConvShape& s = band.s;
    if (s.dilation_width == 1) {
      switch (s.kernel_width * 10 + s.stride_width) {
        case 31:
          return sweep_filter<3, 1>(band, c, skip);
        case 32:
          return sweep_filter<3, 2>(band, c, skip);
        case 51:
          return sweep_filter<5, 1>(band, c, skip);
        case 52:
          return sweep_filter<5, 2>(band, c, skip);
      }
    }
  }
  sweep_any<V>(band, c, skip);
}

template <int V, class T>
void sweep_channels(const Band<T>& band) {
  for (int64_t next = 0; next < band.s.in_channels; next += V) {
    const int64_t c = std::min<int64_t>(next, band.s.in_channels - V);
    sweep_block<V>(band, c, next - c);
  }
}

}  // namespace

void depthwise_backward_weight(const ConvShape& s, float* dw, ConstReals x, ConstReals g,
                               float* scratch) {
  const int64_t channels = s.in_channels, taps = s.kernel_height * s.kernel_width;
  const int64_t size = taps * channels, chunks = depthwise_chunks(s);
  const int64_t row_bytes = (s.out_width + s.stride_height * s.in_width) * channels * 4;
  const int64_t band_rows = std::max<int64_t>(1, kBandBytes / row_bytes);
  parallel_chunks(s.batch * s.out_height, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    float* partial = scratch + chunk * size;
    std::fill(partial, partial + size, 0.0f);
    visit_real(s.dtype, [&]<class T>(T) {
      for (int64_t row = begin; row < end; row += band_rows) {
        const Band<T> band{s, x.as<T>(), g.as<T>(), row, std::min(row + band_rows, end), partial};
        if (channels < 4) {
          sweep_channels<1>(band);
        } else if (channels < kLanes) {
          sweep_channels<4>(band);
        } else {
          sweep_channels<kLanes>(band);
        }
      }
    });
  });
  parallel_for(channels, chunks * taps, [=](int64_t begin, int64_t end) {
    for (int64_t tap = 0; tap < taps; ++tap) {
      float* sum = scratch + tap * channels;
      for (int64_t chunk = 1; chunk < chunks; ++chunk) {
        const float* part = sum + chunk * size;
        for (int64_t c = begin; c < end; ++c) sum[c] += part[c];
      }
    }
    for (int64_t c = begin; c < end; ++c) {
      for (int64_t tap = 0; tap < taps; ++tap) dw[c * taps + tap] = scratch[tap * channels + c];
    }
  });
}

}  // namespace graft::cpu::GRAFT_ISA
