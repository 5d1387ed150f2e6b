// Kernels that simt_test.cpp starts, behind plain functions: kernels.cu is compiled with each
// variant's flags, the test is not.
#pragma once

#include "kernels/cuda/launch.cuh"

namespace graft::simt_tests {

// --- Correct ones
// y[kind][width][delta][lane] for shuffles idx, xor, down, up of the widths 1, 2, 4 ... 32, deltas
// 0..31; lane i brings brought(i). The block has `lanes` lanes, 16 or 32.
constexpr int kKinds = 4, kWidths = 6, kDeltas = 32;
inline float brought(int lane) { return static_cast<float>(3 * lane + 1); }
void shuffles(float* y, unsigned lanes);
// For every pattern of predicates: ballot, any and all of the lanes of `mask`.
void votes(unsigned* y, const unsigned* patterns, int count, unsigned mask);
// __syncthreads_count, _and, _or of x[thread] != 0, written by every thread.
void barrier_votes(int* y, const int* x, unsigned threads);
// Where every thread of a grid of blocks (2, 3, 2) of threads (4, 3, 2) finds itself.
constexpr dim3 kBlocks{2, 3, 2}, kBlockThreads{4, 3, 2};
void indices(int* y);
// A sum of n numbers over blocks, warps and shared memory, in two launches.
void sum(float* y, float* scratch, const float* x, int n);
// Add, max, min, exch, cas, or.
void atomics(int* y);
void bytes(uint8_t* y, int n);  // y[i] = i, in blocks of 33
// y[k] = the thread that came k-th.
void arrivals(int* y, int* counter, unsigned blocks, unsigned threads);
void copies(float* y, const float* x);  // cp.async, 64 threads, two groups
void shared_sizes(float* y, size_t dynamic_bytes);
// x[i] += 1, on a stream, without asking for more shared memory.
void add_one(cudaStream_t stream, float* x, int n, dim3 blocks = 1, dim3 threads = 64,
             size_t shared_bytes = 0);
// A launch that does nothing, of so many blocks.
void grid_of(int64_t blocks, int64_t blocks_y);
void copy_kernel_launch(float* y, const float* x, int n);

// --- Wrong ones
enum class Wrong {
  barrier_for_some,
  two_barriers,
  barrier_after_return,
  mask_of_absent_lanes,
  mask_without_caller,
  overlapping_masks,
  inactive_source,
  different_collectives,
  odd_width,
  half_warp_waits,
  shared_reread,       // shared memory that the block has not written
  early_copy,          // of cp.async, before the wait
  past_dynamic,        // writes one past dynamic shared memory
  too_much_static,     // 48 KiB and 4 bytes
  static_and_dynamic,  // more than 48 KiB together, without asking
};
void wrong(Wrong what, float* y, const float* x);

}  // namespace graft::simt_tests
