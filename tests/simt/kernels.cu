#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/reduce.cuh"
#include "tests/simt/kernels.h"

namespace graft::simt_tests {
namespace {

using cuda::kFullWarp;

__global__ void shuffles_kernel(float* y, unsigned mask, int lanes) {
  const int lane = static_cast<int>(threadIdx.x);
  const float mine = static_cast<float>(3 * lane + 1);
  for (int w = 0; w < kWidths && 1 << w <= lanes; ++w) {
    const int width = 1 << w;
    for (int delta = 0; delta < lanes; ++delta) {
      const auto at = [&](int kind) {
        return ((kind * kWidths + w) * kDeltas + delta) * 32 + lane;
      };
      const unsigned step = static_cast<unsigned>(delta);
      y[at(0)] = __shfl_sync(mask, mine, delta, width);
      y[at(1)] = __shfl_xor_sync(mask, mine, delta, width);
      y[at(2)] = __shfl_down_sync(mask, mine, step, width);
      y[at(3)] = __shfl_up_sync(mask, mine, step, width);
    }
  }
}

__global__ void votes_kernel(unsigned* y, const unsigned* patterns, int count, unsigned mask) {
  const unsigned lane = threadIdx.x;
  if ((mask >> lane & 1) == 0) return;
  for (int i = 0; i < count; ++i) {
    const bool mine = patterns[i] >> lane & 1;
    const unsigned ballot = __ballot_sync(mask, mine);
    const int any = __any_sync(mask, mine), all = __all_sync(mask, mine);
    if (lane == static_cast<unsigned>(__ffs(static_cast<int>(mask))) - 1) {
      y[3 * i] = ballot;
      y[3 * i + 1] = static_cast<unsigned>(any);
      y[3 * i + 2] = static_cast<unsigned>(all);
    }
  }
}

__global__ void barrier_votes_kernel(int* y, const int* x) {
  const int mine = x[threadIdx.x];
  y[3 * threadIdx.x] = __syncthreads_count(mine);
  y[3 * threadIdx.x + 1] = __syncthreads_and(mine);
  y[3 * threadIdx.x + 2] = __syncthreads_or(mine);
}

__global__ void indices_kernel(int* y) {
  const unsigned block = (blockIdx.z * gridDim.y + blockIdx.y) * gridDim.x + blockIdx.x;
  const unsigned thread = (threadIdx.z * blockDim.y + threadIdx.y) * blockDim.x + threadIdx.x;
  const unsigned at = block * blockDim.x * blockDim.y * blockDim.z + thread;
  y[at] = static_cast<int>(at);
}

__global__ void sum_kernel(float* y, const float* x, int n) {
  float mine = 0;
  const int step = static_cast<int>(gridDim.x * blockDim.x);
  for (int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); i < n; i += step) {
    mine += x[i];
  }
  const float total = cuda::block_reduce(mine, cuda::Sum{});
  // Once more, so that the shared memory behind it is used twice.
  const float largest = cuda::block_reduce(mine, cuda::Largest{});
  if (threadIdx.x == 0) y[blockIdx.x] = total + 0 * largest;
}

__global__ void atomics_kernel(int* y) {
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  atomicAdd(&y[0], thread);
  atomicMax(&y[1], thread);
  atomicMin(&y[2], thread);
  atomicExch(&y[3], 7);
  atomicCAS(&y[4], 0, 5);
  atomicOr(&y[5], 1 << thread % 8);
}

__global__ void bytes_kernel(uint8_t* y, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = static_cast<uint8_t>(i);
}

__global__ void arrivals_kernel(int* y, int* counter) {
  const int thread = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  y[atomicAdd(counter, 1)] = thread;
}

__global__ void copies_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, tile, [2][64]);
  const unsigned thread = threadIdx.x;
  for (unsigned group = 0; group < 2; ++group) {
    cuda::copy_async<4>(&tile[group][thread], x + 64 * group + thread, thread < 60);
    cuda::commit_copies();
  }
  cuda::wait_copies<1>();
  __syncthreads();
  y[thread] = tile[0][63 - thread];
  cuda::wait_copies<0>();
  __syncthreads();
  y[64 + thread] = tile[1][63 - thread];
}

__global__ void shared_sizes_kernel(float* y, size_t floats) {
  GRAFT_DYNAMIC_SHARED(float, rows);
  for (size_t i = threadIdx.x; i < floats; i += blockDim.x) rows[i] = static_cast<float>(i);
  __syncthreads();
  if (threadIdx.x == 0) y[0] = rows[floats - 1];
}

__global__ void add_one_kernel(float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) x[i] += 1;
}

__global__ void copy_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) y[i] = x[i];
}

// --- Wrong ones

__global__ void barriers_kernel(float* y, const float* x, Wrong what) {
  const unsigned thread = threadIdx.x;
  if (what == Wrong::barrier_for_some && thread < 40) __syncthreads();
  if (what == Wrong::two_barriers) {
    if (thread < 32) {
      __syncthreads();
    } else {
      __syncthreads();
    }
  }
  if (what == Wrong::barrier_after_return) {
    if (thread == 5) return;
    __syncthreads();
  }
  y[thread] = x[thread];
}

__global__ void masks_kernel(float* y, const float* x, Wrong what) {
  const unsigned lane = threadIdx.x;
  float value = x[lane];
  switch (what) {
    case Wrong::mask_of_absent_lanes:
      if (lane < 20) value = __shfl_sync(kFullWarp, value, 0);
      break;
    case Wrong::mask_without_caller:
      value = __shfl_sync(0xFFFFu, value, 0);
      break;
    case Wrong::overlapping_masks:
      value = __shfl_sync(lane < 16 ? 0x1FFFFu : 0xFFFF0000u, value, 16);
      break;
    case Wrong::inactive_source:
      if (lane < 16) value = __shfl_sync(0xFFFFu, value, 20);
      break;
    case Wrong::different_collectives:
      if (lane < 16) {
        value = __shfl_sync(kFullWarp, value, 0);
      } else {
        __syncwarp();
      }
      break;
    case Wrong::odd_width:
      value = __shfl_down_sync(kFullWarp, value, 1, 24);
      break;
    case Wrong::half_warp_waits:
      if (lane < 16) __syncwarp();
      break;
    default:
      break;
  }
  y[lane] = value;
}

__global__ void shared_reread_kernel(float* y) {
  GRAFT_SHARED(float, row, [32]);
  if (blockIdx.x == 0) row[threadIdx.x] = 1;
  __syncwarp();
  y[blockIdx.x * 32 + threadIdx.x] = row[threadIdx.x];
}

__global__ void early_copy_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [32]);
  cuda::copy_async<4>(&row[threadIdx.x], x + threadIdx.x);
  cuda::commit_copies();
  y[threadIdx.x] = row[threadIdx.x];
  cuda::wait_copies<0>();
}

__global__ void past_dynamic_kernel(float* y, const float* x) {
  GRAFT_DYNAMIC_SHARED(float, row);
  row[threadIdx.x + 1] = x[threadIdx.x];
  __syncwarp();
  y[threadIdx.x] = row[threadIdx.x + 1];
}

__global__ void too_much_static_kernel(float* y) {
  GRAFT_SHARED(float, half, [6 << 10]);
  GRAFT_SHARED(float, more, [(6 << 10) + 1]);
  half[threadIdx.x] = more[threadIdx.x] = 1;
  y[threadIdx.x] = half[threadIdx.x] + more[threadIdx.x];
}

__global__ void static_and_dynamic_kernel(float* y) {
  GRAFT_SHARED(float, row, [1 << 10]);
  row[threadIdx.x] = 1;
  y[threadIdx.x] = row[threadIdx.x];
}

}  // namespace

void shuffles(float* y, unsigned lanes) {
  const unsigned mask = lanes == 32 ? kFullWarp : (1u << lanes) - 1;
  cuda::launch("shuffles", {1, lanes}, 0, &shuffles_kernel, y, mask, static_cast<int>(lanes));
}
void votes(unsigned* y, const unsigned* patterns, int count, unsigned mask) {
  cuda::launch("votes", {1, 32}, 0, &votes_kernel, y, patterns, count, mask);
}
void barrier_votes(int* y, const int* x, unsigned threads) {
  cuda::launch("barrier_votes", {1, threads}, 0, &barrier_votes_kernel, y, x);
}
void indices(int* y) {
  struct Call {
    int* y;
    static GRAFT_SIMT_PLAIN void invoke(const void* call) {
      indices_kernel(static_cast<const Call*>(call)->y);
    }
  };
  simt::enqueue_launch(
      {"indices", kBlocks, kBlockThreads, 0, &Call::invoke, std::make_shared<const Call>(Call{y}),
       reinterpret_cast<const void*>(&indices_kernel)},
      cuda::stream());
}
void sum(float* y, float* scratch, const float* x, int n) {
  cuda::launch("sum", {5, 96}, 0, &sum_kernel, scratch, x, n);
  cuda::launch("sum", {1, 32}, 0, &sum_kernel, y, scratch, 5);
}
void atomics(int* y) { cuda::launch("atomics", {3, 40}, 0, &atomics_kernel, y); }
void bytes(uint8_t* y, int n) { cuda::launch("bytes", {7, 33}, 0, &bytes_kernel, y, n); }
void arrivals(int* y, int* counter, unsigned blocks, unsigned threads) {
  cuda::launch("arrivals", {blocks, threads}, 0, &arrivals_kernel, y, counter);
}
void copies(float* y, const float* x) { cuda::launch("copies", {1, 64}, 0, &copies_kernel, y, x); }
void shared_sizes(float* y, size_t dynamic_bytes) {
  cuda::launch("shared_sizes", {1, 64}, dynamic_bytes, &shared_sizes_kernel, y, dynamic_bytes / 4);
}
void add_one(cudaStream_t stream, float* x, int n, dim3 blocks, dim3 threads, size_t shared_bytes) {
  struct Call {
    float* x;
    int n;
    static GRAFT_SIMT_PLAIN void invoke(const void* call) {
      const auto* self = static_cast<const Call*>(call);
      add_one_kernel(self->x, self->n);
    }
  };
  simt::enqueue_launch(
      {"add_one", blocks, threads, shared_bytes, &Call::invoke,
       std::make_shared<const Call>(Call{x, n}), reinterpret_cast<const void*>(&add_one_kernel)},
      stream);
}
void grid_of(int64_t blocks, int64_t blocks_y) {
  cuda::launch("bytes", {blocks, 32, blocks_y}, 0, &bytes_kernel, nullptr, 0);
}
void copy_kernel_launch(float* y, const float* x, int n) {
  cuda::launch("copy", {1, 64}, 0, &copy_kernel, y, x, n);
}

void wrong(Wrong what, float* y, const float* x) {
  switch (what) {
    case Wrong::barrier_for_some:
    case Wrong::two_barriers:
    case Wrong::barrier_after_return:
      return cuda::launch("wrong", {1, 64}, 0, &barriers_kernel, y, x, what);
    case Wrong::shared_reread:
      return cuda::launch("wrong", {2, 32}, 0, &shared_reread_kernel, y);
    case Wrong::early_copy:
      return cuda::launch("wrong", {1, 32}, 0, &early_copy_kernel, y, x);
    case Wrong::past_dynamic:
      return cuda::launch("wrong", {1, 32}, 128, &past_dynamic_kernel, y, x);
    case Wrong::too_much_static:
      return cuda::launch("wrong", {1, 32}, 0, &too_much_static_kernel, y);
    case Wrong::static_and_dynamic:
      return cuda::launch("wrong", {1, 32}, size_t{46} << 10, &static_and_dynamic_kernel, y);
    default:
      return cuda::launch("wrong", {1, 32}, 0, &masks_kernel, y, x, what);
  }
}

}  // namespace graft::simt_tests
