// Attention, forward and backward, without a matrix of scores in memory.
//
//   y = softmax(s) v,  s = q k^T scale + mask;   with p = e^(s - log_sum_exp):
//   dv = p^T g,  dp = g v^T,  ds = p (dp - rowsum(g y)),  dq = scale ds k,  dk = scale ds^T q
//
// Source: Dao et al. 2022 and 2023 (FlashAttention, FlashAttention-2). Forward, a thread takes a
// tile of 64 queries of one head, turned so that tokens lie across the vector's lanes
// (attention_tiles.h), and goes through the keys in tiles of 64 with the online softmax. Backward,
// a thread takes a head, its keys in tiles of 64 across the lanes, and goes through the queries.
//
// Layout: kernels/attention.h, no alignment assumed.
// Numerics: f32. A maximum of -infinity counts as 0 in the exponents; a row whose scores are all
// -infinity becomes 0 / 0 = NaN, as do rows with NaN or +infinity.
// Deterministic: a tile (backward: a head) is one thread's, in the order of the tokens.
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

// Multiplications of `queries` queries of a head with its keys, for parallel_for.
int64_t cost_of(const Inputs& in, int64_t queries) {
  const int64_t sequences = in.query_offsets != nullptr ? in.batch : 1;
  return (in.depth + in.width) * queries * std::max<int64_t>(1, in.keys / sequences);
}

// s = s scale + mask for the lanes of a row of scores, whose mask begins at (query, key) and goes
// on by `step`.
[[gnu::always_inline]] inline void scale_row(float* __restrict s, const Inputs& in,
                                             const AttentionHead& head, int64_t query, int64_t key,
                                             int64_t step, int64_t lanes) {
  const float scale = in.scale;
  const float* __restrict mask =
      in.mask == nullptr
          ? nullptr
          : in.mask + head.mask + query * in.mask_strides[2] + key * in.mask_strides[3];
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

// A tile of queries through all keys.
void forward_tile(float* y, float* log_sum_exp, const Inputs& in, const AttentionTile& tile) {
  const AttentionHead& head = tile.head;
  const int64_t n = std::min(kTile, head.queries - tile.begin);
  if (n <= 0) return;
  const int64_t depth = in.depth, width = in.width;
  const int64_t k_step = head.step * depth, v_step = head.step * width;
  const int64_t row = head.first_query + tile.begin * head.step;
  Memory memory(kTile * (depth + width + kTile));
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
      scale_row(s + r * kTile, in, head, tile.begin, first + r, in.mask_strides[2], n);
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
}

// rowsum(g y) of n rows.
void dot_rows(float* dots, const float* g, const float* y, int64_t step, int64_t rows,
              int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    float sum = 0;
#pragma omp simd reduction(+ : sum)
    for (int64_t c = 0; c < width; ++c) sum += g[r * step + c] * y[r * step + c];
    dots[r] = sum;
  }
}

// Rows as they are, cut into pieces of 64 elements, one tile a piece; zeros behind the last.
void load_plain(float* t, const float* rows, int64_t step, int64_t count, int64_t size) {
  for (int64_t from = 0; from < size; from += kTile, t += kTile * kTile) {
    const int64_t wide = std::min(kTile, size - from);
    for (int64_t l = 0; l < count; ++l) {
      for (int64_t c = 0; c < wide; ++c) t[l * kTile + c] = rows[l * step + from + c];
      for (int64_t c = wide; c < kTile; ++c) t[l * kTile + c] = 0;
    }
  }
}

// dq[r] += scale ds[r] k for the queries r of a tile and `count` keys, of load_plain(). `product`
// is working memory, a tile. Here the elements of a row lie across the lanes.
void add_to_queries(float* dq, int64_t step, int64_t depth, const float* ds, int64_t rows,
                    const float* plain, int64_t count, float scale, float* product) {
  for (int64_t from = 0; from < depth; from += kTile, plain += kTile * kTile) {
    const int64_t size = std::min(kTile, depth - from);
    multiply_tile(product, ds, kTile, rows, plain, count, size);
    for (int64_t r = 0; r < rows; ++r) {
      float* __restrict to = dq + r * step + from;
      for (int64_t c = 0; c < size; ++c) to[c] += scale * product[r * kTile + c];
    }
  }
}

// All gradients of one head: a tile of 64 keys at a time, and the queries passing by.
void grad_head(const AttentionGrad<float>& grad, const Inputs& in, const AttentionHead& head) {
  const int64_t depth = in.depth, width = in.width;
  const int64_t q_step = head.step * depth, g_step = head.step * width;
  const float* queries = in.q + head.first_query * depth;
  const float* gradients = grad.g + head.first_query * width;
  const float* log_sum_exp = grad.log_sum_exp + head.stats;
  float* dots = grad.row_dots + head.stats;
  float* dq = grad.dq == nullptr ? nullptr : grad.dq + head.first_query * depth;
  dot_rows(dots, gradients, grad.y + head.first_query * width, g_step, head.queries, width);
  if (dq != nullptr) {
    for (int64_t i = 0; i < head.queries; ++i) set(dq + i * q_step, depth, 0);
  }
  const int64_t pieces = (depth + kTile - 1) / kTile;
  Memory memory(2 * kTile * (depth + width) + (3 + pieces) * kTile * kTile);
  float *k = memory.take(kTile * depth), *dk = memory.take(kTile * depth);
  float *v = memory.take(kTile * width), *dv = memory.take(kTile * width);
  float *s = memory.take(kTile * kTile), *ds = memory.take(kTile * kTile);
  float *product = memory.take(kTile * kTile), *plain = memory.take(pieces * kTile * kTile);
  for (int64_t begin = 0; begin < head.keys; begin += kTile) {
    const int64_t n = std::min(kTile, head.keys - begin);
    const int64_t row = head.first_key + begin * head.step;
    load_transposed(k, in.k + row * depth, q_step, n, depth);
    load_transposed(v, in.v + row * width, g_step, n, width);
    if (dq != nullptr) load_plain(plain, in.k + row * depth, q_step, n, depth);
    set(dk, kTile * depth, 0);
    set(dv, kTile * width, 0);
    for (int64_t first = 0; first < head.queries; first += kTile) {
      const int64_t rows = std::min(kTile, head.queries - first);
      const float *q = queries + first * q_step, *g = gradients + first * g_step;
      multiply_tile(s, q, q_step, rows, k, depth, n);
      multiply_tile(ds, g, g_step, rows, v, width, n);
      for (int64_t r = 0; r < rows; ++r) {
        float *sr = s + r * kTile, *dsr = ds + r * kTile;
        scale_row(sr, in, head, first + r, begin, in.mask_strides[3], n);
        const float shift = log_sum_exp[first + r], dot = dots[first + r];
        for_lanes(n, [=](int64_t l) {
          const float p = fn::fast_exp(sr[l] - shift);
          sr[l] = p;
          dsr[l] = p * (dsr[l] - dot);
        });
        if (grad.dscores != nullptr) {
          float* to = grad.dscores + head.scores + (first + r) * head.keys + begin;
          for (int64_t l = 0; l < n; ++l) to[l] = dsr[l];
        }
      }
      if (grad.dv != nullptr) add_tile(dv, width, g, g_step, s, rows, n);
      if (grad.dk != nullptr) add_tile(dk, depth, q, q_step, ds, rows, n);
      if (dq != nullptr) {
        add_to_queries(dq + first * q_step, q_step, depth, ds, rows, plain, n, in.scale, product);
      }
    }
    if (grad.dk != nullptr) {
      for (int64_t i = 0; i < kTile * depth; ++i) dk[i] *= in.scale;
      store_transposed(grad.dk + row * depth, q_step, dk, n, depth);
    }
    if (grad.dv != nullptr) store_transposed(grad.dv + row * width, g_step, dv, n, width);
  }
}

}  // namespace

void attention_forward(float* y, float* log_sum_exp, const AttentionInputs<float>& in) {
  parallel_for(attention_tiles(in, TileOf::queries, kTile), cost_of(in, kTile),
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   forward_tile(y, log_sum_exp, in, attention_tile(in, TileOf::queries, kTile, i));
                 }
               });
}

void attention_backward(const AttentionGrad<float>& grad, const AttentionInputs<float>& in) {
  parallel_for(in.batch * in.heads, 3 * cost_of(in, in.queries), [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      grad_head(grad, in, attention_head(in, i / in.heads, i % in.heads));
    }
  });
}

}  // namespace graft::cpu::GRAFT_ISA
