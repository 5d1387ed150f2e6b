// Attention, forward and backward, without a matrix of scores in memory.
//
//   y = softmax(s) v,  s = q k^T scale + mask;   with p = e^(s - log_sum_exp):
//   dv = p^T g,  dp = g v^T,  ds = p (dp - rowsum(g y)),  dq = scale ds k,  dk = scale ds^T q
//
// Source: Dao et al. 2022 and 2023 (FlashAttention, FlashAttention-2). A thread takes a tile of 64
// queries of one head (dk, dv: of 64 keys), turned so that tokens lie across the vector's lanes
// (attention_tiles.h), and goes through the other side in tiles of 64 with the online softmax.
//
// Layout: kernels/attention.h, no alignment assumed.
// Numerics: f32. A maximum of -infinity counts as 0 in the exponents; a row whose scores are all
// -infinity becomes 0 / 0 = NaN, as do rows with NaN or +infinity.
// Deterministic: a tile is one thread's, in the order of the tokens.
#include "kernels/attention.h"

#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vector/attention_tiles.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

using Inputs = AttentionInputs<float>;
constexpr int64_t kTile = kTileLanes;

// Parts of a thread's working memory, one after the other.
class Memory {
 public:
  explicit Memory(int64_t floats)
      : next_(static_cast<float*>(scratch(static_cast<size_t>(floats) * sizeof(float)))) {}
  float* take(int64_t floats) {
    float* taken = next_;
    next_ += floats;
    return taken;
  }

 private:
  float* next_;
};

// Calls body(tile, lanes) for every tile that holds tokens; the body's thread is its own.
template <class Body>
void for_tiles(const Inputs& in, TileOf of, int64_t cost, const Body& body) {
  parallel_for(attention_tiles(in, of, kTile), cost, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const AttentionTile tile = attention_tile(in, of, kTile, i);
      const int64_t tokens = of == TileOf::queries ? tile.head.queries : tile.head.keys;
      if (tile.begin >= tokens) continue;
      body(tile, std::min(kTile, tokens - tile.begin));
    }
  });
}

// Multiplications of a tile, for parallel_for.
int64_t cost_of(const Inputs& in, int64_t others) {
  const int64_t sequences = in.query_offsets != nullptr ? std::max<int64_t>(1, in.batch) : 1;
  return (in.depth + in.width) * kTile * std::max<int64_t>(1, others / sequences);
}

// s = s scale + mask for one row of a tile; the mask of lane l is at mask[l * step].
[[gnu::always_inline]] inline void scale_row(float* __restrict s, float scale,
                                             const float* __restrict mask, int64_t step,
                                             int64_t lanes) {
  if (mask == nullptr || step == 0) {
    const float value = mask == nullptr ? 0.0f : *mask;
    for_lanes(lanes, [=](int64_t l) { s[l] = s[l] * scale + value; });
  } else if (step == 1) {
    for (int64_t l = 0; l < lanes; ++l) s[l] = s[l] * scale + mask[l];
  } else {
    for (int64_t l = 0; l < lanes; ++l) s[l] = s[l] * scale + mask[l * step];
  }
}

// One tile of scores into the running maximum, sum and result of its queries.
void add_scores(float* __restrict s, int64_t rows, float* __restrict largest,
                float* __restrict total, float* __restrict o, int64_t width, int64_t lanes) {
  constexpr int kBlock = kBlockLanes;
  for (int64_t from = 0; from < lanes; from += kBlock) {
    float *m = largest + from, *sum = total + from;
    float top[kBlock], shift[kBlock], kept[kBlock];
    for (int l = 0; l < kBlock; ++l) top[l] = m[l];
    for (int64_t r = 0; r < rows; ++r) {
      const float* row = s + r * kTile + from;
      for (int l = 0; l < kBlock; ++l) top[l] = row[l] > top[l] ? row[l] : top[l];
    }
    for (int l = 0; l < kBlock; ++l) {
      shift[l] = top[l] == -__builtin_inff() ? 0.0f : top[l];
      kept[l] = fn::fast_exp(m[l] - shift[l]);
      m[l] = top[l];
      top[l] = sum[l] * kept[l];  // from here on the sum
    }
    for (int64_t r = 0; r < rows; ++r) {
      float* row = s + r * kTile + from;
      for (int l = 0; l < kBlock; ++l) {
        row[l] = fn::fast_exp(row[l] - shift[l]);
        top[l] += row[l];
      }
    }
    for (int l = 0; l < kBlock; ++l) sum[l] = top[l];
    for (int64_t c = 0; c < width; ++c) {
      for (int l = 0; l < kBlock; ++l) o[c * kTile + from + l] *= kept[l];
    }
  }
}

void set(float* to, int64_t n, float value) {
  for (int64_t i = 0; i < n; ++i) to[i] = value;
}

// rowsum(g y) of the rows of a tile.
void dot_rows(float* dots, const float* g, const float* y, int64_t step, int64_t rows,
              int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; ++c) sum += g[r * step + c] * y[r * step + c];
    dots[r] = sum;
  }
}

void grad_queries(const AttentionGrad<float>& grad, const Inputs& in) {
  const int64_t depth = in.depth, width = in.width;
  const int64_t floats = kTile * (2 * depth + width + 2 * kTile);
  for_tiles(in, TileOf::queries, cost_of(in, in.keys), [&](const AttentionTile& tile, int64_t n) {
    const AttentionHead& head = tile.head;
    const int64_t row = head.first_query + tile.begin * head.step;
    const int64_t k_step = head.step * depth, v_step = head.step * width;
    float* dots = grad.row_dots + head.stats + tile.begin;
    dot_rows(dots, grad.g + row * width, grad.y + row * width, v_step, n, width);
    if (grad.dq == nullptr && grad.dscores == nullptr) return;
    Memory memory(floats);
    float *q = memory.take(kTile * depth), *dq = memory.take(kTile * depth);
    float *g = memory.take(kTile * width), *s = memory.take(kTile * kTile);
    float* dp = memory.take(kTile * kTile);
    float log_sum_exp[kTile] = {}, dot[kTile] = {};
    for (int64_t l = 0; l < n; ++l) {
      log_sum_exp[l] = grad.log_sum_exp[head.stats + tile.begin + l];
      dot[l] = dots[l];
    }
    load_transposed(q, in.q + row * depth, k_step, n, depth);
    load_transposed(g, grad.g + row * width, v_step, n, width);
    set(dq, kTile * depth, 0);
    for (int64_t first = 0; first < head.keys; first += kTile) {
      const int64_t rows = std::min(kTile, head.keys - first);
      const float* keys = in.k + (head.first_key + first * head.step) * depth;
      const float* values = in.v + (head.first_key + first * head.step) * width;
      multiply_tile(s, keys, k_step, rows, q, depth, n);
      multiply_tile(dp, values, v_step, rows, g, width, n);
      for (int64_t r = 0; r < rows; ++r) {
        float *sr = s + r * kTile, *dpr = dp + r * kTile;
        const float* mask = in.mask == nullptr
                                ? nullptr
                                : in.mask + head.mask + tile.begin * in.mask_strides[2] +
                                      (first + r) * in.mask_strides[3];
        scale_row(sr, in.scale, mask, in.mask_strides[2], n);
        for_lanes(n, [&](int64_t l) {
          dpr[l] = fn::fast_exp(sr[l] - log_sum_exp[l]) * (dpr[l] - dot[l]);
        });
        if (grad.dscores != nullptr) {
          float* to = grad.dscores + head.scores + tile.begin * head.keys + first + r;
          for (int64_t l = 0; l < n; ++l) to[l * head.keys] = dpr[l];
        }
      }
      add_tile(dq, depth, keys, k_step, dp, rows, n);
    }
    if (grad.dq == nullptr) return;
    for (int64_t i = 0; i < kTile * depth; ++i) dq[i] *= in.scale;
    store_transposed(grad.dq + row * depth, k_step, dq, n, depth);
  });
}

void grad_keys(const AttentionGrad<float>& grad, const Inputs& in) {
  const int64_t depth = in.depth, width = in.width;
  const int64_t floats = 2 * kTile * (depth + width + kTile);
  for_tiles(in, TileOf::keys, cost_of(in, in.queries), [&](const AttentionTile& tile, int64_t n) {
    const AttentionHead& head = tile.head;
    const int64_t row = head.first_key + tile.begin * head.step;
    const int64_t q_step = head.step * depth, g_step = head.step * width;
    Memory memory(floats);
    float *k = memory.take(kTile * depth), *dk = memory.take(kTile * depth);
    float *v = memory.take(kTile * width), *dv = memory.take(kTile * width);
    float *s = memory.take(kTile * kTile), *dp = memory.take(kTile * kTile);
    load_transposed(k, in.k + row * depth, q_step, n, depth);
    load_transposed(v, in.v + row * width, g_step, n, width);
    set(dk, kTile * depth, 0);
    set(dv, kTile * width, 0);
    for (int64_t first = 0; first < head.queries; first += kTile) {
      const int64_t rows = std::min(kTile, head.queries - first);
      const float* queries = in.q + (head.first_query + first * head.step) * depth;
      const float* gradients = grad.g + (head.first_query + first * head.step) * width;
      multiply_tile(s, queries, q_step, rows, k, depth, n);
      multiply_tile(dp, gradients, g_step, rows, v, width, n);
      for (int64_t r = 0; r < rows; ++r) {
        float *sr = s + r * kTile, *dpr = dp + r * kTile;
        const float* mask = in.mask == nullptr
                                ? nullptr
                                : in.mask + head.mask + (first + r) * in.mask_strides[2] +
                                      tile.begin * in.mask_strides[3];
        scale_row(sr, in.scale, mask, in.mask_strides[3], n);
        const float log_sum_exp = grad.log_sum_exp[head.stats + first + r];
        const float dot = grad.row_dots[head.stats + first + r];
        for_lanes(n, [=](int64_t l) {
          const float p = fn::fast_exp(sr[l] - log_sum_exp);
          sr[l] = p;
          dpr[l] = p * (dpr[l] - dot);
        });
      }
      add_tile(dv, width, gradients, g_step, s, rows, n);
      add_tile(dk, depth, queries, q_step, dp, rows, n);
    }
    if (grad.dk != nullptr) {
      for (int64_t i = 0; i < kTile * depth; ++i) dk[i] *= in.scale;
      store_transposed(grad.dk + row * depth, q_step, dk, n, depth);
    }
    if (grad.dv != nullptr) store_transposed(grad.dv + row * width, g_step, dv, n, width);
  });
}

}  // namespace

void attention_forward(float* y, float* log_sum_exp, const AttentionInputs<float>& in) {
  const int64_t depth = in.depth, width = in.width;
  const int64_t floats = kTile * (depth + width + kTile);
  for_tiles(in, TileOf::queries, cost_of(in, in.keys), [&](const AttentionTile& tile, int64_t n) {
    const AttentionHead& head = tile.head;
    const int64_t row = head.first_query + tile.begin * head.step;
    const int64_t k_step = head.step * depth, v_step = head.step * width;
    Memory memory(floats);
    float *q = memory.take(kTile * depth), *o = memory.take(kTile * width);
    float* s = memory.take(kTile * kTile);
    float largest[kTile], total[kTile];
    set(largest, kTile, -__builtin_inff());
    set(total, kTile, 0);
    set(o, kTile * width, 0);
    load_transposed(q, in.q + row * depth, k_step, n, depth);
    for (int64_t first = 0; first < head.keys; first += kTile) {
      const int64_t rows = std::min(kTile, head.keys - first);
      const int64_t at = head.first_key + first * head.step;
      multiply_tile(s, in.k + at * depth, k_step, rows, q, depth, n);
      for (int64_t r = 0; r < rows; ++r) {
        const float* mask = in.mask == nullptr
                                ? nullptr
                                : in.mask + head.mask + tile.begin * in.mask_strides[2] +
                                      (first + r) * in.mask_strides[3];
        scale_row(s + r * kTile, in.scale, mask, in.mask_strides[2], n);
      }
      add_scores(s, rows, largest, total, o, width, n);
      add_tile(o, width, in.v + at * width, v_step, s, rows, n);
    }
    if (log_sum_exp != nullptr) {
      for (int64_t l = 0; l < n; ++l) {
        log_sum_exp[head.stats + tile.begin + l] = largest[l] + std::log(total[l]);
      }
    }
    for (int64_t l = 0; l < kTile; ++l) total[l] = head.keys > 0 ? 1.0f / total[l] : 0.0f;
    for (int64_t c = 0; c < width; ++c) {
      for (int64_t l = 0; l < kTile; ++l) o[c * kTile + l] *= total[l];
    }
    store_transposed(y + row * width, v_step, o, n, width);
  });
}

void attention_backward(const AttentionGrad<float>& grad, const AttentionInputs<float>& in) {
  grad_queries(grad, in);
  if (grad.dk != nullptr || grad.dv != nullptr) grad_keys(grad, in);
}

}  // namespace graft::cpu::GRAFT_ISA
