// The two small products that attention is made of, between rows in memory (of q, k, v or g: any
// stride) and a tile whose kTileLanes columns are tokens:
//
//   multiply_tile    s[r][l]  = sum over c of rows[r][c] t[c][l]
//   add_tile         t[c][l] += sum over r of rows[r][c] s[r][l]
//
// Tokens across the lanes make everything that a softmax does to a score a plain vector operation.
// A block of the result is held in registers. Sums run in order, in f32, whatever the block.
#pragma once

#include <cstdint>

#include "kernels/cpu/vector/lanes.h"

namespace graft::cpu::GRAFT_ISA {

inline constexpr int kTileLanes = 64;  // tokens a tile
inline constexpr int kBlockLanes = 2 * kLanes;
inline constexpr int kBlockRows = kRegisters == 32 ? 8 : 6;
static_assert(kTileLanes % kBlockLanes == 0);

template <int R>
[[gnu::always_inline]] inline void multiply_block(float* s, const float* rows, int64_t step,
                                                  const float* t, int64_t size) {
  Lanes<kLanes> low[R] = {}, high[R] = {};
  for (int64_t c = 0; c < size; ++c) {
    const Lanes<kLanes> a = load<kLanes>(t + c * kTileLanes);
    const Lanes<kLanes> b = load<kLanes>(t + c * kTileLanes + kLanes);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      low[r] += rows[r * step + c] * a;
      high[r] += rows[r * step + c] * b;
    }
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    store<kLanes>(s + r * kTileLanes, low[r]);
    store<kLanes>(s + r * kTileLanes + kLanes, high[r]);
  }
}

template <int C>
[[gnu::always_inline]] inline void add_block(float* t, const float* rows, int64_t step,
                                             const float* s, int64_t count) {
  Lanes<kLanes> low[C], high[C];
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    low[c] = load<kLanes>(t + c * kTileLanes);
    high[c] = load<kLanes>(t + c * kTileLanes + kLanes);
  }
  for (int64_t r = 0; r < count; ++r) {
    const Lanes<kLanes> a = load<kLanes>(s + r * kTileLanes);
    const Lanes<kLanes> b = load<kLanes>(s + r * kTileLanes + kLanes);
#pragma GCC unroll 8
    for (int c = 0; c < C; ++c) {
      low[c] += rows[r * step + c] * a;
      high[c] += rows[r * step + c] * b;
    }
  }
#pragma GCC unroll 8
  for (int c = 0; c < C; ++c) {
    store<kLanes>(t + c * kTileLanes, low[c]);
    store<kLanes>(t + c * kTileLanes + kLanes, high[c]);
  }
}

// Calls body.operator()<n>(i) for blocks of n that cover 0..count-1.
template <class Body>
[[gnu::always_inline]] inline void for_blocks(int64_t count, const Body& body) {
  int64_t i = 0;
  for (; i + kBlockRows <= count; i += kBlockRows) body.template operator()<kBlockRows>(i);
  for (; i + 4 <= count; i += 4) body.template operator()<4>(i);
  for (; i < count; ++i) body.template operator()<1>(i);
}

// Calls body(l) for the first `lanes` lanes and the rest of their last block: loops of a fixed
// length.
template <class Body>
[[gnu::always_inline]] inline void for_lanes(int64_t lanes, const Body& body) {
  for (int64_t from = 0; from < lanes; from += kBlockLanes) {
    for (int l = 0; l < kBlockLanes; ++l) body(from + l);
  }
}

// Only the first `lanes` columns are wanted; a whole number of blocks is computed.
inline void multiply_tile(float* s, const float* rows, int64_t step, int64_t count, const float* t,
                          int64_t size, int64_t lanes) {
  for (int64_t l = 0; l < lanes; l += kBlockLanes) {
    for_blocks(count, [=]<int R>(int64_t r) {
      multiply_block<R>(s + r * kTileLanes + l, rows + r * step, step, t + l, size);
    });
  }
}
inline void add_tile(float* t, int64_t size, const float* rows, int64_t step, const float* s,
                     int64_t count, int64_t lanes) {
  for (int64_t l = 0; l < lanes; l += kBlockLanes) {
    for_blocks(size, [=]<int C>(int64_t c) {
      add_block<C>(t + c * kTileLanes + l, rows + c, step, s + l, count);
    });
  }
}

// 8 x 8 elements, transposed by shuffles.
[[gnu::always_inline]] inline void transpose_8(float* to, int64_t to_step, const float* from,
                                               int64_t from_step) {
  typedef int Index __attribute__((vector_size(32)));
  Lanes<8> x[8], y[8];
#pragma GCC unroll 8
  for (int i = 0; i < 8; ++i) x[i] = load<8>(from + i * from_step);
#pragma GCC unroll 4
  for (int i = 0; i < 8; i += 2) {
    y[i] = __builtin_shuffle(x[i], x[i + 1], Index{0, 8, 1, 9, 4, 12, 5, 13});
    y[i + 1] = __builtin_shuffle(x[i], x[i + 1], Index{2, 10, 3, 11, 6, 14, 7, 15});
  }
#pragma GCC unroll 8
  for (int i = 0; i < 4; ++i) {
    const int j = i / 2 * 4 + i % 2;  // 0, 1, 4, 5
    x[2 * i] = __builtin_shuffle(y[j], y[j + 2], Index{0, 1, 8, 9, 4, 5, 12, 13});
    x[2 * i + 1] = __builtin_shuffle(y[j], y[j + 2], Index{2, 3, 10, 11, 6, 7, 14, 15});
  }
#pragma GCC unroll 4
  for (int i = 0; i < 4; ++i) {
    store<8>(to + i * to_step, __builtin_shuffle(x[i], x[i + 4], Index{0, 1, 2, 3, 8, 9, 10, 11}));
    store<8>(to + (i + 4) * to_step,
             __builtin_shuffle(x[i], x[i + 4], Index{4, 5, 6, 7, 12, 13, 14, 15}));
  }
}

// t[c][l] = rows[l][c] for l < count, 0 for the lanes behind.
inline void load_transposed(float* t, const float* rows, int64_t step, int64_t count,
                            int64_t size) {
  const int64_t whole_rows = count / 8 * 8, whole = size / 8 * 8;
  for (int64_t c = 0; c < whole; c += 8) {
    for (int64_t l = 0; l < whole_rows; l += 8) {
      transpose_8(t + c * kTileLanes + l, kTileLanes, rows + l * step + c, step);
    }
  }
  for (int64_t c = 0; c < size; ++c) {
    float* to = t + c * kTileLanes;
    for (int64_t l = c < whole ? whole_rows : 0; l < count; ++l) to[l] = rows[l * step + c];
    for (int64_t l = count; l < kTileLanes; ++l) to[l] = 0;
  }
}
// rows[l][c] = t[c][l] for l < count.
inline void store_transposed(float* rows, int64_t step, const float* t, int64_t count,
                             int64_t size) {
  const int64_t whole_rows = count / 8 * 8, whole = size / 8 * 8;
  for (int64_t l = 0; l < whole_rows; l += 8) {
    for (int64_t c = 0; c < whole; c += 8) {
      transpose_8(rows + l * step + c, step, t + c * kTileLanes + l, kTileLanes);
    }
  }
  for (int64_t l = 0; l < count; ++l) {
    for (int64_t c = l < whole_rows ? whole : 0; c < size; ++c) {
      rows[l * step + c] = t[c * kTileLanes + l];
    }
  }
}

}  // namespace graft::cpu::GRAFT_ISA
