// What attention reads and writes, and how its work is cut into tiles: for the CPU and CUDA alike.
#pragma once

#include <cstdint>

#include "kernels/isa.h"

namespace graft {

// The largest depth and width that the CUDA kernels take.
constexpr int64_t kMostAttentionDepth = 256;

// Two layouts. Dense: q (batch, heads, queries, depth), k (batch, heads, keys, depth), v (batch,
// heads, keys, width). Packed, with both offsets: sequences of any lengths one after the other, q
// (queries, heads, depth), k (keys, heads, depth), v (keys, heads, width); sequence b is the
// queries query_offsets[b] .. query_offsets[b + 1] - 1 and likewise its keys, so that offsets
// ascend from 0 to `queries` (`keys`). The result looks like q with rows of `width`.
//
// Offsets are read on the device and trusted to ascend; where they do not, results are wrong, but
// nothing outside the arrays is touched.
template <class T>
struct AttentionInputs {
  int64_t batch = 0, heads = 0;
  int64_t queries = 0, keys = 0;  // of one sequence; packed: of all together
  int64_t depth = 0, width = 0;
  const T* q = nullptr;
  const T* k = nullptr;
  const T* v = nullptr;
  float scale = 1;
  // Added to the scaled scores; null: nothing. Strides of sequence, head, query and key, 0 where
  // the mask is repeated. Dense only.
  const float* mask = nullptr;
  int64_t mask_strides[4] = {};
  const int64_t* query_offsets = nullptr;
  const int64_t* key_offsets = nullptr;
};

// What the backward pass reads and writes besides. log_sum_exp and row_dots hold a number for each
// query of each head: (batch, heads, queries), packed (heads, queries).
template <class T>
struct AttentionGrad {
  const T* g = nullptr;  // gradient of y
  const T* y = nullptr;
  const float* log_sum_exp = nullptr;
  float* row_dots = nullptr;  // working memory, contents arbitrary
  T* dq = nullptr;            // null: not wanted
  T* dk = nullptr;
  T* dv = nullptr;
  float* dscores = nullptr;  // (batch, heads, queries, keys): gradient of score + mask. Dense only
};

// One head of one sequence. Token i of the head is row first + i * step of its array.
struct AttentionHead {
  int64_t queries, keys;
  int64_t first_query, first_key, step;
  int64_t stats;   // where its log_sum_exp begins
  int64_t mask;    // where its mask begins
  int64_t scores;  // where its dscores begin
};

// A tile of a head: its queries (or keys) from `begin` on. There may be none left.
struct AttentionTile {
  AttentionHead head;
  int64_t begin;
};

enum class TileOf : uint8_t { queries, keys };

inline namespace GRAFT_ISA_NAMESPACE {

GRAFT_HD inline int64_t clamp_index(int64_t value, int64_t low, int64_t high) {
  return value < low ? low : (value > high ? high : value);
}

template <class T>
GRAFT_HD AttentionHead attention_head(const AttentionInputs<T>& in, int64_t b, int64_t h) {
  AttentionHead head;
  if (in.query_offsets == nullptr) {
    const int64_t index = b * in.heads + h;
    head.queries = in.queries;
    head.keys = in.keys;
    head.first_query = head.stats = index * in.queries;
    head.first_key = index * in.keys;
    head.step = 1;
  } else {
    const int64_t query = clamp_index(in.query_offsets[b], 0, in.queries);
    const int64_t key = clamp_index(in.key_offsets[b], 0, in.keys);
    head.queries = clamp_index(in.query_offsets[b + 1], query, in.queries) - query;
    head.keys = clamp_index(in.key_offsets[b + 1], key, in.keys) - key;
    head.first_query = query * in.heads + h;
    head.first_key = key * in.heads + h;
    head.step = in.heads;
    head.stats = h * in.queries + query;
  }
  head.mask = b * in.mask_strides[0] + h * in.mask_strides[1];
  head.scores = (b * in.heads + h) * in.queries * in.keys;
  return head;
}

// How many tiles of `size` tokens cover all heads: a number that does not need the offsets, which
// the host cannot read. Packed: sequence b gets the tiles from offsets[b] / size + b on, one more
// than its tokens fill at most.
template <class T>
GRAFT_HD int64_t attention_tiles(const AttentionInputs<T>& in, TileOf of, int64_t size) {
  const int64_t tokens = of == TileOf::queries ? in.queries : in.keys;
  if (in.query_offsets != nullptr) return in.heads * (tokens / size + in.batch);
  return in.batch * in.heads * ((tokens + size - 1) / size);
}

// Neighbouring tiles belong to the same head, whose other operands are in the cache then.
template <class T>
GRAFT_HD AttentionTile attention_tile(const AttentionInputs<T>& in, TileOf of, int64_t size,
                                      int64_t index) {
  const int64_t tokens = of == TileOf::queries ? in.queries : in.keys;
  if (in.query_offsets == nullptr) {
    const int64_t tiles = (tokens + size - 1) / size, which = index / tiles;
    return {attention_head(in, which / in.heads, which % in.heads), index % tiles * size};
  }
  const int64_t* offsets = of == TileOf::queries ? in.query_offsets : in.key_offsets;
  const int64_t tiles = tokens / size + in.batch, slot = index % tiles;
  int64_t low = 0, high = in.batch;  // the last sequence whose tiles begin at or before the slot
  while (high - low > 1) {
    const int64_t middle = (low + high) / 2;
    (offsets[middle] / size + middle <= slot ? low : high) = middle;
  }
  const int64_t begin = (slot - (clamp_index(offsets[low], 0, tokens) / size + low)) * size;
  return {attention_head(in, low, index / tiles), begin < 0 ? 0 : begin};
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
