// Asynchronous copies to shared memory (cp.async): waits, groups, barriers and buffers.
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/shared.cuh"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

constexpr int kTile = 64;

template <bool kBroken>
__global__ void not_waited_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [kTile]);
  cuda::copy_async<4>(&row[threadIdx.x], x + threadIdx.x);
  cuda::commit_copies();
  if (!kBroken) cuda::wait_copies<0>();
  __syncthreads();
  y[threadIdx.x] = row[kTile - 1 - threadIdx.x];
}

template <bool kBroken>
__global__ void not_committed_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [kTile]);
  cuda::copy_async<4>(&row[threadIdx.x], x + threadIdx.x);
  if (!kBroken) cuda::commit_copies();
  cuda::wait_copies<0>();
  __syncthreads();
  y[threadIdx.x] = row[kTile - 1 - threadIdx.x];
}

// A thread's wait is for its own copies.
template <bool kBroken>
__global__ void no_barrier_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [kTile]);
  cuda::copy_async<4>(&row[threadIdx.x], x + threadIdx.x);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  if (!kBroken) __syncthreads();
  y[threadIdx.x] = row[kTile - 1 - threadIdx.x];
}

// Sums of tiles, two under way at a time. kGroups: groups that may still be under way.
template <int kGroups, bool kSpareBuffer>
__device__ void sum_tiles(float* y, const float* x, int tiles) {
  constexpr int kBuffers = kSpareBuffer ? 3 : 2;
  GRAFT_SHARED(float, buffer, [3][kTile]);
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int ahead = 0; ahead < 2; ++ahead) {
    cuda::copy_async<4>(&buffer[ahead][thread], x + ahead * kTile + thread, ahead < tiles);
    cuda::commit_copies();
  }
  for (int tile = 0; tile < tiles; ++tile) {
    cuda::wait_copies<kGroups>();
    __syncthreads();
    if (tile + 2 < tiles) {
      cuda::copy_async<4>(&buffer[(tile + 2) % kBuffers][thread], x + (tile + 2) * kTile + thread);
    }
    cuda::commit_copies();
    sum += buffer[tile % kBuffers][kTile - 1 - thread];
  }
  y[thread] = sum;
}
template <bool kBroken>
__global__ void wrong_group_kernel(float* y, const float* x, int tiles) {
  sum_tiles<kBroken ? 2 : 1, true>(y, x, tiles);
}
template <bool kBroken>
__global__ void too_few_buffers_kernel(float* y, const float* x, int tiles) {
  sum_tiles<1, !kBroken>(y, x, tiles);
}

template <bool kBroken>
__global__ void misaligned_copy_kernel(float* y, const float* x, int start) {
  GRAFT_SHARED(float, row, [kTile]);
  const int thread = static_cast<int>(threadIdx.x);
  if (kBroken || start % 4 == 0) {
    if (thread % 4 == 0) cuda::copy_async<16>(&row[thread], x + start + thread);
  } else {
    cuda::copy_async<4>(&row[thread], x + start + thread);
  }
  cuda::commit_copies();
  cuda::wait_copies<0>();
  __syncthreads();
  y[thread] = row[kTile - 1 - thread];
}

// The tail: rows past the end must arrive as zeros, and their addresses not be read.
template <bool kBroken>
__global__ void tail_copy_kernel(float* y, const float* x, int n) {
  GRAFT_SHARED(float, row, [kTile]);
  const int thread = static_cast<int>(threadIdx.x);
  cuda::copy_async<4>(&row[thread], x + thread, kBroken || thread < n);
  cuda::commit_copies();
  cuda::wait_copies<0>();
  __syncthreads();
  y[thread] = row[kTile - 1 - thread];
}

Outcome tile_sums(void (*kernel)(float*, const float*, int)) {
  const int tiles = 6;
  const Floats x = numbers(size_t{kTile} * tiles);
  const DeviceArray<float> input(x);
  Floats wanted(kTile);
  for (size_t i = 0; i < x.size(); ++i) wanted[kTile - 1 - i % kTile] += x[i];
  return {results_of(kTile, {1, kTile}, 0, kernel, input.data(), tiles), wanted};
}

}  // namespace

Outcome copy_not_waited_for(bool broken) {
  const Floats x = numbers(kTile);
  const DeviceArray<float> input(x);
  return {results_of(kTile, {1, kTile}, 0, GRAFT_TWIN(not_waited_kernel, broken), input.data()),
          Floats(x.rbegin(), x.rend())};
}

Outcome copy_not_committed(bool broken) {
  const Floats x = numbers(kTile);
  const DeviceArray<float> input(x);
  return {results_of(kTile, {1, kTile}, 0, GRAFT_TWIN(not_committed_kernel, broken), input.data()),
          Floats(x.rbegin(), x.rend())};
}

Outcome copy_without_barrier(bool broken) {
  const Floats x = numbers(kTile);
  const DeviceArray<float> input(x);
  return {results_of(kTile, {1, kTile}, 0, GRAFT_TWIN(no_barrier_kernel, broken), input.data()),
          Floats(x.rbegin(), x.rend())};
}

Outcome copy_wait_for_wrong_group(bool broken) {
  return tile_sums(GRAFT_TWIN(wrong_group_kernel, broken));
}

Outcome copy_over_buffer_in_use(bool broken) {
  return tile_sums(GRAFT_TWIN(too_few_buffers_kernel, broken));
}

Outcome copy_misaligned(bool broken) {
  const Floats x = numbers(kTile + 1);
  const DeviceArray<float> input(x);
  return {
      results_of(kTile, {1, kTile}, 0, GRAFT_TWIN(misaligned_copy_kernel, broken), input.data(), 1),
      Floats(x.rbegin(), x.rend() - 1)};
}

Outcome copy_past_end(bool broken) {
  const Floats x = numbers(50);
  const DeviceArray<float> input(x);
  Floats wanted(kTile);
  for (size_t i = 0; i < x.size(); ++i) wanted[kTile - 1 - i] = x[i];
  return {results_of(kTile, {1, kTile}, 0, GRAFT_TWIN(tail_copy_kernel, broken), input.data(), 50),
          wanted};
}

}  // namespace graft::bugs
