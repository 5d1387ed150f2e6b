// Sums and maxima over the threads of a warp or a block, in an order that is always the same: a
// butterfly of shuffles within each warp, then the warps' results in turn.
#pragma once

#include "kernels/cuda/shared.cuh"

namespace graft::cuda {

constexpr unsigned kFullWarp = 0xFFFFFFFFu;

struct Sum {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a + b;
  }
};
// NaN wins.
struct Largest {
  template <class T>
  __device__ T operator()(T a, T b) const {
    return a > b || a != a ? a : b;
  }
};

// Two sums taken together: half the shuffles' and barriers' waiting.
template <class T>
struct Two {
  T a, b;
  __device__ friend Two operator+(Two x, Two y) { return {x.a + y.a, x.b + y.b}; }
};

template <class T>
__device__ T shuffle_xor(T value, int distance) {
  return __shfl_xor_sync(kFullWarp, value, distance);
}
template <class T>
__device__ Two<T> shuffle_xor(Two<T> value, int distance) {
  return {shuffle_xor(value.a, distance), shuffle_xor(value.b, distance)};
}

// f over the 32 lanes, which must all be there, or over each group of `lanes` neighbours (a power
// of two); every lane gets its group's result. f is associative and commutative but for rounding;
// every lane combines in the same tree, so all get the same bits.
template <class T, class F>
__device__ T warp_reduce(T value, F f, unsigned lanes = 32) {
  for (unsigned distance = lanes / 2; distance > 0; distance /= 2) {
    value = f(value, shuffle_xor(value, static_cast<int>(distance)));
  }
  return value;
}

// f over the threads of the block (as block_reduce) whose number is the same modulo kColumns, a
// power of two up to 32; each gets its column's result.
template <int kColumns, class T, class F>
__device__ T block_reduce_columns(T value, F f) {
  GRAFT_SHARED(T, partial, [32][kColumns]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  for (int distance = 16; distance >= kColumns; distance /= 2) {
    value = f(value, shuffle_xor(value, distance));
  }
  __syncthreads();
  if (lane < kColumns) partial[warp][lane] = value;
  __syncthreads();
  value = partial[0][lane % kColumns];
  for (unsigned i = 1; i < warps; ++i) value = f(value, partial[i][lane % kColumns]);
  return value;
}

// f over all threads of the block (a multiple of 32, one-dimensional); every thread gets the
// result. Begins with a barrier, so that calls may follow each other.
template <class T, class F>
__device__ T block_reduce(T value, F f) {
  GRAFT_SHARED(T, partial, [32]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32, warps = blockDim.x / 32;
  value = warp_reduce(value, f);
  __syncthreads();
  if (lane == 0) partial[warp] = value;
  __syncthreads();
  value = partial[0];
  for (unsigned i = 1; i < warps; ++i) value = f(value, partial[i]);
  return value;
}

}  // namespace graft::cuda
