// Softmax, log-softmax and their gradients along the middle axis of (outer, axis, inner).
//
//   y = e^(x - max) / sum;        dx = y (g - sum(g y))
//   y = x - max - log(sum);       dx = g - e^y sum(g)
//
// Layout: row-major, no alignment assumed. inner == 1 (the last axis) works along the row;
// otherwise the loops run over `inner`, which is contiguous, in tiles of 256 columns.
//
// Numerics: f32; the maximum is subtracted first, so no finite input overflows. A row with NaN or
// +inf, or of -inf only, becomes NaN, as in PyTorch. Deterministic: every row or column is one
// thread's.
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kTile = 256;

float row_max(const float* x, int64_t n) {
  float m = -__builtin_inff();
#pragma omp simd reduction(max : m)
  for (int64_t j = 0; j < n; ++j) m = x[j] > m ? x[j] : m;
  return m;
}

// Calls row(offset) for every row when inner is 1, else tile(offset, columns) for tiles of columns.
template <class Row, class Tile>
void for_each_line(int64_t outer, int64_t axis, int64_t inner, const Row& row, const Tile& tile) {
  if (inner == 1) {
    parallel_for(outer, 8 * axis, [&](int64_t begin, int64_t end) {
      for (int64_t o = begin; o < end; ++o) row(o * axis);
    });
    return;
  }
  const int64_t tiles = (inner + kTile - 1) / kTile;
  const int64_t columns = inner < kTile ? inner : kTile;
  parallel_for(outer * tiles, 8 * axis * columns, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t from = i % tiles * kTile;
      tile(i / tiles * axis * inner + from, inner - from < kTile ? inner - from : kTile);
    }
  });
}

void tile_max(float* __restrict m, const float* __restrict x, int64_t axis, int64_t inner,
              int64_t columns) {
  for (int64_t j = 0; j < columns; ++j) m[j] = -__builtin_inff();
  for (int64_t a = 0; a < axis; ++a) {
    for (int64_t j = 0; j < columns; ++j) m[j] = x[a * inner + j] > m[j] ? x[a * inner + j] : m[j];
  }
}

}  // namespace

void softmax(float* y, const float* x, int64_t outer, int64_t axis, int64_t inner) {
  for_each_line(
      outer, axis, inner,
      [=](int64_t at) {
        const float* __restrict in = x + at;
        float* __restrict out = y + at;
        const float m = row_max(in, axis);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < axis; ++j) {
          const float e = fn::fast_exp(in[j] - m);
          out[j] = e;
          sum += e;
        }
        const float scale = 1.0f / sum;
        for (int64_t j = 0; j < axis; ++j) out[j] *= scale;
      },
      [=](int64_t at, int64_t columns) {
        const float* __restrict in = x + at;
        float* __restrict out = y + at;
        float m[kTile], sum[kTile];
        tile_max(m, in, axis, inner, columns);
        for (int64_t j = 0; j < columns; ++j) sum[j] = 0;
        for (int64_t a = 0; a < axis; ++a) {
          for (int64_t j = 0; j < columns; ++j) {
            const float e = fn::fast_exp(in[a * inner + j] - m[j]);
            out[a * inner + j] = e;
            sum[j] += e;
          }
        }
        for (int64_t j = 0; j < columns; ++j) sum[j] = 1.0f / sum[j];
        for (int64_t a = 0; a < axis; ++a) {
          for (int64_t j = 0; j < columns; ++j) out[a * inner + j] *= sum[j];
        }
      });
}

void softmax_grad(float* dx, const float* y, const float* g, int64_t outer, int64_t axis,
                  int64_t inner) {
  for_each_line(
      outer, axis, inner,
      [=](int64_t at) {
        float dot = 0;
#pragma omp simd reduction(+ : dot)
        for (int64_t j = 0; j < axis; ++j) dot += g[at + j] * y[at + j];
        for (int64_t j = 0; j < axis; ++j) dx[at + j] = y[at + j] * (g[at + j] - dot);
      },
      [=](int64_t at, int64_t columns) {
        float dot[kTile];
        for (int64_t j = 0; j < columns; ++j) dot[j] = 0;
        for (int64_t a = 0; a < axis; ++a) {
          const int64_t row = at + a * inner;
          for (int64_t j = 0; j < columns; ++j) dot[j] += g[row + j] * y[row + j];
        }
        for (int64_t a = 0; a < axis; ++a) {
          const int64_t row = at + a * inner;
          for (int64_t j = 0; j < columns; ++j) dx[row + j] = y[row + j] * (g[row + j] - dot[j]);
        }
      });
}

void log_softmax(float* y, const float* x, int64_t outer, int64_t axis, int64_t inner) {
  for_each_line(
      outer, axis, inner,
      [=](int64_t at) {
        const float* __restrict in = x + at;
        float* __restrict out = y + at;
        const float m = row_max(in, axis);
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < axis; ++j) sum += fn::fast_exp(in[j] - m);
        const float log_sum = std::log(sum);
        for (int64_t j = 0; j < axis; ++j) out[j] = (in[j] - m) - log_sum;
      },
      [=](int64_t at, int64_t columns) {
        const float* __restrict in = x + at;
        float* __restrict out = y + at;
        float m[kTile], sum[kTile];
        tile_max(m, in, axis, inner, columns);
        for (int64_t j = 0; j < columns; ++j) sum[j] = 0;
        for (int64_t a = 0; a < axis; ++a) {
          for (int64_t j = 0; j < columns; ++j) sum[j] += fn::fast_exp(in[a * inner + j] - m[j]);
        }
        for (int64_t j = 0; j < columns; ++j) sum[j] = std::log(sum[j]);
        for (int64_t a = 0; a < axis; ++a) {
          for (int64_t j = 0; j < columns; ++j) {
            out[a * inner + j] = (in[a * inner + j] - m[j]) - sum[j];
          }
        }
      });
}

void log_softmax_grad(float* dx, const float* y, const float* g, int64_t outer, int64_t axis,
                      int64_t inner) {
  for_each_line(
      outer, axis, inner,
      [=](int64_t at) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < axis; ++j) sum += g[at + j];
        for (int64_t j = 0; j < axis; ++j) {
          dx[at + j] = g[at + j] - fn::fast_exp(y[at + j]) * sum;
        }
      },
      [=](int64_t at, int64_t columns) {
        float sum[kTile];
        for (int64_t j = 0; j < columns; ++j) sum[j] = 0;
        for (int64_t a = 0; a < axis; ++a) {
          for (int64_t j = 0; j < columns; ++j) sum[j] += g[at + a * inner + j];
        }
        for (int64_t a = 0; a < axis; ++a) {
          const int64_t row = at + a * inner;
          for (int64_t j = 0; j < columns; ++j) {
            dx[row + j] = g[row + j] - fn::fast_exp(y[row + j]) * sum[j];
          }
        }
      });
}

}  // namespace graft::cpu::GRAFT_ISA
