// Kernels that move elements: fill, permutation, strided copies, gather, embedding.
// Layout: contiguous, any element type for copies, f32 for gather and embedding. Numerics: only the
// two scatter-adds compute; they add in f32 in the order of the indices, each target by one thread,
// so results do not depend on the number of threads.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kTransposeTile = 16;  // 16 x 16 floats: a cache line each way

// The source offset of flat element `i` over dimensions 0..rank-1.
int64_t source_offset(const int64_t* sizes, const int64_t* strides, int rank, int64_t i) {
  int64_t offset = 0;
  for (int d = rank - 1; d >= 0; --d) {
    offset += i % sizes[d] * strides[d];
    i /= sizes[d];
  }
  return offset;
}

// The innermost dimension of the result is contiguous in the source too.
void permute_rows(char* y, const char* x, int64_t size, const PermuteShape& s) {
  const int last = s.rank - 1;
  const int64_t bytes = s.sizes[last] * size;
  int64_t rows = 1;
  for (int d = 0; d < last; ++d) rows *= s.sizes[d];
  parallel_for(rows, s.sizes[last], [&](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memcpy(y + row * bytes, x + source_offset(s.sizes, s.strides, last, row) * size,
                  static_cast<size_t>(bytes));
    }
  });
}

// Dimension `p` of the result is contiguous in the source: square tiles over p and the innermost
// dimension, so that whole cache lines are used both ways.
template <class T>
void permute_tiles(T* y, const T* x, const PermuteShape& s, int p) {
  const int last = s.rank - 1;
  const int64_t columns = s.sizes[last], column_stride = s.strides[last];
  int64_t y_stride = 1;  // of dimension p
  for (int d = p + 1; d < s.rank; ++d) y_stride *= s.sizes[d];
  // The other dimensions, and what a step along them moves in the result.
  PermuteShape rest;
  int64_t y_strides[kMaxPermuteRank] = {}, stride = 1, count = 1;
  for (int d = last; d >= 0; --d) {
    if (d != p && d != last) {
      rest.sizes[rest.rank] = s.sizes[d];
      rest.strides[rest.rank] = s.strides[d];
      y_strides[rest.rank++] = stride;
      count *= s.sizes[d];
    }
    stride *= s.sizes[d];
  }
  const int64_t tiles = (s.sizes[p] + kTransposeTile - 1) / kTransposeTile;
  parallel_for(count * tiles, columns * kTransposeTile, [&](int64_t t, int64_t end) {
    for (; t < end; ++t) {
      const int64_t first = t % tiles * kTransposeTile;
      const int64_t height = std::min(kTransposeTile, s.sizes[p] - first);
      const int64_t other = t / tiles;
      const T* from = x + source_offset(rest.sizes, rest.strides, rest.rank, other) + first;
      T* to = y + source_offset(rest.sizes, y_strides, rest.rank, other) + first * y_stride;
      for (int64_t c = 0; c < columns; c += kTransposeTile) {
        const int64_t width = std::min(kTransposeTile, columns - c);
        for (int64_t i = 0; i < height; ++i) {
          for (int64_t j = 0; j < width; ++j) {
            to[i * y_stride + c + j] = from[i + (c + j) * column_stride];
          }
        }
      }
    }
  });
}

// Calls body(index_offset, source_offset) for each line along the axis; lines share no element.
template <class Body>
void for_lines(const GatherShape& s, const Body& body) {
  int64_t lines = 1, line_stride = 1;
  for (int d = 0; d < s.rank; ++d) {
    if (d != s.axis) lines *= s.sizes[d];
    if (d > s.axis) line_stride *= s.sizes[d];
  }
  parallel_for(lines, s.sizes[s.axis], [&](int64_t begin, int64_t end) {
    for (int64_t line = begin; line < end; ++line) {
      int64_t rest = line, source = 0;
      for (int d = s.rank - 1; d >= 0; --d) {
        if (d == s.axis) continue;
        source += rest % s.sizes[d] * s.strides[d];
        rest /= s.sizes[d];
      }
      body(line / line_stride * line_stride * s.sizes[s.axis] + line % line_stride, source,
           line_stride);
    }
  });
}

}  // namespace

void fill(float* y, float value, int64_t n) {
  parallel_for(n, 1, [=](int64_t begin, int64_t end) { std::fill(y + begin, y + end, value); });
}

void permute(void* y, const void* x, int64_t element_size, const PermuteShape& shape) {
  const int last = shape.rank - 1;
  if (shape.strides[last] == 1) {
    permute_rows(static_cast<char*>(y), static_cast<const char*>(x), element_size, shape);
    return;
  }
  int p = 0;
  while (p < last && shape.strides[p] != 1) ++p;
  switch (element_size) {
    case 1:
      return permute_tiles(static_cast<uint8_t*>(y), static_cast<const uint8_t*>(x), shape, p);
    case 2:
      return permute_tiles(static_cast<uint16_t*>(y), static_cast<const uint16_t*>(x), shape, p);
    case 4:
      return permute_tiles(static_cast<uint32_t*>(y), static_cast<const uint32_t*>(x), shape, p);
    default:
      return permute_tiles(static_cast<uint64_t*>(y), static_cast<const uint64_t*>(x), shape, p);
  }
}

void copy_rows(void* y, int64_t y_stride, const void* x, int64_t x_stride, int64_t rows,
               int64_t bytes) {
  if (bytes == 0) return;
  parallel_for(rows, bytes / 4, [=](int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) {
      std::memcpy(static_cast<char*>(y) + row * y_stride,
                  static_cast<const char*>(x) + row * x_stride, static_cast<size_t>(bytes));
    }
  });
}

int64_t first_outside(const int64_t* ids, int64_t n, int64_t limit) {
  for (int64_t i = 0; i < n; ++i) {
    if (ids[i] < 0 || ids[i] >= limit) return i;
  }
  return -1;
}

void gather(float* y, const float* x, const int64_t* index, const GatherShape& shape) {
  const int64_t length = shape.sizes[shape.axis], x_stride = shape.strides[shape.axis];
  for_lines(shape, [=](int64_t at, int64_t source, int64_t stride) {
    for (int64_t i = 0; i < length; ++i) {
      y[at + i * stride] = x[source + index[at + i * stride] * x_stride];
    }
  });
}

void gather_grad(float* dx, const int64_t* index, const float* g, const GatherShape& shape) {
  const int64_t length = shape.sizes[shape.axis], x_stride = shape.strides[shape.axis];
  for_lines(shape, [=](int64_t at, int64_t source, int64_t stride) {
    for (int64_t i = 0; i < length; ++i) {
      dx[source + index[at + i * stride] * x_stride] += g[at + i * stride];
    }
  });
}

void embedding(float* y, const float* weight, const int64_t* ids, int64_t count, int64_t width) {
  parallel_for(count, width, [=](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      std::memcpy(y + i * width, weight + ids[i] * width,
                  static_cast<size_t>(width) * sizeof(float));
    }
  });
}

void embedding_grad(float* dw, const int64_t* ids, const float* g, int64_t count, int64_t rows,
                    int64_t width) {
  // Each thread owns a range of rows and looks through all ids.
  parallel_for(rows, width, [=](int64_t begin, int64_t end) {
    std::memset(dw + begin * width, 0, static_cast<size_t>((end - begin) * width) * sizeof(float));
    for (int64_t i = 0; i < count; ++i) {
      if (ids[i] < begin || ids[i] >= end) continue;
      float* row = dw + ids[i] * width;
      for (int64_t k = 0; k < width; ++k) row[k] += g[i * width + k];
    }
  });
}

}  // namespace graft::cpu::GRAFT_ISA
