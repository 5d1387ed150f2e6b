// Sum, mean and maximum over the middle of (outer, axis, inner).
// Layout: contiguous f32. Numerics: sums gather in double, so that a channel's sum over a whole
// batch is exact to f32; the lanes are written out because the compiler may not reorder additions.
// Determinism: the order of additions depends on the shape alone.
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kLanes = 16;
constexpr int64_t kTile = 256;  // columns handled together: their sums stay in the first cache

double sum_run(const float* x, int64_t n) {
  double lanes[kLanes] = {};
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) {
    for (int64_t k = 0; k < kLanes; ++k) lanes[k] += static_cast<double>(x[i + k]);
  }
  double sum = 0;
  for (; i < n; ++i) sum += static_cast<double>(x[i]);
  for (int64_t k = 0; k < kLanes; ++k) sum += lanes[k];
  return sum;
}

bool beats(float value, float best) { return value > best || (value != value && best == best); }

}  // namespace

void reduce_sum(float* y, const float* x, const ReduceShape& s, double divisor, double* partial) {
  const int64_t chunks = s.chunks();
  const int64_t tiles = (s.inner + kTile - 1) / kTile;
  const int64_t rows = (s.axis + chunks - 1) / chunks;
  // One task sums one chunk of the axis for one tile of columns.
  parallel_for(
      s.outer * chunks * tiles, rows * std::min(s.inner, kTile), [&](int64_t t, int64_t end) {
        for (; t < end; ++t) {
          const int64_t column = t % tiles * kTile, chunk = t / tiles % chunks,
                        o = t / tiles / chunks;
          const int64_t width = std::min(kTile, s.inner - column);
          const int64_t first = s.axis * chunk / chunks, last = s.axis * (chunk + 1) / chunks;
          const float* from = x + (o * s.axis + first) * s.inner + column;
          double sums[kTile];
          if (s.inner == 1) {
            sums[0] = sum_run(from, last - first);
          } else {
            for (int64_t k = 0; k < width; ++k) sums[k] = 0;
            for (int64_t row = first; row < last; ++row, from += s.inner) {
              for (int64_t k = 0; k < width; ++k) sums[k] += static_cast<double>(from[k]);
            }
          }
          if (chunks > 1) {
            double* to = partial + (o * chunks + chunk) * s.inner + column;
            for (int64_t k = 0; k < width; ++k) to[k] = sums[k];
          } else {
            float* to = y + o * s.inner + column;
            for (int64_t k = 0; k < width; ++k) to[k] = static_cast<float>(sums[k] / divisor);
          }
        }
      });
  if (chunks == 1) return;
  parallel_for(s.outer * s.inner, chunks, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const double* from = partial + i / s.inner * chunks * s.inner + i % s.inner;
      double sum = 0;
      for (int64_t c = 0; c < chunks; ++c) sum += from[c * s.inner];
      y[i] = static_cast<float>(sum / divisor);
    }
  });
}

void reduce_max(float* y, int64_t* where, const float* x, const ReduceShape& s) {
  const int64_t tiles = (s.inner + kTile - 1) / kTile;
  parallel_for(s.outer * tiles, s.axis * std::min(s.inner, kTile), [&](int64_t t, int64_t end) {
    for (; t < end; ++t) {
      const int64_t column = t % tiles * kTile, o = t / tiles;
      const int64_t width = std::min(kTile, s.inner - column);
      const float* from = x + o * s.axis * s.inner + column;
      float best[kTile];
      int64_t at[kTile];
      for (int64_t k = 0; k < width; ++k) {
        best[k] = from[k];
        at[k] = 0;
      }
      for (int64_t row = 1; row < s.axis; ++row) {
        from += s.inner;
        for (int64_t k = 0; k < width; ++k) {
          const bool better = beats(from[k], best[k]);
          best[k] = better ? from[k] : best[k];
          at[k] = better ? row : at[k];
        }
      }
      const int64_t to = o * s.inner + column;
      for (int64_t k = 0; k < width; ++k) {
        if (y != nullptr) y[to + k] = best[k];
        if (where != nullptr) where[to + k] = at[k];
      }
    }
  });
}

void reduce_max_grad(float* dx, const int64_t* where, const float* g, const ReduceShape& s) {
  parallel_for(s.outer, s.axis * s.inner, [&](int64_t o, int64_t end) {
    for (; o < end; ++o) {
      float* block = dx + o * s.axis * s.inner;
      for (int64_t i = 0; i < s.axis * s.inner; ++i) block[i] = 0;
      for (int64_t k = 0; k < s.inner; ++k) {
        block[where[o * s.inner + k] * s.inner + k] = g[o * s.inner + k];
      }
    }
  });
}

}  // namespace graft::cpu::GRAFT_ISA
