// Missing, misplaced and divergent barriers.
#include "kernels/cuda/reduce.cuh"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

// block_reduce() without its first barrier.
template <bool kBroken>
__device__ float block_sum(float value) {
  GRAFT_SHARED(float, partial, [32]);
  const unsigned warps = blockDim.x / 32;
  value = cuda::warp_reduce(value, cuda::Sum{});
  if (!kBroken) __syncthreads();
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
  __syncthreads();
  float sum = 0;
  for (unsigned i = 0; i < warps; ++i) sum += partial[i];
  return sum;
}
template <bool kBroken>
__global__ void two_sums_kernel(float* y, const float* x) {
  const float mean = block_sum<kBroken>(x[threadIdx.x]) / static_cast<float>(blockDim.x);
  const float offset = x[threadIdx.x] - mean;
  y[threadIdx.x] = block_sum<kBroken>(offset * offset) + mean;
}

template <bool kBroken>
__global__ void reverse_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [128]);
  row[threadIdx.x] = x[threadIdx.x];
  if (!kBroken) __syncthreads();
  y[threadIdx.x] = row[127 - threadIdx.x];
}

template <bool kBroken>
__global__ void sum_of_some_kernel(float* y, const float* x, unsigned n) {
  GRAFT_SHARED(float, row, [64]);
  if (kBroken) {
    if (threadIdx.x < n) {
      row[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
    }
  } else {
    if (threadIdx.x < n) row[threadIdx.x] = x[threadIdx.x];
    __syncthreads();
  }
  if (threadIdx.x < n) y[threadIdx.x] = row[n - 1 - threadIdx.x];
}

template <bool kBroken>
__global__ void two_branches_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [64]);
  const bool even_warp = threadIdx.x / 32 % 2 == 0;
  if (kBroken) {
    if (even_warp) {
      row[threadIdx.x] = x[threadIdx.x];
      __syncthreads();
    } else {
      row[threadIdx.x] = -x[threadIdx.x];
      __syncthreads();
    }
  } else {
    row[threadIdx.x] = even_warp ? x[threadIdx.x] : -x[threadIdx.x];
    __syncthreads();
  }
  y[threadIdx.x] = row[63 - threadIdx.x];
}

template <bool kBroken>
__global__ void early_return_kernel(float* y, const float* x, unsigned n) {
  GRAFT_SHARED(float, row, [64]);
  if (kBroken && threadIdx.x >= n) return;
  row[threadIdx.x] = threadIdx.x < n ? x[threadIdx.x] : 0.0f;
  __syncthreads();
  if (threadIdx.x < n) y[threadIdx.x] = row[n - 1 - threadIdx.x];
}

// A running sum over tiles; the mistaken one walks only while the thread has elements of its own.
template <bool kBroken>
__global__ void tiles_kernel(float* y, const float* x, int n) {
  GRAFT_SHARED(float, tile, [64]);
  const int thread = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int begin = 0; kBroken ? begin + thread < n : begin < n; begin += 64) {
    tile[thread] = begin + thread < n ? x[begin + thread] : 0.0f;
    __syncthreads();
    sum += tile[63 - thread];
    __syncthreads();
  }
  y[thread] = sum;
}

template <bool kBroken>
__global__ void transpose_tile_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, tile, [16][17]);
  const unsigned row = threadIdx.x / 16, column = threadIdx.x % 16;
  tile[row][column] = x[threadIdx.x];
  if (!kBroken) __syncthreads();
  y[threadIdx.x] = tile[column][row];
}

// y = A x, x in tiles of 32; the tile is loaded again while others still read it.
template <bool kBroken>
__global__ void tiled_product_kernel(float* y, const float* a, const float* x, int n) {
  GRAFT_SHARED(float, tile, [64]);
  const int row = static_cast<int>(threadIdx.x);
  float sum = 0;
  for (int begin = 0; begin < n; begin += 64) {
    tile[row] = x[begin + row];
    __syncthreads();
    for (int k = 0; k < 64; ++k) sum += a[row * n + begin + k] * tile[k];
    if (!kBroken) __syncthreads();
  }
  y[row] = sum;
}

template <bool kBroken>
__global__ void double_buffer_kernel(float* y, const float* x, int tiles) {
  GRAFT_SHARED(float, buffer, [2][64]);
  const unsigned thread = threadIdx.x;
  float sum = 0;
  buffer[0][thread] = x[thread];
  __syncthreads();
  for (int tile = 0; tile < tiles; ++tile) {
    const int next = tile + 1;
    if (next < tiles) {
      buffer[kBroken ? tile % 2 : next % 2][thread] = x[next * 64 + static_cast<int>(thread)];
    }
    sum += buffer[tile % 2][63 - thread];
    __syncthreads();
  }
  y[thread] = sum;
}

// Every block adds its numbers in shared memory; only the first one clears it.
template <bool kBroken>
__global__ void block_total_kernel(float* y, const float* x) {
  GRAFT_SHARED(int, total, );
  if (threadIdx.x == 0 && (!kBroken || blockIdx.x == 0)) total = 0;
  __syncthreads();
  atomicAdd(&total, static_cast<int>(x[blockIdx.x * blockDim.x + threadIdx.x]));
  __syncthreads();
  if (threadIdx.x == 0) y[blockIdx.x] = static_cast<float>(total);
}

// As many partial sums are added as a block could have warps, not as many as it has.
template <bool kBroken>
__global__ void all_partials_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, partial, [32]);
  const float sum = cuda::warp_reduce(x[threadIdx.x], cuda::Sum{});
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  float total = 0;
  for (unsigned i = 0; i < (kBroken ? 32 : blockDim.x / 32); ++i) total += partial[i];
  y[0] = total;
}

template <bool kBroken>
__global__ void last_warp_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, partial, [32]);
  const float sum = cuda::warp_reduce(x[threadIdx.x], cuda::Sum{});
  if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = sum;
  __syncthreads();
  if (threadIdx.x > 0) return;
  float total = 0;
  for (unsigned i = 0; i < blockDim.x / 32 - (kBroken ? 1 : 0); ++i) total += partial[i];
  y[0] = total;
}

template <bool kBroken>
__global__ void count_kernel(float* y, const float* x) {
  GRAFT_SHARED(int, bins, [8]);
  if (threadIdx.x < 8) bins[threadIdx.x] = 0;
  __syncthreads();
  const int bin = static_cast<int>(x[threadIdx.x]);
  if (kBroken) {
    ++bins[bin];
  } else {
    atomicAdd(&bins[bin], 1);
  }
  __syncthreads();
  if (threadIdx.x < 8) y[threadIdx.x] = static_cast<float>(bins[threadIdx.x]);
}

// One thread computes what all need.
template <bool kBroken>
__global__ void scale_of_block_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, scale, );
  if (threadIdx.x == 0) scale = 1.0f / x[0];
  if (!kBroken) __syncthreads();
  y[threadIdx.x] = x[threadIdx.x] * scale;
}

// A tree in shared memory, whose last steps stay within a warp but still need an order.
template <bool kBroken>
__global__ void tree_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, sums, [64]);
  const unsigned thread = threadIdx.x;
  sums[thread] = x[thread];
  for (unsigned half = 32; half > 0; half /= 2) {
    if (!kBroken || half == 32) __syncthreads();
    if (thread < half) sums[thread] += sums[thread + half];
  }
  if (thread == 0) y[0] = sums[0];
}

// Rounds of rotations between neighbouring rows, a pair a warp; every other round the pairs are
// the ones between.
template <bool kBroken>
__global__ void rotate_rows_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, rows, [8][32]);
  const unsigned lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  for (unsigned row = 2 * warp; row < 2 * warp + 2; ++row) rows[row][lane] = x[row * 32 + lane];
  for (unsigned round = 0; round < 8; ++round) {
    if (!kBroken || round == 0) __syncthreads();
    const unsigned p = 2 * warp + round % 2, q = (p + 1) % 8;
    const float a = rows[p][lane], b = rows[q][lane];
    rows[p][lane] = 0.75f * a - 0.5f * b;
    rows[q][lane] = 0.5f * a + 0.75f * b;
  }
  __syncthreads();
  for (unsigned row = 2 * warp; row < 2 * warp + 2; ++row) y[row * 32 + lane] = rows[row][lane];
}

}  // namespace

Outcome no_barrier_before_reuse(bool broken) {
  const Floats x = numbers(128);
  const DeviceArray<float> input(x);
  float mean = 0, squares = 0;
  for (float value : x) mean += value / 128;
  for (float value : x) squares += (value - mean) * (value - mean);
  return {results_of(128, {1, 128}, 0, GRAFT_TWIN(two_sums_kernel, broken), input.data()),
          Floats(128, squares + mean)};
}

Outcome no_barrier_after_store(bool broken) {
  const Floats x = numbers(128);
  const DeviceArray<float> input(x);
  return {results_of(128, {1, 128}, 0, GRAFT_TWIN(reverse_kernel, broken), input.data()),
          Floats(x.rbegin(), x.rend())};
}

Outcome barrier_in_branch(bool broken) {
  const Floats x = numbers(50);
  const DeviceArray<float> input(x);
  return {results_of(50, {1, 64}, 0, GRAFT_TWIN(sum_of_some_kernel, broken), input.data(), 50u),
          Floats(x.rbegin(), x.rend())};
}

Outcome barriers_of_two_branches(bool broken) {
  const Floats x = numbers(64);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 64; ++i) wanted.push_back(i < 32 ? -x[63 - i] : x[63 - i]);
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(two_branches_kernel, broken), input.data()),
          wanted};
}

Outcome return_before_barrier(bool broken) {
  const Floats x = numbers(50);
  const DeviceArray<float> input(x);
  return {results_of(50, {1, 64}, 0, GRAFT_TWIN(early_return_kernel, broken), input.data(), 50u),
          Floats(x.rbegin(), x.rend())};
}

Outcome barrier_in_uneven_loop(bool broken) {
  const Floats x = numbers(150);
  const DeviceArray<float> input(x);
  Floats wanted(64);
  for (size_t i = 0; i < x.size(); ++i) wanted[63 - i % 64] += x[i];
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(tiles_kernel, broken), input.data(), 150), wanted};
}

Outcome transposed_without_barrier(bool broken) {
  const Floats x = numbers(256);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 256; ++i) wanted.push_back(x[i % 16 * 16 + i / 16]);
  return {results_of(256, {1, 256}, 0, GRAFT_TWIN(transpose_tile_kernel, broken), input.data()),
          wanted};
}

Outcome no_barrier_at_loop_end(bool broken) {
  const Floats a = numbers(size_t{64} * 192, 3), x = numbers(192);
  const DeviceArray<float> matrix(a), vector(x);
  Floats wanted(64);
  for (size_t row = 0; row < 64; ++row) {
    for (size_t k = 0; k < 192; ++k) wanted[row] += a[row * 192 + k] * x[k];
  }
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(tiled_product_kernel, broken), matrix.data(),
                     vector.data(), 192),
          wanted};
}

Outcome buffer_in_use_overwritten(bool broken) {
  const Floats x = numbers(size_t{64} * 5);
  const DeviceArray<float> input(x);
  Floats wanted(64);
  for (size_t i = 0; i < x.size(); ++i) wanted[63 - i % 64] += x[i];
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(double_buffer_kernel, broken), input.data(), 5),
          wanted};
}

Outcome stale_shared_memory(bool broken) {
  const Floats x = numbers(128);
  const DeviceArray<float> input(x);
  Floats wanted(2);
  for (size_t i = 0; i < x.size(); ++i) wanted[i / 64] += x[i];
  return {results_of(2, {2, 64}, 0, GRAFT_TWIN(block_total_kernel, broken), input.data()), wanted};
}

Outcome uninitialised_partials(bool broken) {
  const Floats x = numbers(128);
  const DeviceArray<float> input(x);
  Floats wanted(1);
  for (float value : x) wanted[0] += value;
  return {results_of(1, {1, 128}, 0, GRAFT_TWIN(all_partials_kernel, broken), input.data()),
          wanted};
}

Outcome last_warp_forgotten(bool broken) {
  const Floats x = numbers(128);
  const DeviceArray<float> input(x);
  Floats wanted(1);
  for (float value : x) wanted[0] += value;
  return {results_of(1, {1, 128}, 0, GRAFT_TWIN(last_warp_kernel, broken), input.data()), wanted};
}

Outcome counted_without_atomics(bool broken) {
  Floats x(128), wanted(8);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i * i % 7);
    wanted[i * i % 7] += 1;
  }
  const DeviceArray<float> input(x);
  return {results_of(8, {1, 128}, 0, GRAFT_TWIN(count_kernel, broken), input.data()), wanted};
}

Outcome shared_scale_not_waited_for(bool broken) {
  Floats x = numbers(64);
  x[0] = 4;
  const DeviceArray<float> input(x);
  Floats wanted;
  for (float value : x) wanted.push_back(value / 4);
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(scale_of_block_kernel, broken), input.data()),
          wanted};
}

Outcome tree_without_warp_order(bool broken) {
  const Floats x = numbers(64);
  const DeviceArray<float> input(x);
  Floats wanted(1);
  for (float value : x) wanted[0] += value;
  return {results_of(1, {1, 64}, 0, GRAFT_TWIN(tree_kernel, broken), input.data()), wanted};
}

Outcome no_barrier_between_rounds(bool broken) {
  const Floats x = numbers(8 * 32);
  const DeviceArray<float> input(x);
  Floats wanted = x;
  for (size_t round = 0; round < 8; ++round) {
    for (size_t i = 0; i < 4 * 32; ++i) {
      const size_t p = 2 * (i / 32) + round % 2, q = (p + 1) % 8;
      const float a = wanted[p * 32 + i % 32], b = wanted[q * 32 + i % 32];
      wanted[p * 32 + i % 32] = 0.75f * a - 0.5f * b;
      wanted[q * 32 + i % 32] = 0.5f * a + 0.75f * b;
    }
  }
  return {results_of(8 * 32, {1, 128}, 0, GRAFT_TWIN(rotate_rows_kernel, broken), input.data()),
          wanted};
}

}  // namespace graft::bugs
