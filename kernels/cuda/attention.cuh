// The parts that attention's forward and backward kernels are made of: a block of 4 warps keeps a
// tile of rows ("resident") in shared memory, tiles of columns ("streamed") pass by, and two
// products are formed in registers.
//
// Thread layout. A warp owns 4 kRows consecutive rows: lane / 8 + 4 i for i < kRows. Its lane % 8
// owns the columns lane % 8 + 8 j of a tile of scores, and the elements 4 (lane % 8) + 32 w .. + 3
// of a row of the result. So 8 neighbouring lanes share a row, every load from shared memory is 16
// bytes wide, and with the strides below the 4 rows and 8 columns of a warp never meet in a bank.
#pragma once

#include <type_traits>

#include "kernels/attention.h"
#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"

namespace graft::cuda {

constexpr int kAttentionThreads = 128;

// A tile shape: rows are padded with zeros to kDim elements; a thread computes kRows x kColumns
// scores.
template <int kDim_, int kRows_, int kColumns_>
struct AttentionShape {
  static_assert(kDim_ % 32 == 0);
  static constexpr int kDim = kDim_, kRows = kRows_, kColumns = kColumns_;
  static constexpr int kResident = kAttentionThreads / 8 * kRows;  // rows of the resident tile
  static constexpr int kStreamed = 8 * kColumns;                   // rows of the streamed tile
  static constexpr int kWide = kDim / 8;              // elements of a result's row in a thread
  static constexpr int kStride = kDim + 4;            // floats; 4 modulo 32
  static constexpr int kScoreStride = kStreamed + 8;  // floats; 8 modulo 32
  static constexpr int kResidentSize = kResident * kStride;
  static constexpr int kStreamedSize = kStreamed * kStride;
  static constexpr int kScoreSize = kResident * kScoreStride;
};

// The thread's place in its block, and the block's tile. A head has less than 2^31 tokens.
struct AttentionLane {
  int row, column;    // its first of both
  int begin;          // the resident tile's first token
  int queries, keys;  // of the head
  bool busy;          // false for warps behind the last row, which only copy
};
template <class Shape>
__device__ AttentionLane attention_lane(const AttentionTile& tile, int64_t rows) {
  const int thread = static_cast<int>(threadIdx.x), warp_row = thread / 32 * 4 * Shape::kRows;
  return {warp_row + thread % 32 / 8,       thread % 8,
          static_cast<int>(tile.begin),     static_cast<int>(tile.head.queries),
          static_cast<int>(tile.head.keys), tile.begin + warp_row < rows};
}

// Rows 0..kCount-1 of a tile from the `rows` rows of `size` elements that begin at `from`, `step`
// elements apart; zeros beyond. `wide`: 16 bytes at a time. Asynchronous for float.
template <class Shape, int kCount, class T>
__device__ void load_rows(float* tile, const T* from, int64_t step, int rows, int size, bool wide) {
  const int thread = static_cast<int>(threadIdx.x);
  if constexpr (std::is_same_v<T, float>) {
    if (wide) {
#pragma unroll 1
      for (int i = thread; i < kCount * Shape::kDim / 4; i += kAttentionThreads) {
        const int row = i / (Shape::kDim / 4), at = i % (Shape::kDim / 4) * 4;
        const bool valid = row < rows && at < size;
        copy_async<16>(tile + row * Shape::kStride + at, valid ? from + row * step + at : from,
                       valid);
      }
    } else {
#pragma unroll 1
      for (int i = thread; i < kCount * Shape::kDim; i += kAttentionThreads) {
        const int row = i / Shape::kDim, at = i % Shape::kDim;
        const bool valid = row < rows && at < size;
        copy_async<4>(tile + row * Shape::kStride + at, valid ? from + row * step + at : from,
                      valid);
      }
    }
  } else {
    for (int i = thread; i < kCount * Shape::kDim; i += kAttentionThreads) {
      const int row = i / Shape::kDim, at = i % Shape::kDim;
      const bool valid = row < rows && at < size;
      tile[row * Shape::kStride + at] = valid ? static_cast<float>(from[row * step + at]) : 0.0f;
    }
  }
}

// scores = resident streamed^T: both rows along kDim. `resident` begins at the lane's first row,
// `streamed` at its first column.
template <class Shape>
__device__ void multiply_rows(float (&scores)[Shape::kRows][Shape::kColumns], const float* resident,
                              const float* streamed) {
  for (auto& row : scores) {
    for (float& score : row) score = 0;
  }
#pragma unroll 1
  for (int c = 0; c < Shape::kDim; c += 4) {
    Pack<float, 4> column[Shape::kColumns];
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j) {
      column[j] = load<4>(streamed + j * 8 * Shape::kStride + c);
    }
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      const Pack<float, 4> row = load<4>(resident + i * 4 * Shape::kStride + c);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
#pragma unroll
        for (int j = 0; j < Shape::kColumns; ++j) scores[i][j] += row.v[e] * column[j].v[e];
      }
    }
  }
}

// The score of a query and a key from their product; the mask counts where both are inside.
template <class T>
__device__ float masked_score(const AttentionInputs<T>& in, const float* mask, float product,
                              int query, int key, bool inside) {
  float score = product * in.scale;
  if (in.mask != nullptr && inside) {
    score += mask[query * in.mask_strides[2] + key * in.mask_strides[3]];
  }
  return score;
}

// sum += scores streamed. `scores` begins at the lane's first row, `streamed` at its first element.
template <class Shape>
__device__ void add_product(float (&sum)[Shape::kRows][Shape::kWide], const float* scores,
                            const float* streamed) {
#pragma unroll 1
  for (int j = 0; j < Shape::kStreamed; j += 4) {
    Pack<float, 4> weight[Shape::kRows];
#pragma unroll
    for (int i = 0; i < Shape::kRows; ++i) {
      weight[i] = load<4>(scores + i * 4 * Shape::kScoreStride + j);
    }
#pragma unroll
    for (int e = 0; e < 4; ++e) {
#pragma unroll
      for (int w = 0; w < Shape::kWide / 4; ++w) {
        const Pack<float, 4> value = load<4>(streamed + (j + e) * Shape::kStride + 32 * w);
#pragma unroll
        for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
          for (int x = 0; x < 4; ++x) sum[i][4 * w + x] += weight[i].v[e] * value.v[x];
        }
      }
    }
  }
}

// The lane's scores to shared memory, where its warp (and no other) reads them.
template <class Shape>
__device__ void store_scores(float* to, const float (&scores)[Shape::kRows][Shape::kColumns]) {
#pragma unroll
  for (int i = 0; i < Shape::kRows; ++i) {
#pragma unroll
    for (int j = 0; j < Shape::kColumns; ++j)
      to[i * 4 * Shape::kScoreStride + 8 * j] = scores[i][j];
  }
}

// The lane's part of one row of a result, times `factor`.
template <class Shape, class T>
__device__ void store_row(T* to, const float (&row)[Shape::kWide], float factor, int first,
                          int size, bool wide) {
#pragma unroll
  for (int w = 0; w < Shape::kWide / 4; ++w) {
    const int at = first + 32 * w;
    Pack<T, 4> pack;
#pragma unroll
    for (int x = 0; x < 4; ++x) pack.v[x] = static_cast<T>(row[4 * w + x] * factor);
    if (wide) {
      if (at < size) store(to + at, pack);
    } else {
#pragma unroll
      for (int x = 0; x < 4; ++x) {
        if (at + x < size) to[at + x] = pack.v[x];
      }
    }
  }
}

// Calls f with the smallest kDim that holds rows of `size` elements.
template <class F>
void with_attention_dim(int64_t size, const F& f) {
  if (size <= 32) {
    f(std::integral_constant<int, 32>());
  } else if (size <= 64) {
    f(std::integral_constant<int, 64>());
  } else if (size <= 96) {
    f(std::integral_constant<int, 96>());
  } else if (size <= 128) {
    f(std::integral_constant<int, 128>());
  } else {
    f(std::integral_constant<int, 256>());
  }
}

// Rows of all arrays can be moved 16 bytes at a time.
template <class T>
bool wide_rows(const AttentionInputs<T>& in) {
  return in.depth % kPackWidth<T> == 0 && in.width % kPackWidth<T> == 0 &&
         aligned({in.q, in.k, in.v});
}

}  // namespace graft::cuda
