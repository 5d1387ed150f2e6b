// Attention, forward:  y = softmax(q k^T scale + mask) v, one pass over the keys.
// Source: Dao et al. 2022 and 2023 (FlashAttention, FlashAttention-2); the online softmax is
// Milakov and Gimelshein's, 2018.
//
// A block owns a tile of queries of one head, kept in shared memory; tiles of keys and values pass
// by. With the running row maximum m and sum l,
//   s = q k^T scale + mask,  m' = max(m, max s),  p = e^(s - m'),
//   l = l e^(m - m') + sum p,  o = o e^(m - m') + p v;      at the end y = o / l.
// Neither scores nor probabilities reach global memory; log l + m does, for the backward pass.
// While one of keys and values is worked on, the next tile of the other arrives (cp.async).
//
// Layout: kernels/attention.h. Rows of at most 256 elements, padded to 32, 64, 96, 128 or 256 in
// shared memory; 16 bytes a load where sizes and addresses allow it, else 4.
//
// Numerics: f32 throughout. A maximum of -infinity counts as 0 in the exponents, so that a tile
// without a visible key adds nothing; a row without any visible key becomes 0 / 0 = NaN, and one
// with NaN or +infinity NaN as well.
// Deterministic: a row is one block's, in the order of the keys.
#include <algorithm>
#include <cmath>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// Scores of 8 x 8 a thread need 2 loads from shared memory for every 16 multiplications each way,
// which the multipliers can just hide; the wide tiles have no registers for that.
template <int kDim>
using Forward = AttentionShape<kDim, kDim <= 96 ? 8 : 4, kDim <= 64 ? 8 : 4>;

template <class Shape>
constexpr size_t kForwardBytes = sizeof(float) * (Shape::kResidentSize + 2 * Shape::kStreamedSize +
                                                  Shape::kScoreSize);

template <class Shape, class T>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_forward_kernel(T* y, float* log_sum_exp, AttentionInputs<T> in, bool wide) {
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns;
  const AttentionTile tile = attention_tile(in, TileOf::queries, Shape::kResident, blockIdx.x);
  const AttentionHead& head = tile.head;
  if (tile.begin >= head.queries) return;
  const AttentionLane lane = attention_lane<Shape>(tile, head.queries);
  GRAFT_DYNAMIC_SHARED(float, shared);
  float* const queries = shared;
  float* const keys = queries + Shape::kResidentSize;
  float* const values = keys + Shape::kStreamedSize;
  float* const weights = values + Shape::kStreamedSize;

  const int depth = static_cast<int>(in.depth), width = static_cast<int>(in.width);
  const T* const k = in.k + head.first_key * depth;
  const T* const v = in.v + head.first_key * width;
  const int64_t k_step = head.step * depth, v_step = head.step * width;
  load_rows<Shape, Shape::kResident>(queries,
                                     in.q + (head.first_query + lane.begin * head.step) * depth,
                                     k_step, lane.queries - lane.begin, depth, wide);
  load_rows<Shape, Shape::kStreamed>(keys, k, k_step, lane.keys, depth, wide);
  commit_copies();
  load_rows<Shape, Shape::kStreamed>(values, v, v_step, lane.keys, width, wide);
  commit_copies();

  const float* const mask = in.mask + head.mask;
  float sum[kRows][Shape::kWide] = {}, largest[kRows], total[kRows];
  for (int i = 0; i < kRows; ++i) {
    largest[i] = -__builtin_inff();
    total[i] = 0;
  }
  for (int first = 0; first < lane.keys; first += Shape::kStreamed) {
    const int next = first + Shape::kStreamed;
    wait_copies<1>();
    __syncthreads();  // these keys are here
    float scores[kRows][kColumns];
    if (lane.busy) {
      multiply_rows<Shape>(scores, queries + lane.row * Shape::kStride,
                           keys + lane.column * Shape::kStride);
    }
    __syncthreads();  // nobody needs these keys any more
    if (next < lane.keys) {
      load_rows<Shape, Shape::kStreamed>(keys, k + next * k_step, k_step, lane.keys - next, depth,
                                         wide);
    }
    commit_copies();
    if (lane.busy) {
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = lane.begin + lane.row + 4 * i;
        float top = -__builtin_inff();
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int column = first + lane.column + 8 * j;
          const float score = masked_score(in, mask, scores[i][j], row, column,
                                           row < lane.queries && column < lane.keys);
          scores[i][j] = column < lane.keys ? score : -__builtin_inff();
          top = Largest()(top, scores[i][j]);
        }
        top = Largest()(largest[i], warp_reduce(top, Largest(), 8));
        const float shift = top == -__builtin_inff() ? 0.0f : top;
        const float kept = fn::fast_exp(largest[i] - shift);
        largest[i] = top;
        total[i] *= kept;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          scores[i][j] = fn::fast_exp(scores[i][j] - shift);
          total[i] += scores[i][j];
        }
#pragma unroll
        for (float& value : sum[i]) value *= kept;
      }
      store_scores<Shape>(weights + lane.row * Shape::kScoreStride + lane.column, scores);
    }
    wait_copies<1>();
    __syncthreads();  // these values are here, and the warp's weights
    if (lane.busy) {
      add_product<Shape>(sum, weights + lane.row * Shape::kScoreStride, values + 4 * lane.column);
    }
    __syncthreads();  // nobody needs these values any more
    if (next < lane.keys) {
      load_rows<Shape, Shape::kStreamed>(values, v + next * v_step, v_step, lane.keys - next, width,
                                         wide);
    }
    commit_copies();
  }
  wait_copies<0>();
  if (!lane.busy) return;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const float all = warp_reduce(total[i], Sum(), 8);
    const int row = lane.begin + lane.row + 4 * i;
    if (row >= lane.queries) continue;
    store_row<Shape>(y + (head.first_query + row * head.step) * width, sum[i],
                     lane.keys > 0 ? 1.0f / all : 0.0f, 4 * lane.column, width, wide);
    if (log_sum_exp != nullptr && lane.column == 0) {
      log_sum_exp[head.stats + row] = largest[i] + std::log(all);
    }
  }
}

}  // namespace

void attention_forward(float* y, float* log_sum_exp, const AttentionInputs<float>& in) {
  const bool wide = wide_rows(in) && aligned({y});
  with_attention_dim(std::max(in.depth, in.width), [&](auto dim) {
    using Shape = Forward<dim()>;
    launch("attention_forward",
           {attention_tiles(in, TileOf::queries, Shape::kResident), kAttentionThreads},
           kForwardBytes<Shape>, attention_forward_kernel<Shape, float>, y, log_sum_exp, in, wide);
  });
}

}  // namespace graft::cuda
