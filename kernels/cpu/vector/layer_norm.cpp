// Layer normalisation (Ba, Kiros, Hinton 2016) over the last dimension, and its gradient.
//
//   y = xhat weight + bias,  xhat = (x - mean) invstd,  h = g weight
//   dx = invstd (h - mean(h) - xhat mean(h xhat));  dweight = sum g xhat;  dbias = sum g
//
// Layout: rows of c floats, no alignment assumed. A row stays in the first-level cache, so it is
// read from memory once each way.
//
// Numerics: deviations d from a mean rounded to f32; their own mean, which is the rounding error,
// is kept beside it and taken off again: xhat = (d - rest) invstd (the corrected two-pass
// algorithm). Weight and bias gradients f32 within 256 rows, double across. Deterministic: rows are
// independent, and the partial sums' number depends on the shape only.
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kFlushRows = 256;

// dx of one row, and the row's share of the weight and bias gradients. h = g weight is made twice.
template <bool has_weight, bool wants_dx, bool wants_sums>
void grad_row(float* __restrict dx, float* __restrict dweight, float* __restrict dbias,
              const float* __restrict g, const float* __restrict x, const float* __restrict weight,
              const float* stats, int64_t c) {
  const float mean = stats[0], invstd = stats[1], shift = stats[2] * invstd;
  float sum = 0, product = 0;
#pragma omp simd reduction(+ : sum, product)
  for (int64_t j = 0; j < c; ++j) {
    const float xhat = (x[j] - mean) * invstd - shift;
    const float h = has_weight ? g[j] * weight[j] : g[j];
    sum += h;
    product += h * xhat;
    if constexpr (wants_sums) {
      dweight[j] += g[j] * xhat;
      dbias[j] += g[j];
    }
  }
  if constexpr (wants_dx) {
    const float inverse = 1.0f / static_cast<float>(c);
    sum *= inverse;
    product *= inverse;
    for (int64_t j = 0; j < c; ++j) {
      const float xhat = (x[j] - mean) * invstd - shift;
      const float h = has_weight ? g[j] * weight[j] : g[j];
      dx[j] = (h - sum - xhat * product) * invstd;
    }
  }
}

template <bool wants_dx, bool wants_sums>
void grad_row(float* dx, float* dweight, float* dbias, const float* g, const float* x,
              const float* weight, const float* stats, int64_t c) {
  if (weight != nullptr) {
    grad_row<true, wants_dx, wants_sums>(dx, dweight, dbias, g, x, weight, stats, c);
  } else {
    grad_row<false, wants_dx, wants_sums>(dx, dweight, dbias, g, x, weight, stats, c);
  }
}

}  // namespace

void layer_norm(float* y, float* stats, const float* x, const float* weight, const float* bias,
                int64_t rows, int64_t c, float epsilon) {
  parallel_for(rows, 2 * c, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* __restrict in = x + r * c;
      float* __restrict out = y + r * c;
      const float inverse = 1.0f / static_cast<float>(c);
      float sum = 0;
#pragma omp simd reduction(+ : sum)
      for (int64_t j = 0; j < c; ++j) sum += in[j];
      const float mean = sum * inverse;
      float rest = 0, square = 0;
#pragma omp simd reduction(+ : rest, square)
      for (int64_t j = 0; j < c; ++j) {
        const float d = in[j] - mean;
        rest += d;
        square += d * d;
      }
      rest *= inverse;
      const float variance = square * inverse - rest * rest;
      const float invstd = 1.0f / std::sqrt((variance < 0 ? 0.0f : variance) + epsilon);
      const float shift = rest * invstd;
      stats[3 * r] = mean;
      stats[3 * r + 1] = invstd;
      stats[3 * r + 2] = rest;
      if (weight != nullptr && bias != nullptr) {
        for (int64_t j = 0; j < c; ++j) {
          out[j] = ((in[j] - mean) * invstd - shift) * weight[j] + bias[j];
        }
      } else {
        for (int64_t j = 0; j < c; ++j) {
          const float xhat = (in[j] - mean) * invstd - shift;
          out[j] = (weight ? xhat * weight[j] : xhat) + (bias ? bias[j] : 0.0f);
        }
      }
    }
  });
}

void layer_norm_grad(float* dx, float* dweight, float* dbias, const float* g, const float* x,
                     const float* stats, const float* weight, int64_t rows, int64_t c) {
  if (dweight == nullptr && dbias == nullptr) {
    parallel_for(rows, 3 * c, [=](int64_t begin, int64_t end) {
      for (int64_t r = begin; r < end; ++r) {
        grad_row<true, false>(dx + r * c, nullptr, nullptr, g + r * c, x + r * c, weight,
                              stats + 3 * r, c);
      }
    });
    return;
  }
  const int64_t wanted = rows * c / 32768;
  const int64_t chunks = wanted < 1 ? 1 : (wanted > 64 ? 64 : wanted);
  auto* totals = static_cast<double*>(
      scratch(static_cast<size_t>(2 * c * chunks) * (sizeof(double) + sizeof(float))));
  auto* partial = reinterpret_cast<float*>(totals + 2 * c * chunks);
  for (int64_t i = 0; i < 2 * c * chunks; ++i) totals[i] = 0;
  parallel_chunks(rows, chunks, [=](int64_t chunk, int64_t begin, int64_t end) {
    double* total = totals + 2 * c * chunk;
    float* own = partial + 2 * c * chunk;
    for (int64_t from = begin; from < end; from += kFlushRows) {
      const int64_t to = from + kFlushRows < end ? from + kFlushRows : end;
      for (int64_t j = 0; j < 2 * c; ++j) own[j] = 0;
      for (int64_t r = from; r < to; ++r) {
        const float *gr = g + r * c, *xr = x + r * c, *sr = stats + 3 * r;
        if (dx != nullptr) {
          grad_row<true, true>(dx + r * c, own, own + c, gr, xr, weight, sr, c);
        } else {
          grad_row<false, true>(nullptr, own, own + c, gr, xr, weight, sr, c);
        }
      }
      for (int64_t j = 0; j < 2 * c; ++j) total[j] += own[j];
    }
  });
  for (int64_t chunk = 1; chunk < chunks; ++chunk) {
    for (int64_t j = 0; j < 2 * c; ++j) totals[j] += totals[2 * c * chunk + j];
  }
  for (int64_t j = 0; j < c; ++j) {
    if (dweight != nullptr) dweight[j] = static_cast<float>(totals[j]);
    if (dbias != nullptr) dbias[j] = static_cast<float>(totals[c + j]);
  }
}

}  // namespace graft::cpu::GRAFT_ISA
