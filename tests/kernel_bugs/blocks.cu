// Mistakes between blocks, and outputs that a kernel leaves out or writes twice.
#include "kernels/cuda/reduce.cuh"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

__device__ int global_index() { return static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x); }

// Every block smooths its part; the mistaken one also writes the neighbour's first element.
template <bool kBroken>
__global__ void overlapping_kernel(float* y, const float* x, int n) {
  const int begin = static_cast<int>(blockIdx.x) * 32, end = min(begin + (kBroken ? 33 : 32), n);
  const int i = begin + static_cast<int>(threadIdx.x);
  if (i < end) y[i] = x[i] + static_cast<float>(kBroken ? blockIdx.x : i / 32);
}

// A sum whose terms are added in whatever order the blocks come.
template <bool kBroken>
__global__ void total_kernel(float* y, const float* x, int n) {
  if (kBroken) {
    const int i = global_index();
    if (i < n) atomicAdd(y, x[i]);
  } else if (global_index() == 0) {
    float sum = 0;
    for (int i = 0; i < n; ++i) sum += x[i];
    *y = sum;
  }
}

// In place, and reads what a neighbour may already have replaced.
__global__ void smooth_kernel(float* y, const float* x, int n) {
  const int i = global_index();
  if (i >= n) return;
  const float left = x[i > 0 ? i - 1 : 0], right = x[i + 1 < n ? i + 1 : i];
  y[i] = left + x[i] + right;
}

template <bool kBroken>
__global__ void add_gradient_kernel(float* gradient, const float* g, int n) {
  const int i = global_index();
  if (i >= n) return;
  if (kBroken) {
    gradient[i] = g[i];
  } else {
    gradient[i] += g[i];
  }
}

// The first block prepares what all use; blocks do not wait for each other.
template <bool kBroken>
__global__ void prepared_kernel(float* y, float* scale, const float* x, int n) {
  if (kBroken && global_index() == 0) *scale = 1 / x[0];
  const int i = global_index();
  if (i < n) y[i] = x[i] * *scale;
}
__global__ void prepare_kernel(float* scale, const float* x) {
  if (threadIdx.x == 0) *scale = 1 / x[0];
}

template <bool kBroken>
__global__ void column_sums_kernel(float* y, const float* x, int rows, int columns) {
  const int column = global_index();
  if (column >= columns) return;
  if (!kBroken) y[column] = 0;
  for (int row = 0; row < rows; ++row) y[column] += x[row * columns + column];
}

// Pairs; an odd last element stays as it was.
template <bool kBroken>
__global__ void swap_pairs_kernel(float* y, const float* x, int n) {
  const int i = 2 * global_index();
  if (i + 1 < n) {
    y[i] = x[i + 1];
    y[i + 1] = x[i];
  } else if (!kBroken && i < n) {
    y[i] = x[i];
  }
}

// Rows that are given twice are added up: two blocks change one row.
template <bool kBroken>
__global__ void scatter_kernel(float* y, const float* x, const int* rows, int count, int columns) {
  const int column = static_cast<int>(threadIdx.x);
  if (column >= columns) return;
  if (kBroken) {
    const int i = static_cast<int>(blockIdx.x);
    y[rows[i] * columns + column] += x[i * columns + column];
  } else {
    const int row = static_cast<int>(blockIdx.x);
    for (int i = 0; i < count; ++i) {
      if (rows[i] == row) y[row * columns + column] += x[i * columns + column];
    }
  }
}

// Elements of every block's part go to places that a counter hands out.
template <bool kBroken>
__global__ void compact_kernel(float* y, int* next, const float* x, int n) {
  const int i = global_index();
  if (i >= n || x[i] <= 0) return;
  int place = 0;
  if (kBroken) {
    place = atomicAdd(next, 1);
  } else {
    for (int k = 0; k < i; ++k) place += x[k] > 0;
  }
  y[place] = x[i];
}

// Rotations of the rows of a pair, a pair a block; `first` says where the round's pairs begin.
__device__ void rotate_pair(float* rows, int first, int count) {
  const int p = 2 * static_cast<int>(blockIdx.x) + first, q = (p + 1) % count;
  const int column = static_cast<int>(threadIdx.x);
  const float a = rows[p * 32 + column], b = rows[q * 32 + column];
  rows[p * 32 + column] = 0.75f * a - 0.5f * b;
  rows[q * 32 + column] = 0.5f * a + 0.75f * b;
}
__global__ void round_kernel(float* rows, int first, int count) { rotate_pair(rows, first, count); }
__global__ void rounds_kernel(float* rows, int rounds, int count) {
  for (int round = 0; round < rounds; ++round) {
    rotate_pair(rows, round % 2, count);
    __syncthreads();
  }
}

}  // namespace

Outcome blocks_write_one_place(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> input(x);
  Floats wanted = x;
  for (size_t i = 0; i < x.size(); ++i) wanted[i] += static_cast<float>(i / 32);
  return {results_of(100, {4, 64}, 0, GRAFT_TWIN(overlapping_kernel, broken), input.data(), 100),
          wanted};
}

Outcome float_atomics(bool broken) {
  Floats x(200);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 1.0f / static_cast<float>(i + 1);
  const DeviceArray<float> input(x), sum(Floats{0});
  cuda::launch("bug", {4, 64}, 0, GRAFT_TWIN(total_kernel, broken), sum.data(), input.data(), 200);
  double wanted = 0;
  for (float value : x) wanted += value;
  return {sum.to_host(), {static_cast<float>(wanted)}};
}

Outcome in_place_reads_neighbour(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> input(x), other(x.size());
  float* target = broken ? input.data() : other.data();
  cuda::launch("bug", {2, 64}, 0, &smooth_kernel, target, input.data(), 100);
  Floats wanted = x;
  for (size_t i = 0; i < 100; ++i) wanted[i] += x[i > 0 ? i - 1 : 0] + x[i + 1 < 100 ? i + 1 : i];
  return {(broken ? input : other).to_host(), wanted};
}

Outcome gradient_not_accumulated(bool broken) {
  const Floats first = numbers(100), second = numbers(100, 2);
  const DeviceArray<float> gradient(first), g(second);
  cuda::launch("bug", {2, 64}, 0, GRAFT_TWIN(add_gradient_kernel, broken), gradient.data(),
               g.data(), 100);
  Floats wanted = first;
  for (size_t i = 0; i < 100; ++i) wanted[i] += second[i];
  return {gradient.to_host(), wanted};
}

Outcome blocks_wait_for_none(bool broken) {
  Floats x = numbers(100);
  x[0] = 4;
  const DeviceArray<float> input(x), scale(1);
  if (!broken) cuda::launch("bug", {1, 32}, 0, &prepare_kernel, scale.data(), input.data());
  Floats wanted;
  for (float value : x) wanted.push_back(value / 4);
  return {results_of(100, {4, 32}, 0, GRAFT_TWIN(prepared_kernel, broken), scale.data(),
                     input.data(), 100),
          wanted};
}

Outcome sum_not_started_at_zero(bool broken) {
  const Floats x = numbers(size_t{6} * 40);
  const DeviceArray<float> input(x);
  Floats wanted(40);
  for (size_t i = 0; i < x.size(); ++i) wanted[i % 40] += x[i];
  return {results_of(40, {2, 32}, 0, GRAFT_TWIN(column_sums_kernel, broken), input.data(), 6, 40),
          wanted};
}

Outcome odd_element_unwritten(bool broken) {
  const Floats x = numbers(61);
  const DeviceArray<float> input(x);
  Floats wanted = x;
  for (size_t i = 0; i + 1 < 61; i += 2) std::swap(wanted[i], wanted[i + 1]);
  return {results_of(61, {1, 32}, 0, GRAFT_TWIN(swap_pairs_kernel, broken), input.data(), 61),
          wanted};
}

Outcome scatter_without_order(bool broken) {
  const std::vector<int> rows{3, 0, 3, 1, 3};
  const Floats x = numbers(rows.size() * 8);
  const DeviceArray<float> input(x), y(Floats(32));
  const DeviceArray<int> places(rows);
  cuda::launch("bug", {broken ? 5u : 4u, 32}, 0, GRAFT_TWIN(scatter_kernel, broken), y.data(),
               input.data(), places.data(), 5, 8);
  Floats wanted(32);
  for (size_t i = 0; i < x.size(); ++i)
    wanted[static_cast<size_t>(rows[i / 8]) * 8 + i % 8] += x[i];
  return {y.to_host(), wanted};
}

Outcome places_by_arrival(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> input(x), y(Floats(100));
  const DeviceArray<int> next(std::vector<int>{0});
  cuda::launch("bug", {2, 64}, 0, GRAFT_TWIN(compact_kernel, broken), y.data(), next.data(),
               input.data(), 100);
  Floats wanted;
  for (float value : x) {
    if (value > 0) wanted.push_back(value);
  }
  wanted.resize(100);
  return {y.to_host(), wanted};
}

// Rounds need a launch each: a barrier holds the threads of one block only.
Outcome rounds_in_one_launch(bool broken) {
  constexpr int kRows = 8, kRounds = 4;
  Floats wanted = numbers(kRows * 32);
  const DeviceArray<float> rows(wanted);
  if (broken) {
    cuda::launch("bug", {kRows / 2, 32}, 0, rounds_kernel, rows.data(), kRounds, kRows);
  } else {
    for (int round = 0; round < kRounds; ++round) {
      cuda::launch("bug", {kRows / 2, 32}, 0, round_kernel, rows.data(), round % 2, kRows);
    }
  }
  for (size_t round = 0; round < kRounds; ++round) {
    for (size_t i = 0; i < kRows / 2 * 32; ++i) {
      const size_t p = 2 * (i / 32) + round % 2, q = (p + 1) % kRows;
      const float a = wanted[p * 32 + i % 32], b = wanted[q * 32 + i % 32];
      wanted[p * 32 + i % 32] = 0.75f * a - 0.5f * b;
      wanted[q * 32 + i % 32] = 0.5f * a + 0.75f * b;
    }
  }
  return {rows.to_host(), wanted};
}

}  // namespace graft::bugs
