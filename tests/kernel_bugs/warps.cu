// Mistakes within a warp: masks, source lanes, and the order of shared-memory accesses.
#include "kernels/cuda/reduce.cuh"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

template <bool kBroken>
__global__ void neighbour_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [32]);
  row[threadIdx.x] = x[threadIdx.x];
  if (!kBroken) __syncwarp();
  y[threadIdx.x] = row[threadIdx.x ^ 1];
}

// Shuffles exchange registers; they say nothing about memory.
template <bool kBroken>
__global__ void shuffle_orders_nothing_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [32]);
  const unsigned lane = threadIdx.x;
  row[lane] = x[lane];
  const float largest = cuda::warp_reduce(x[lane], cuda::Largest{});
  if (!kBroken) __syncwarp();
  y[lane] = row[31 - lane] - largest;
}

template <bool kBroken>
__global__ void warp_buffer_kernel(float* y, const float* x, int steps) {
  GRAFT_SHARED(float, row, [32]);
  const int lane = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int step = 0; step < steps; ++step) {
    row[lane] = x[step * 32 + lane];
    __syncwarp();
    sum += row[(lane + 1) % 32];
    if (!kBroken) __syncwarp();
  }
  y[lane] = sum;
}

// What another warp has written needs a barrier of the block.
template <bool kBroken>
__global__ void other_warp_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [64]);
  row[threadIdx.x] = x[threadIdx.x];
  if (kBroken) {
    __syncwarp();
  } else {
    __syncthreads();
  }
  y[threadIdx.x] = row[threadIdx.x ^ 32];
}

template <bool kBroken>
__global__ void tail_sum_kernel(float* y, const float* x, unsigned n) {
  const unsigned lane = threadIdx.x;
  if (kBroken) {
    if (lane < n) y[lane] = cuda::warp_reduce(x[lane], cuda::Sum{});
  } else {
    const float sum = cuda::warp_reduce(lane < n ? x[lane] : 0.0f, cuda::Sum{});
    if (lane < n) y[lane] = sum;
  }
}

template <bool kBroken>
__global__ void half_warps_kernel(float* y, const float* x) {
  const unsigned lane = threadIdx.x;
  const unsigned mine = kBroken || lane < 16 ? 0xFFFFu : 0xFFFF0000u;
  float sum = x[lane];
  for (int distance = 8; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(mine, sum, distance);
  }
  y[lane] = sum;
}

// The lower half asks lanes of the upper half, which is not there.
template <bool kBroken>
__global__ void lower_half_kernel(float* y, const float* x) {
  const unsigned lane = threadIdx.x;
  if (lane >= 16) return;
  float sum = x[lane];
  for (unsigned distance = kBroken ? 16 : 8; distance > 0; distance /= 2) {
    sum += __shfl_down_sync(0xFFFFu, sum, distance, kBroken ? 32 : 16);
  }
  if (lane == 0) y[0] = sum;
}

template <bool kBroken>
__global__ void centre_kernel(float* y, const float* x) {
  float sum = x[threadIdx.x];
  for (unsigned distance = 16; distance > 0; distance /= 2) {
    sum += kBroken ? __shfl_down_sync(cuda::kFullWarp, sum, distance)
                   : __shfl_xor_sync(cuda::kFullWarp, sum, static_cast<int>(distance));
  }
  y[threadIdx.x] = x[threadIdx.x] - sum / 32;
}

template <bool kBroken>
__global__ void butterfly_kernel(float* y, const float* x) {
  float sum = x[threadIdx.x];
  for (int distance = kBroken ? 8 : 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(cuda::kFullWarp, sum, distance);
  }
  y[threadIdx.x] = sum;
}

template <bool kBroken>
__global__ void vote_kernel(float* y, const float* x, unsigned n) {
  const unsigned lane = threadIdx.x;
  if (kBroken && lane >= n) return;
  const unsigned positive = __ballot_sync(cuda::kFullWarp, lane < n && x[lane] > 0);
  if (lane < n) y[lane] = static_cast<float>(__popc(positive));
}

template <bool kBroken>
__global__ void branch_of_shuffles_kernel(float* y, const float* x) {
  const float value = x[threadIdx.x];
  float other = 0;
  if (kBroken) {
    if (threadIdx.x % 2 == 0) {
      other = __shfl_down_sync(cuda::kFullWarp, value, 1);
    } else {
      other = __shfl_up_sync(cuda::kFullWarp, value, 1);
    }
  } else {
    other = __shfl_xor_sync(cuda::kFullWarp, value, 1);
  }
  y[threadIdx.x] = other;
}

// Groups of 12 lanes; a shuffle's width is a power of two.
template <bool kBroken>
__global__ void group_first_kernel(float* y, const float* x) {
  const int lane = static_cast<int>(threadIdx.x);
  y[lane] = kBroken ? __shfl_sync(cuda::kFullWarp, x[lane], 0, 12)
                    : __shfl_sync(cuda::kFullWarp, x[lane], lane / 12 * 12);
}

Floats sums(const Floats& x, size_t group) {
  Floats sum(x.size());
  for (size_t i = 0; i < x.size(); ++i) {
    for (size_t k = 0; k < group; ++k) sum[i] += x[i / group * group + k];
  }
  return sum;
}

}  // namespace

Outcome no_syncwarp(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 32; ++i) wanted.push_back(x[i ^ 1]);
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(neighbour_kernel, broken), input.data()), wanted};
}

Outcome shuffle_instead_of_syncwarp(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  Floats wanted;
  float largest = x[0];
  for (float value : x) largest = value > largest ? value : largest;
  for (size_t i = 0; i < 32; ++i) wanted.push_back(x[31 - i] - largest);
  return {
      results_of(32, {1, 32}, 0, GRAFT_TWIN(shuffle_orders_nothing_kernel, broken), input.data()),
      wanted};
}

Outcome no_syncwarp_before_reuse(bool broken) {
  const Floats x = numbers(32 * 3);
  const DeviceArray<float> input(x);
  Floats wanted(32);
  for (size_t i = 0; i < x.size(); ++i) wanted[(i + 31) % 32] += x[i];
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(warp_buffer_kernel, broken), input.data(), 3),
          wanted};
}

Outcome syncwarp_between_warps(bool broken) {
  const Floats x = numbers(64);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 64; ++i) wanted.push_back(x[i ^ 32]);
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(other_warp_kernel, broken), input.data()), wanted};
}

Outcome full_mask_in_tail(bool broken) {
  const Floats x = numbers(20);
  const DeviceArray<float> input(x);
  return {results_of(20, {1, 32}, 0, GRAFT_TWIN(tail_sum_kernel, broken), input.data(), 20u),
          sums(x, 20)};
}

Outcome mask_without_own_lane(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(half_warps_kernel, broken), input.data()),
          sums(x, 16)};
}

Outcome shuffle_from_absent_lane(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  return {results_of(1, {1, 32}, 0, GRAFT_TWIN(lower_half_kernel, broken), input.data()),
          {sums(x, 16)[0]}};
}

Outcome only_lane_0_has_the_sum(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  Floats wanted = x;
  for (float& value : wanted) value -= sums(x, 32)[0] / 32;
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(centre_kernel, broken), input.data()), wanted};
}

Outcome butterfly_of_half_a_warp(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(butterfly_kernel, broken), input.data()),
          sums(x, 32)};
}

Outcome vote_after_return(bool broken) {
  const Floats x = numbers(20);
  const DeviceArray<float> input(x);
  float positive = 0;
  for (float value : x) positive += value > 0 ? 1.0f : 0.0f;
  return {results_of(20, {1, 32}, 0, GRAFT_TWIN(vote_kernel, broken), input.data(), 20u),
          Floats(20, positive)};
}

Outcome shuffles_of_two_branches(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 32; ++i) wanted.push_back(x[i ^ 1]);
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(branch_of_shuffles_kernel, broken), input.data()),
          wanted};
}

Outcome shuffle_of_width_12(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 32; ++i) wanted.push_back(x[i / 12 * 12]);
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(group_first_kernel, broken), input.data()), wanted};
}

}  // namespace graft::bugs
