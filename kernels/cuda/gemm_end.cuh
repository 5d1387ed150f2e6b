// What is done with a product's finished sums, where they are finished: the epilogues (gemm.cuh) of
// matrix products.
//
//   GemmEnd          y = s + bias
//   GeluEnd<F>       p = s + bias, y = F(p), pre = p
//   GeluGradEnd<F>   y = s F'(pre)
//
// Layout: y and pre (batch, m, n), of T: float, or uint16_t for bf16; bias (n) f32. Numerics: f32,
// the formulas of functors.h, one rounding of what is stored. GELU takes the sums before they are
// rounded, its derivative what `pre` kept of them. Determinism: each element by itself.
#pragma once

#include <cstdint>

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/functors.h"

namespace graft::cuda {

__device__ inline void write_rounded(float& to, float value) { to = value; }
__device__ inline void write_rounded(uint16_t& to, float value) { to = to_bf16(value); }
__device__ inline float read_wide(float value) { return value; }
__device__ inline float read_wide(uint16_t bits) { return from_bf16(bits); }

template <class T, int W>
__device__ void store_rounded(T* to, const Pack<float, W>& values) {
  Pack<T, W> rounded;
  for (int j = 0; j < W; ++j) write_rounded(rounded.v[j], values.v[j]);
  store_whole(to, rounded);
}

template <int W>
__device__ void add_bias(Pack<float, W>& sums, const float* bias, int64_t column) {
  if (bias == nullptr) return;
  const Pack<float, W> added = load<W>(bias + column);
  for (int j = 0; j < W; ++j) sums.v[j] += added.v[j];
}

template <class T>
struct GemmEnd {
  T* y;
  const float* bias;  // null: none
  int64_t m, n;
  bool wide;

  template <int W>
  __device__ void store(int64_t batch, int64_t row, int64_t column, Pack<float, W> sums) const {
    add_bias(sums, bias, column);
    store_rounded(y + (batch * m + row) * n + column, sums);
  }
};

template <class F, class T>
struct GeluEnd {
  T* y;
  T* pre;             // null: not wanted
  const float* bias;  // null: none
  int64_t m, n;
  bool wide;

  template <int W>
  __device__ void store(int64_t batch, int64_t row, int64_t column, Pack<float, W> sums) const {
    const int64_t at = (batch * m + row) * n + column;
    add_bias(sums, bias, column);
    if (pre != nullptr) store_rounded(pre + at, sums);
    for (int j = 0; j < W; ++j) sums.v[j] = F::f(sums.v[j], {});
    store_rounded(y + at, sums);
  }
};

template <class F, class T>
struct GeluGradEnd {
  T* y;
  const T* pre;
  int64_t m, n;
  bool wide;

  template <int W>
  __device__ void store(int64_t batch, int64_t row, int64_t column, Pack<float, W> sums) const {
    const int64_t at = (batch * m + row) * n + column;
    const Pack<T, W> kept = load<W>(pre + at);
    for (int j = 0; j < W; ++j) sums.v[j] *= F::d(read_wide(kept.v[j]), 0, {});
    store_rounded(y + at, sums);
  }
};

}  // namespace graft::cuda
