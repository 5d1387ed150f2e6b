// How rows are shared out: a row is the work of one team, which is a few neighbouring lanes of a
// warp for short rows and a block for long ones. And the sum of exponentials that softmax and cross
// entropy share.
#pragma once

#include <algorithm>
#include <bit>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/functors.h"

namespace graft::cuda {

constexpr int64_t kLongRow = 1024;  // rows above it get a block each

// The smallest power of two from n on, at most `most`.
inline unsigned power_of_two_from(int64_t n, unsigned most) {
  return n >= most ? most : std::bit_ceil(static_cast<unsigned>(std::max<int64_t>(n, 1)));
}

// kBlock: the team is the block. Otherwise `lanes` threads, a power of two up to 32.
template <bool kBlock>
struct Team {
  unsigned lanes = 32;

  __device__ unsigned size() const { return kBlock ? blockDim.x : lanes; }
  __device__ unsigned rank() const { return threadIdx.x % size(); }
  // f over the team; every thread of it gets the result. All threads of the block must be there.
  template <class T, class F>
  __device__ T reduce(T value, F f) const {
    if constexpr (kBlock) {
      return block_reduce(value, f);
    } else {
      return warp_reduce(value, f, lanes);
    }
  }
  // Calls body(row, there). All threads of a block come round equally often, because reduce() wants
  // them all; beyond the last row `there` is false and nothing may be read or written.
  template <class Body>
  __device__ void for_rows(int64_t rows, const Body& body) const {
    const unsigned teams = blockDim.x / size();
    const int64_t step = int64_t{gridDim.x} * teams;
    for (int64_t base = int64_t{blockIdx.x} * teams; base < rows; base += step) {
      const int64_t row = base + threadIdx.x / size();
      body(row, row < rows);
    }
  }
  // Calls body(j) for every kWidth-th j of 0..n-1; kWidth divides n.
  template <int kWidth, class Body>
  __device__ void for_items(int64_t n, const Body& body) const {
    for (int64_t j = int64_t{rank()} * kWidth; j < n; j += size() * kWidth) body(j);
  }
};

// Team and grid for rows of n elements, kWidth at a time.
inline Team<false> lanes_for(int64_t n, int kWidth) {
  return {power_of_two_from((n + kWidth - 1) / kWidth, 32)};
}
inline Grid grid_of(const Team<false>& team, int64_t rows) { return grid_for(rows * team.lanes); }
inline Grid grid_of(const Team<true>&, int64_t rows) { return grid_of_blocks(rows); }

// sum of e^(x - max) over what was added so far, in one pass (M. Milakov and N. Gimelshein, 2018).
// The maximum starts at a finite number, so that -inf adds 0 and nothing but -inf leaves sum 0. NaN
// and +inf make the sum NaN.
struct ExpSum {
  float max = -3.402823466e38f;
  float sum = 0;

  template <int kWidth>
  __device__ void add(const Pack<float, kWidth>& pack) {
    float largest = max;
    for (const float x : pack.v) largest = x > largest ? x : largest;
    if (largest > max) {
      sum *= fn::fast_exp(max - largest);
      max = largest;
    }
    for (const float x : pack.v) sum += fn::fast_exp(x - max);
  }
  // All the team's together.
  template <bool kBlock>
  __device__ ExpSum over(const Team<kBlock>& team) const {
    ExpSum all;
    all.max = team.reduce(max, Largest{});
    all.sum = team.reduce(sum * fn::fast_exp(max - all.max), Sum{});
    return all;
  }
};

}  // namespace graft::cuda
