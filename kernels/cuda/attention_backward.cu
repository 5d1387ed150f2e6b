// Attention, backward. With s = q k^T scale + mask, p = e^(s - log_sum_exp) and y = p v:
//   dv = p^T g,  dp = g v^T,  ds = p (dp - rowsum(g y)),  dq = scale ds k,  dk = scale ds^T q,
// and ds is the gradient of the mask.
// Source: Dao et al. 2022 and 2023 (FlashAttention, FlashAttention-2).
//
// Three kernels: the row sums of g y; dq (and ds where it is wanted) by tiles of queries, with the
// keys passing by; dk and dv by tiles of keys, with the queries passing by. Scores and
// probabilities are made anew in both, twice the work of one kernel for all three: the price of
// neither atomics nor a copy of dq for every tile of keys.
//
// Layout: kernels/attention.h; as in attention_forward.cu.
// Numerics: f32 throughout. Deterministic: an element of dq, dk or dv is one thread's, in the order
// of the tiles that pass by.
#include <algorithm>

#include "kernels/cuda/attention.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// A thread's registers hold two tiles of scores and one of results, or one and two.
template <int kDim>
using Backward = AttentionShape<kDim, kDim <= 128 ? 4 : 2, kDim <= 64 ? 8 : 4>;

template <class Shape>
constexpr size_t kBackwardBytes = sizeof(float) * (2 * Shape::kResidentSize +
                                                   2 * Shape::kStreamedSize + Shape::kScoreSize);

// row_dots = rowsum(g y). A warp takes a row.
template <class T>
__global__ void attention_row_dots_kernel(float* row_dots, const T* g, const T* y, int64_t rows,
                                          int64_t width, int64_t heads, bool packed) {
  const int64_t warps = int64_t{gridDim.x} * blockDim.x / 32, lane = threadIdx.x % 32;
  for (int64_t row = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) / 32; row < rows;
       row += warps) {
    float sum = 0;
    for (int64_t c = lane; c < width; c += 32) {
      sum += static_cast<float>(g[row * width + c]) * static_cast<float>(y[row * width + c]);
    }
    sum = warp_reduce(sum, Sum());
    // Packed rows are (query, head), the sums (head, query).
    const int64_t at = packed ? row % heads * (rows / heads) + row / heads : row;
    if (lane == 0) row_dots[at] = sum;
  }
}

template <class Shape, class T>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_grad_queries_kernel(AttentionGrad<T> grad, AttentionInputs<T> in, bool wide) {
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns;
  const AttentionTile tile = attention_tile(in, TileOf::queries, Shape::kResident, blockIdx.x);
  const AttentionHead& head = tile.head;
  if (tile.begin >= head.queries) return;
  const AttentionLane lane = attention_lane<Shape>(tile, head.queries);
  GRAFT_DYNAMIC_SHARED(float, shared);
  float* const queries = shared;
  float* const gradients = queries + Shape::kResidentSize;
  float* const keys = gradients + Shape::kResidentSize;
  float* const values = keys + Shape::kStreamedSize;
  float* const weights = values + Shape::kStreamedSize;

  const int depth = static_cast<int>(in.depth), width = static_cast<int>(in.width);
  const T* const k = in.k + head.first_key * depth;
  const T* const v = in.v + head.first_key * width;
  const int64_t k_step = head.step * depth, v_step = head.step * width;
  const int64_t first_row = head.first_query + lane.begin * head.step;
  load_rows<Shape, Shape::kResident>(queries, in.q + first_row * depth, k_step,
                                     lane.queries - lane.begin, depth, wide);
  load_rows<Shape, Shape::kResident>(gradients, grad.g + first_row * width, v_step,
                                     lane.queries - lane.begin, width, wide);
  load_rows<Shape, Shape::kStreamed>(keys, k, k_step, lane.keys, depth, wide);
  load_rows<Shape, Shape::kStreamed>(values, v, v_step, lane.keys, width, wide);
  commit_copies();

  const float* const mask = in.mask + head.mask;
  float* const own_weights = weights + lane.row * Shape::kScoreStride;
  float sum[kRows][Shape::kWide] = {}, log_sum_exp[kRows], dot[kRows];
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = lane.begin + lane.row + 4 * i;
    log_sum_exp[i] = row < lane.queries ? grad.log_sum_exp[head.stats + row] : 0.0f;
    dot[i] = row < lane.queries ? grad.row_dots[head.stats + row] : 0.0f;
  }
  for (int first = 0; first < lane.keys; first += Shape::kStreamed) {
    const int next = first + Shape::kStreamed;
    wait_copies<0>();
    __syncthreads();
    if (lane.busy) {
      float scores[kRows][kColumns], products[kRows][kColumns];
      multiply_rows<Shape>(scores, queries + lane.row * Shape::kStride,
                           keys + lane.column * Shape::kStride);
      multiply_rows<Shape>(products, gradients + lane.row * Shape::kStride,
                           values + lane.column * Shape::kStride);
#pragma unroll
      for (int i = 0; i < kRows; ++i) {
        const int row = lane.begin + lane.row + 4 * i;
#pragma unroll
        for (int j = 0; j < kColumns; ++j) {
          const int column = first + lane.column + 8 * j;
          const bool inside = row < lane.queries && column < lane.keys;
          const float score = masked_score(in, mask, scores[i][j], row, column, inside);
          const float weight = inside ? fn::fast_exp(score - log_sum_exp[i]) : 0.0f;
          products[i][j] = inside ? weight * (products[i][j] - dot[i]) : 0.0f;
          if (grad.dscores != nullptr && inside) {
            grad.dscores[head.scores + int64_t{row} * lane.keys + column] = products[i][j];
          }
        }
      }
      store_scores<Shape>(own_weights + lane.column, products);
    }
    __syncthreads();  // nobody needs these values any more
    if (next < lane.keys) {
      load_rows<Shape, Shape::kStreamed>(values, v + next * v_step, v_step, lane.keys - next, width,
                                         wide);
    }
    if (lane.busy) add_product<Shape>(sum, own_weights, keys + 4 * lane.column);
    __syncthreads();  // nor these keys
    if (next < lane.keys) {
      load_rows<Shape, Shape::kStreamed>(keys, k + next * k_step, k_step, lane.keys - next, depth,
                                         wide);
    }
    commit_copies();
  }
  wait_copies<0>();
  if (!lane.busy || grad.dq == nullptr) return;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = lane.begin + lane.row + 4 * i;
    if (row >= lane.queries) continue;
    store_row<Shape>(grad.dq + (head.first_query + row * head.step) * depth, sum[i], in.scale,
                     4 * lane.column, depth, wide);
  }
}

// The scores are transposed here: rows are keys, columns queries.
template <class Shape, class T>
__global__ void __launch_bounds__(kAttentionThreads, 2)
    attention_grad_keys_kernel(AttentionGrad<T> grad, AttentionInputs<T> in, bool wide) {
  constexpr int kRows = Shape::kRows, kColumns = Shape::kColumns;
  const AttentionTile tile = attention_tile(in, TileOf::keys, Shape::kResident, blockIdx.x);
  const AttentionHead& head = tile.head;
  if (tile.begin >= head.keys) return;
  const AttentionLane lane = attention_lane<Shape>(tile, head.keys);
  GRAFT_DYNAMIC_SHARED(float, shared);
  float* const keys = shared;
  float* const values = keys + Shape::kResidentSize;
  float* const queries = values + Shape::kResidentSize;
  float* const gradients = queries + Shape::kStreamedSize;
  float* const weights = gradients + Shape::kStreamedSize;

  const int depth = static_cast<int>(in.depth), width = static_cast<int>(in.width);
  const T* const q = in.q + head.first_query * depth;
  const T* const g = grad.g + head.first_query * width;
  const int64_t q_step = head.step * depth, g_step = head.step * width;
  const int64_t first_row = head.first_key + lane.begin * head.step;
  load_rows<Shape, Shape::kResident>(keys, in.k + first_row * depth, q_step, lane.keys - lane.begin,
                                     depth, wide);
  load_rows<Shape, Shape::kResident>(values, in.v + first_row * width, g_step,
                                     lane.keys - lane.begin, width, wide);
  load_rows<Shape, Shape::kStreamed>(queries, q, q_step, lane.queries, depth, wide);
  load_rows<Shape, Shape::kStreamed>(gradients, g, g_step, lane.queries, width, wide);
  commit_copies();

  const float* const mask = in.mask + head.mask;
  float* const own_weights = weights + lane.row * Shape::kScoreStride;
  float dk[kRows][Shape::kWide] = {}, dv[kRows][Shape::kWide] = {};
  for (int first = 0; first < lane.queries; first += Shape::kStreamed) {
    const int next = first + Shape::kStreamed;
    float scores[kRows][kColumns];  // first p, then dp and ds
    float* const weight = own_weights + lane.column;
    wait_copies<0>();
    __syncthreads();
    if (lane.busy) {
      multiply_rows<Shape>(scores, keys + lane.row * Shape::kStride,
                           queries + lane.column * Shape::kStride);
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int column = first + lane.column + 8 * j;
        const bool visible = column < lane.queries;
        const float log_sum_exp = visible ? grad.log_sum_exp[head.stats + column] : 0.0f;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const int row = lane.begin + lane.row + 4 * i;
          const bool inside = visible && row < lane.keys;
          const float score = masked_score(in, mask, scores[i][j], column, row, inside);
          scores[i][j] = inside ? fn::fast_exp(score - log_sum_exp) : 0.0f;
        }
      }
      store_scores<Shape>(weight, scores);
      __syncwarp();
      add_product<Shape>(dv, own_weights, gradients + 4 * lane.column);
      multiply_rows<Shape>(scores, values + lane.row * Shape::kStride,
                           gradients + lane.column * Shape::kStride);
    }
    __syncthreads();  // nobody needs these gradients any more
    if (next < lane.queries) {
      load_rows<Shape, Shape::kStreamed>(gradients, g + next * g_step, g_step, lane.queries - next,
                                         width, wide);
    }
    if (lane.busy) {
#pragma unroll
      for (int j = 0; j < kColumns; ++j) {
        const int column = first + lane.column + 8 * j;
        const bool visible = column < lane.queries;
        const float dot = visible ? grad.row_dots[head.stats + column] : 0.0f;
#pragma unroll
        for (int i = 0; i < kRows; ++i) {
          const bool inside = visible && lane.begin + lane.row + 4 * i < lane.keys;
          const float p = weight[i * 4 * Shape::kScoreStride + 8 * j];
          scores[i][j] = inside ? p * (scores[i][j] - dot) : 0.0f;
        }
      }
      store_scores<Shape>(weight, scores);
      __syncwarp();
      add_product<Shape>(dk, own_weights, queries + 4 * lane.column);
    }
    __syncthreads();  // nor these queries
    if (next < lane.queries) {
      load_rows<Shape, Shape::kStreamed>(queries, q + next * q_step, q_step, lane.queries - next,
                                         depth, wide);
    }
    commit_copies();
  }
  wait_copies<0>();
  if (!lane.busy) return;
#pragma unroll
  for (int i = 0; i < kRows; ++i) {
    const int row = lane.begin + lane.row + 4 * i;
    if (row >= lane.keys) continue;
    const int64_t at = head.first_key + row * head.step;
    if (grad.dk != nullptr) {
      store_row<Shape>(grad.dk + at * depth, dk[i], in.scale, 4 * lane.column, depth, wide);
    }
    if (grad.dv != nullptr) {
      store_row<Shape>(grad.dv + at * width, dv[i], 1.0f, 4 * lane.column, width, wide);
    }
  }
}

}  // namespace

void attention_backward(const AttentionGrad<float>& grad, const AttentionInputs<float>& in) {
  constexpr const char* kOp = "attention_backward";
  const bool packed = in.query_offsets != nullptr;
  const int64_t rows = (packed ? 1 : in.batch) * in.heads * in.queries;
  launch(kOp, grid_for(rows * 32), 0, attention_row_dots_kernel<float>, grad.row_dots, grad.g,
         grad.y, rows, in.width, in.heads, packed);
  const bool wide = wide_rows(in) && aligned({grad.g, grad.dq, grad.dk, grad.dv});
  with_attention_dim(std::max(in.depth, in.width), [&](auto dim) {
    using Shape = Backward<dim()>;
    const auto tiles = [&](TileOf of) -> Grid {
      return {attention_tiles(in, of, Shape::kResident), kAttentionThreads};
    };
    if (grad.dq != nullptr || grad.dscores != nullptr) {
      launch(kOp, tiles(TileOf::queries), kBackwardBytes<Shape>,
             attention_grad_queries_kernel<Shape, float>, grad, in, wide);
    }
    if (grad.dk != nullptr || grad.dv != nullptr) {
      launch(kOp, tiles(TileOf::keys), kBackwardBytes<Shape>,
             attention_grad_keys_kernel<Shape, float>, grad, in, wide);
    }
  });
}

}  // namespace graft::cuda
