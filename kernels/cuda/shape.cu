// Kernels that move elements: fill, permutation, strided copies, gather, embedding.
// Layout: contiguous, any element type for copies, f32 for gather and embedding. Copies move the
// widest unit (16, 8, 4, 2 or 1 bytes) that divides every address, stride and length of theirs; a
// transposition goes through square tiles in shared memory, so that it reads and writes whole
// sectors.
// Numerics: none, bits move. Each element has one writer, so results are deterministic; the search
// for a bad index keeps the smallest position, in whatever order it meets them.
#include <cstdint>

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/shared.cuh"
#include "kernels/device.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// Calls use(unit) with the widest type whose size divides all the numbers that `bits` is the OR of.
template <class Use>
void visit_unit(uint64_t bits, const Use& use) {
  if (bits % 16 == 0) return use(uint4{});
  if (bits % 8 == 0) return use(uint64_t{});
  if (bits % 4 == 0) return use(uint32_t{});
  if (bits % 2 == 0) return use(uint16_t{});
  return use(uint8_t{});
}

uint64_t address_of(const void* data) { return reinterpret_cast<uintptr_t>(data); }

template <class T, int kWidth>
__global__ void fill_kernel(T* y, T value, int64_t n) {
  for_packs<kWidth>(n, [=]<int W>(int64_t i) {
    Pack<T, W> pack;
    for (T& element : pack.v) element = value;
    store(y + i, pack);
  });
}

// ---- permute

// Each thread looks up where its elements of the result come from.
template <class T>
__global__ void permute_rows_kernel(T* y, const T* x, PermuteShape s, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t rest = i, from = 0;
    for (int d = s.rank - 1; d > 0; --d) {
      const Quotient q = divide(rest, s.sizes[d]);
      from += q.rest * s.strides[d];
      rest = q.whole;
    }
    y[i] = x[from + rest * s.strides[0]];
  }
}

// A permutation as many transpositions of (columns, rows) in the source to (rows, columns) in the
// result, of which `rest` tells the beginnings.
struct Transposition {
  int64_t rows = 1, y_stride = 1;     // contiguous in the source
  int64_t columns = 1, x_stride = 1;  // contiguous in the result
  int64_t row_tiles = 0, column_tiles = 0, count = 1;
  PermuteShape rest;  // strides: in the source
  int64_t y_strides[kMaxPermuteRank] = {};
};

constexpr unsigned kWarp = 32, kWarps = kThreads / kWarp;
// A tile's side. Small elements get a larger one: each thread should have 16 bytes under way.
template <class T>
constexpr unsigned kTile = sizeof(T) < 4 ? 64 : 32;

// One block a tile.
template <class T>
__global__ void transpose_kernel(T* y, const T* x, Transposition s) {
  constexpr unsigned kSide = kTile<T>;
  // Longer lines than the side, so that a column of the tile is spread over the banks.
  GRAFT_SHARED(T, tile, [kSide][kSide + (sizeof(T) < 4 ? 4 / sizeof(T) : 1)]);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  const Quotient by_column = divide(blockIdx.x, s.column_tiles);
  const Quotient by_row = divide(by_column.whole, s.row_tiles);
  const int64_t first_column = by_column.rest * kSide, first_row = by_row.rest * kSide;
  int64_t rest = by_row.whole;
  for (int d = s.rest.rank - 1; d >= 0; --d) {
    const Quotient q = divide(rest, s.rest.sizes[d]);
    x += q.rest * s.rest.strides[d];
    y += q.rest * s.y_strides[d];
    rest = q.whole;
  }
  x += first_column * s.x_stride + first_row;
  y += first_row * s.y_stride + first_column;
  const int64_t rows = s.rows - first_row, columns = s.columns - first_column;
  for (unsigned column = warp; column < kSide; column += kWarps) {
    for (unsigned row = lane; row < kSide; row += kWarp) {
      if (column < columns && row < rows) tile[column][row] = x[column * s.x_stride + row];
    }
  }
  __syncthreads();
  for (unsigned row = warp; row < kSide; row += kWarps) {
    for (unsigned column = lane; column < kSide; column += kWarp) {
      if (column < columns && row < rows) y[row * s.y_stride + column] = tile[column][row];
    }
  }
}

// Dimension p of the result is contiguous in the source.
template <class T>
void transpose(T* y, const T* x, const PermuteShape& shape, int p) {
  Transposition s;
  const int last = shape.rank - 1;
  s.columns = shape.sizes[last];
  s.x_stride = shape.strides[last];
  int64_t stride = 1;
  for (int d = last; d >= 0; --d) {
    if (d == p) {
      s.rows = shape.sizes[d];
      s.y_stride = stride;
    } else if (d != last) {
      s.rest.sizes[s.rest.rank] = shape.sizes[d];
      s.rest.strides[s.rest.rank] = shape.strides[d];
      s.y_strides[s.rest.rank++] = stride;
      s.count *= shape.sizes[d];
    }
    stride *= shape.sizes[d];
  }
  s.row_tiles = (s.rows + kTile<T> - 1) / kTile<T>;
  s.column_tiles = (s.columns + kTile<T> - 1) / kTile<T>;
  launch("permute", {s.count * s.row_tiles * s.column_tiles}, 0, transpose_kernel<T>, y, x, s);
}

// By lookup, in units that are wider than an element where the innermost dimension stays one.
void permute_rows(void* y, const void* x, int64_t element_size, PermuteShape shape) {
  const int last = shape.rank - 1;
  uint64_t bits = static_cast<uint64_t>(element_size);
  if (shape.strides[last] == 1) {
    bits = address_of(y) | address_of(x) | static_cast<uint64_t>(shape.sizes[last] * element_size);
    for (int d = 0; d < last; ++d) bits |= static_cast<uint64_t>(shape.strides[d] * element_size);
  }
  visit_unit(bits, [&]<class T>(T) {
    const int64_t ratio = static_cast<int64_t>(sizeof(T)) / element_size;
    int64_t n = shape.sizes[last] /= ratio;
    for (int d = 0; d < last; ++d) {
      n *= shape.sizes[d];
      shape.strides[d] /= ratio;
    }
    launch("permute", grid_for(n), 0, permute_rows_kernel<T>, static_cast<T*>(y),
           static_cast<const T*>(x), shape, n);
  });
}

// ---- the others

template <class T>
__global__ void copy_rows_kernel(T* y, int64_t y_stride, const T* x, int64_t x_stride,
                                 int64_t width, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
    const Quotient q = divide(i, width);
    y[q.whole * y_stride + q.rest] = x[q.whole * x_stride + q.rest];
  }
}

// *smallest is all ones before, which is -1: none.
template <int kWidth>
__global__ void first_outside_kernel(unsigned long long* smallest, const int64_t* ids, int64_t n,
                                     int64_t limit) {
  for_packs<kWidth>(n, [=]<int W>(int64_t i) {
    const Pack<int64_t, W> pack = load<W>(ids + i);
    for (int k = 0; k < W; ++k) {
      if (pack.v[k] >= 0 && pack.v[k] < limit) continue;
      atomicMin(smallest, static_cast<unsigned long long>(i + k));
    }
  });
}

template <class T>
__global__ void gather_kernel(T* y, const T* x, const int64_t* index, GatherShape s, int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
    int64_t rest = i, from = index[i] * s.strides[s.axis];
    for (int d = s.rank - 1; d >= 0; --d) {
      const Quotient q = divide(rest, s.sizes[d]);
      if (d != s.axis) from += q.rest * s.strides[d];
      rest = q.whole;
    }
    y[i] = x[from];
  }
}

template <class T, int kWidth>
__global__ void embedding_kernel(T* y, const T* weight, const int64_t* ids, int64_t width,
                                 int64_t n) {
  for_packs<kWidth>(n, [=]<int W>(int64_t i) {
    const Quotient q = divide(i, width);
    store(y + i, load<W>(weight + ids[q.whole] * width + q.rest));
  });
}

}  // namespace

void fill(float* y, float value, int64_t n) {
  constexpr int kWide = kPackWidth<float>;
  if (aligned({y})) {
    launch("fill", grid_for((n + kWide - 1) / kWide), 0, fill_kernel<float, kWide>, y, value, n);
  } else {
    launch("fill", grid_for(n), 0, fill_kernel<float, 1>, y, value, n);
  }
}

void permute(void* y, const void* x, int64_t element_size, const PermuteShape& shape) {
  constexpr int64_t kNarrow = 8;  // a tile for fewer rows or columns would be mostly empty
  const int last = shape.rank - 1;
  int p = 0;
  while (p < last && shape.strides[p] != 1) ++p;
  if (p == last || shape.sizes[p] < kNarrow || shape.sizes[last] < kNarrow) {
    return permute_rows(y, x, element_size, shape);
  }
  visit_unit(static_cast<uint64_t>(element_size), [&]<class T>(T) {
    if constexpr (sizeof(T) <= 8) {
      transpose(static_cast<T*>(y), static_cast<const T*>(x), shape, p);
    }
  });
}

void copy_rows(void* y, int64_t y_stride, const void* x, int64_t x_stride, int64_t rows,
               int64_t bytes) {
  if (rows == 0 || bytes == 0) return;
  if (y_stride == bytes && x_stride == bytes) {  // one long row
    bytes *= rows;
    rows = 1;
  }
  uint64_t bits = address_of(y) | address_of(x) | static_cast<uint64_t>(bytes);
  if (rows > 1) bits |= static_cast<uint64_t>(y_stride) | static_cast<uint64_t>(x_stride);
  visit_unit(bits, [=]<class T>(T) {
    constexpr int64_t kSize = sizeof(T);
    const int64_t width = bytes / kSize, n = rows * width;
    launch("copy_rows", grid_for(n), 0, copy_rows_kernel<T>, static_cast<T*>(y), y_stride / kSize,
           static_cast<const T*>(x), x_stride / kSize, width, n);
  });
}

int64_t first_outside(const int64_t* ids, int64_t n, int64_t limit) {
  if (n == 0) return -1;
  constexpr const char* kOp = "first_outside";
  constexpr int kWide = kPackWidth<int64_t>;
  auto* smallest = static_cast<unsigned long long*>(scratch(kOp, sizeof(int64_t)));
  check(cudaMemsetAsync(smallest, 0xFF, sizeof(int64_t), stream()), kOp);
  if (aligned({ids})) {
    launch(kOp, grid_for((n + kWide - 1) / kWide), 0, first_outside_kernel<kWide>, smallest, ids, n,
           limit);
  } else {
    launch(kOp, grid_for(n), 0, first_outside_kernel<1>, smallest, ids, n, limit);
  }
  int64_t found = -1;
  copy(&found, kCpu, smallest, {Device::Kind::cuda, 0}, sizeof found);
  return found;
}

void gather(float* y, const float* x, const int64_t* index, const GatherShape& shape) {
  int64_t n = 1;
  for (int d = 0; d < shape.rank; ++d) n *= shape.sizes[d];
  launch("gather", grid_for(n), 0, gather_kernel<float>, y, x, index, shape, n);
}

void embedding(float* y, const float* weight, const int64_t* ids, int64_t count, int64_t width) {
  constexpr int kWide = kPackWidth<float>;
  const int64_t n = count * width;
  if (width % kWide == 0 && aligned({y, weight})) {
    launch("embedding", grid_for(n / kWide), 0, embedding_kernel<float, kWide>, y, weight, ids,
           width, n);
  } else {
    launch("embedding", grid_for(n), 0, embedding_kernel<float, 1>, y, weight, ids, width, n);
  }
}

}  // namespace graft::cuda
