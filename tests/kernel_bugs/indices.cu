// Mistakes with indices, bounds and alignment.
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/shared.cuh"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

using cuda::Grid;

template <bool kBroken>
__global__ void scale_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const bool inside = kBroken ? i <= n : i < n;
  if (inside) y[i] = 2 * (i < n ? x[i] : 0.0f);
}

template <bool kBroken>
__global__ void difference_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= n) return;
  const int next = kBroken ? i + 1 : (i + 1 < n ? i + 1 : i);
  y[i] = x[next] - x[i];
}

// Offsets of segments: one more than there are segments.
__global__ void offsets_kernel(float* offsets, const float* sizes, int segments) {
  if (threadIdx.x > 0) return;
  float sum = 0;
  for (int i = 0; i < segments; ++i) {
    offsets[i] = sum;
    sum += sizes[i];
  }
  offsets[segments] = sum;
}

template <bool kBroken>
__global__ void shift_kernel(float* y, const float* x, unsigned n) {
  const unsigned i = blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= n) return;
  const unsigned before = i - 1;
  const bool inside = kBroken ? before + 1 > 0 || i == 0 : i > 0;  // no unsigned index is negative
  y[i] = inside ? x[before] : 0.0f;
}

template <bool kBroken>
__global__ void pack_kernel(float* y, const float* x, int n) {
  const int packs = n / 4, i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < packs) cuda::store(y + 4 * i, cuda::load<4>(x + 4 * i));
  if (kBroken) return;
  const int rest = 4 * packs + i;
  if (i < 4 && rest < n) y[rest] = x[rest];
}

template <bool kBroken>
__global__ void first_columns_kernel(float* y, const float* x, int rows, int columns, int pitch) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= rows * columns) return;
  const int row = i / columns, column = i % columns;
  y[i] = x[row * (kBroken ? columns : pitch) + column];
}

// y (rows, columns) = x + bias.
template <bool kBroken>
__global__ void bias_kernel(float* y, const float* x, const float* bias, int rows, int columns) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < rows * columns) y[i] = x[i] + bias[kBroken ? i / columns : i % columns];
}

template <bool kBroken>
__global__ void transpose_kernel(float* y, const float* x, int rows, int columns) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i >= rows * columns) return;
  const int row = i / columns, column = i % columns;
  y[column * (kBroken ? columns : rows) + row] = x[i];
}

// What stands at an element's place in a large tensor of which few rows are computed.
template <bool kBroken>
__global__ void place_kernel(float* y, int first_row, int columns, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  int64_t place = 0;
  if (kBroken) {
    place = (first_row + i) * columns;
  } else {
    place = int64_t{first_row + i} * columns;
  }
  y[i] = static_cast<float>((place % 1009 + 1009) % 1009);
}

template <bool kBroken>
__global__ void counter_kernel(float* y, uint64_t first, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  uint64_t counter = first + static_cast<uint64_t>(i);
  if (kBroken) counter = static_cast<uint32_t>(counter);
  y[i] = static_cast<float>(counter % 1009);
}

template <bool kBroken>
__global__ void double_in_place_kernel(float* x, int n) {
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int step = static_cast<int>(kBroken ? blockDim.x : gridDim.x * blockDim.x);
  for (int i = first; i < n; i += step) x[i] *= 2;
}

template <bool kBroken>
__global__ void long_stride_kernel(float* y, const float* x, int n) {
  const int first = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  const int step = static_cast<int>(gridDim.x * blockDim.x) * (kBroken ? 4 : 1);
  for (int i = first; i < n; i += step) y[i] = x[i] + 1;
}

template <bool kBroken>
__global__ void rotate_kernel(float* y, const float* x) {
  GRAFT_SHARED(float, row, [32]);
  const unsigned lane = threadIdx.x;
  row[lane] = x[lane];
  __syncthreads();
  y[lane] = kBroken ? row[lane + 1] : row[(lane + 1) % 32];
}

template <bool kBroken>
__global__ void histogram_kernel(float* y, const float* x, int n) {
  GRAFT_SHARED(int, bins, [16]);
  const int i = static_cast<int>(threadIdx.x);
  if (i < 16) bins[i] = 0;
  __syncthreads();
  // 0..16: sixteen itself belongs to the last bin.
  if (i < n) {
    const int bin = static_cast<int>(x[i]);
    atomicAdd(&bins[kBroken ? bin : min(bin, 15)], 1);
  }
  __syncthreads();
  if (i < 16) y[i] = static_cast<float>(bins[i]);
}

// Copies x + start with 16-byte accesses, which a start of 1 does not allow.
template <bool kBroken>
__global__ void narrow_kernel(float* y, const float* x, int start, int n) {
  const int i = 4 * static_cast<int>(threadIdx.x);
  if (i >= n) return;
  if (kBroken || start % 4 == 0) {
    cuda::store(y + i, cuda::load<4>(x + start + i));
  } else {
    for (int j = i; j < i + 4; ++j) y[j] = x[start + j];
  }
}

// The first and the last of every four, through a pointer to vectors of four.
template <bool kBroken>
__global__ void shared_vector_kernel(float* y, const float* x) {
  constexpr int kPitch = kBroken ? 33 : 36;  // padding against bank conflicts
  GRAFT_SHARED(float, rows, [8 * kPitch]);
  const unsigned row = threadIdx.x / 8, column = threadIdx.x % 8 * 4;
  for (unsigned k = 0; k < 4; ++k) rows[row * kPitch + column + k] = x[row * 32 + column + k];
  __syncwarp();
  const float4& four = *reinterpret_cast<const float4*>(rows + row * kPitch + column);
  y[threadIdx.x] = four.x + 2 * four.w;
}

template <bool kBroken>
__global__ void tile_number_kernel(float* y, int columns, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  const int tiles = kBroken ? columns / 16 : (columns + 15) / 16;
  y[i] = static_cast<float>(i / tiles);
}

template <bool kBroken>
__global__ void lanes_below_kernel(float* y, int n) {
  const int i = static_cast<int>(threadIdx.x), lanes = min(n - i, 32);
  const unsigned mask = kBroken || lanes < 32 ? (1u << lanes) - 1 : ~0u;
  y[i] = static_cast<float>(__popc(mask));
}

template <bool kBroken>
__global__ void pick_kernel(float* y, const float* x, const int* labels, int rows, int classes) {
  const int row = static_cast<int>(threadIdx.x);
  if (row >= rows) return;
  const int label = labels[row];  // -1: this row does not count
  y[row] = kBroken || label >= 0 ? x[row * classes + label] : 0.0f;
}

__global__ void dynamic_rows_kernel(float* y, const float* x, int n) {
  GRAFT_DYNAMIC_SHARED(float, rows);
  const int i = static_cast<int>(threadIdx.x);
  float* squares = rows + n;
  if (i < n) {
    rows[i] = x[i];
    squares[i] = x[i] * x[i];
  }
  __syncthreads();
  if (i < n) y[i] = rows[n - 1 - i] + squares[n - 1 - i];
}

}  // namespace

Outcome guard_off_by_one(bool broken) {
  const Floats x = numbers(200);
  const DeviceArray<float> input(x);
  Floats wanted(x.size());
  for (size_t i = 0; i < x.size(); ++i) wanted[i] = 2 * x[i];
  return {
      results_of(200, cuda::grid_for(200), 0, GRAFT_TWIN(scale_kernel, broken), input.data(), 200),
      wanted};
}

Outcome read_past_end(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> input(x);
  Floats wanted(x.size());
  for (size_t i = 0; i + 1 < x.size(); ++i) wanted[i] = x[i + 1] - x[i];
  return {results_of(100, cuda::grid_for(100), 0, GRAFT_TWIN(difference_kernel, broken),
                     input.data(), 100),
          wanted};
}

Outcome write_past_end(bool broken) {
  const Floats sizes = numbers(40);
  const DeviceArray<float> input(sizes);
  const DeviceArray<float> offsets(broken ? 40 : 41);
  cuda::launch("bug", {1, 32}, 0, &offsets_kernel, offsets.data(), input.data(), 40);
  Floats got = offsets.to_host(), wanted(1);
  for (float size : sizes) wanted.push_back(wanted.back() + size);
  if (broken) wanted.pop_back();
  return {got, wanted};
}

Outcome unsigned_wrap(bool broken) {
  const Floats x = numbers(70);
  const DeviceArray<float> input(x);
  Floats wanted(x.size());
  for (size_t i = 1; i < x.size(); ++i) wanted[i] = x[i - 1];
  return {
      results_of(70, cuda::grid_for(70), 0, GRAFT_TWIN(shift_kernel, broken), input.data(), 70u),
      wanted};
}

Outcome tail_forgotten(bool broken) {
  const Floats x = numbers(103);
  const DeviceArray<float> input(x);
  return {results_of(103, {1, 32}, 0, GRAFT_TWIN(pack_kernel, broken), input.data(), 103), x};
}

Outcome wrong_row_stride(bool broken) {
  const Floats x = numbers(size_t{10} * 16);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t row = 0; row < 10; ++row) {
    for (size_t column = 0; column < 12; ++column) wanted.push_back(x[row * 16 + column]);
  }
  return {results_of(120, {1, 128}, 0, GRAFT_TWIN(first_columns_kernel, broken), input.data(), 10,
                     12, 16),
          wanted};
}

Outcome bias_by_row(bool broken) {
  const Floats x = numbers(size_t{6} * 9), bias = numbers(9, 2);
  const DeviceArray<float> input(x), added(bias);
  Floats wanted;
  for (size_t i = 0; i < x.size(); ++i) wanted.push_back(x[i] + bias[i % 9]);
  return {
      results_of(54, {1, 64}, 0, GRAFT_TWIN(bias_kernel, broken), input.data(), added.data(), 6, 9),
      wanted};
}

Outcome transposed_stride(bool broken) {
  const Floats x = numbers(size_t{9} * 6);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t column = 0; column < 6; ++column) {
    for (size_t row = 0; row < 9; ++row) wanted.push_back(x[row * 6 + column]);
  }
  return {results_of(54, {1, 64}, 0, GRAFT_TWIN(transpose_kernel, broken), input.data(), 9, 6),
          wanted};
}

Outcome index_overflow(bool broken) {
  Floats wanted;
  for (int64_t i = 0; i < 20; ++i) wanted.push_back(static_cast<float>((60000 + i) * 50000 % 1009));
  return {results_of(20, {1, 32}, 0, GRAFT_TWIN(place_kernel, broken), 60000, 50000, 20), wanted};
}

Outcome counter_truncated(bool broken) {
  const uint64_t first = (uint64_t{5} << 32) - 4;
  Floats wanted;
  for (uint64_t i = 0; i < 20; ++i) wanted.push_back(static_cast<float>((first + i) % 1009));
  return {results_of(20, {1, 32}, 0, GRAFT_TWIN(counter_kernel, broken), first, 20), wanted};
}

Outcome stride_of_one_block(bool broken) {
  const Floats x = numbers(300);
  const DeviceArray<float> values(x);
  cuda::launch("bug", {3, 64}, 0, GRAFT_TWIN(double_in_place_kernel, broken), values.data(), 300);
  Floats wanted = x;
  for (float& value : wanted) value *= 2;
  return {values.to_host(), wanted};
}

Outcome stride_too_long(bool broken) {
  const Floats x = numbers(300);
  const DeviceArray<float> input(x);
  Floats wanted = x;
  for (float& value : wanted) value += 1;
  return {results_of(300, {2, 32}, 0, GRAFT_TWIN(long_stride_kernel, broken), input.data(), 300),
          wanted};
}

Outcome shared_index_past_end(bool broken) {
  const Floats x = numbers(32);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 32; ++i) wanted.push_back(x[(i + 1) % 32]);
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(rotate_kernel, broken), input.data()), wanted};
}

Outcome bin_past_end(bool broken) {
  Floats x(100), wanted(16);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] = static_cast<float>(i % 17);
    wanted[i % 17 < 15 ? i % 17 : 15] += 1;
  }
  const DeviceArray<float> input(x);
  return {results_of(16, {1, 128}, 0, GRAFT_TWIN(histogram_kernel, broken), input.data(), 100),
          wanted};
}

Outcome unaligned_pack(bool broken) {
  const Floats x = numbers(65);
  const DeviceArray<float> input(x);
  return {results_of(64, {1, 32}, 0, GRAFT_TWIN(narrow_kernel, broken), input.data(), 1, 64),
          Floats(x.begin() + 1, x.end())};
}

Outcome unaligned_shared_vector(bool broken) {
  const Floats x = numbers(256);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 64; ++i) wanted.push_back(x[4 * i] + 2 * x[4 * i + 3]);
  return {results_of(64, {1, 64}, 0, GRAFT_TWIN(shared_vector_kernel, broken), input.data()),
          wanted};
}

Outcome division_by_zero(bool broken) {
  Floats wanted;
  for (int i = 0; i < 30; ++i) wanted.push_back(static_cast<float>(i));
  return {results_of(30, {1, 32}, 0, GRAFT_TWIN(tile_number_kernel, broken), 10, 30), wanted};
}

Outcome shift_by_32(bool broken) {
  Floats wanted;
  for (int i = 0; i < 32; ++i) wanted.push_back(static_cast<float>(40 - i < 32 ? 40 - i : 32));
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(lanes_below_kernel, broken), 40), wanted};
}

Outcome label_before_start(bool broken) {
  const Floats x = numbers(size_t{5} * 7);
  const std::vector<int> labels{-1, 3, 0, 6, -1};
  const DeviceArray<float> input(x);
  const DeviceArray<int> device_labels(labels);
  Floats wanted;
  for (size_t row = 0; row < 5; ++row) {
    wanted.push_back(labels[row] < 0 ? 0.0f : x[row * 7 + static_cast<size_t>(labels[row])]);
  }
  return {results_of(5, {1, 32}, 0, GRAFT_TWIN(pick_kernel, broken), input.data(),
                     device_labels.data(), 5, 7),
          wanted};
}

// The kernel needs two rows of dynamic shared memory; the launch gives one.
Outcome dynamic_shared_too_small(bool broken) {
  const Floats x = numbers(50);
  const DeviceArray<float> input(x);
  Floats wanted;
  for (size_t i = 0; i < 50; ++i) wanted.push_back(x[49 - i] + x[49 - i] * x[49 - i]);
  return {results_of(50, {1, 64}, (broken ? 50 : 100) * sizeof(float), &dynamic_rows_kernel,
                     input.data(), 50),
          wanted};
}

}  // namespace graft::bugs
