// Statistics and affine maps of the columns of a row-major matrix: what batch-norm and group-norm
// share. Matrices are of T, float or Bf16; everything else is f32. The loops run over columns with
// a few rows in flight, so every column keeps its own sums, and nothing needs reassociating to
// vectorise.
#pragma once

#include <cstdint>

#include "kernels/element.h"
#include "kernels/isa.h"
#include "kernels/types.h"

namespace graft::cpu {
inline namespace GRAFT_ISA_NAMESPACE {

// Rows summed in f32 before they are added to the double totals.
constexpr int64_t kBlockRows = 256;

// s += sum of (x - shift), q += sum of (x - shift)^2, over eight rows.
template <class T>
inline void add_eight_rows(float* __restrict s, float* __restrict q, const float* __restrict shift,
                           const T* __restrict x, int64_t width) {
  const T *x1 = x + width, *x2 = x1 + width, *x3 = x2 + width, *x4 = x3 + width;
  const T *x5 = x4 + width, *x6 = x5 + width, *x7 = x6 + width;
  for (int64_t j = 0; j < width; ++j) {
    const float h = shift[j];
    const float d0 = static_cast<float>(x[j]) - h, d1 = static_cast<float>(x1[j]) - h,
                d2 = static_cast<float>(x2[j]) - h, d3 = static_cast<float>(x3[j]) - h;
    const float d4 = static_cast<float>(x4[j]) - h, d5 = static_cast<float>(x5[j]) - h,
                d6 = static_cast<float>(x6[j]) - h, d7 = static_cast<float>(x7[j]) - h;
    s[j] += ((d0 + d1) + (d2 + d3)) + ((d4 + d5) + (d6 + d7));
    q[j] +=
        ((d0 * d0 + d1 * d1) + (d2 * d2 + d3 * d3)) + ((d4 * d4 + d5 * d5) + (d6 * d6 + d7 * d7));
  }
}
template <class T>
inline void add_row(float* __restrict s, float* __restrict q, const float* __restrict shift,
                    const T* __restrict x, int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    const float d = static_cast<float>(x[j]) - shift[j];
    s[j] += d;
    q[j] += d * d;
  }
}

// Mean and sum of squared deviations of each column over `rows` >= 1 rows. `work` holds 3 * width
// floats.
//
// Each block of rows is shifted by its first row. The shifted sum of squares is at most n + 1 times
// the block's own squared deviations, whatever the data, so f32 loses no more than that factor; the
// blocks are merged in double (Chan, Golub, LeVeque 1983).
template <class T>
inline void column_moments(double* __restrict mean, double* __restrict m2, float* work, const T* x,
                           int64_t rows, int64_t width) {
  float* __restrict shift = work;
  float* __restrict s = work + width;
  float* __restrict q = work + 2 * width;
  for (int64_t j = 0; j < width; ++j) mean[j] = m2[j] = 0;
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t end = begin + kBlockRows < rows ? begin + kBlockRows : rows;
    const T* first = x + begin * width;
    for (int64_t j = 0; j < width; ++j) {
      shift[j] = static_cast<float>(first[j]);
      s[j] = q[j] = 0;
    }
    int64_t r = begin;
    for (; r + 8 <= end; r += 8) add_eight_rows(s, q, shift, x + r * width, width);
    for (; r < end; ++r) add_row(s, q, shift, x + r * width, width);
    const double n = static_cast<double>(end - begin), before = static_cast<double>(begin);
    const double inverse = 1 / n, share = n / (before + n), cross = before * share;
    for (int64_t j = 0; j < width; ++j) {
      const double offset = s[j] * inverse;
      const double delta = shift[j] + offset - mean[j];
      mean[j] += delta * share;
      m2[j] += q[j] - s[j] * offset + delta * delta * cross;
    }
  }
}

// y = act((x - center) scale + offset [+ residual]) over `count` rows of the same width.
template <Activation act, bool has_residual, int count, class T>
inline void affine_rows(T* __restrict y, const T* __restrict x, const T* __restrict residual,
                        const float* __restrict center, const float* __restrict scale,
                        const float* __restrict offset, int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    const float c = center[j], a = scale[j], b = offset[j];
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) {
      float v = (static_cast<float>(x[r * width + j]) - c) * a + b;
      if constexpr (has_residual) v += static_cast<float>(residual[r * width + j]);
      if constexpr (act != Activation::none) v = v < 0 ? 0.0f : v;
      if constexpr (act == Activation::relu6) v = v > 6 ? 6.0f : v;
      y[r * width + j] = static_cast<T>(v);
    }
  }
}

template <Activation act, bool has_residual, class T>
[[gnu::noinline]] void affine_matrix(T* y, const T* x, const T* residual, const float* center,
                                     const float* scale, const float* offset, int64_t rows,
                                     int64_t width) {
  int64_t r = 0;
  for (; r + 4 <= rows; r += 4) {
    const int64_t at = r * width;
    affine_rows<act, has_residual, 4>(y + at, x + at, has_residual ? residual + at : nullptr,
                                      center, scale, offset, width);
  }
  for (; r < rows; ++r) {
    const int64_t at = r * width;
    affine_rows<act, has_residual, 1>(y + at, x + at, has_residual ? residual + at : nullptr,
                                      center, scale, offset, width);
  }
}

// Where the derivative of the activation is 1: not needed, or 0 < z < high with z made again from
// x, or with the result y in z's place.
enum class Mask : uint8_t { none, from_x, from_y };

template <class T>
struct ColumnGradRows {
  const T *g, *x, *y;
  T *dz, *dx;
};

// dz = masked g; s += sum of dz, q += sum of dz (x - center), over `count` rows. Also writes dz and
// dx = scale dz where asked.
template <Mask mask, bool sums, bool writes_dz, bool writes_dx, int count, class T>
inline void grad_rows(const T* __restrict g, const T* __restrict x, const T* __restrict y,
                      T* __restrict dz_out, T* __restrict dx, float* __restrict s,
                      float* __restrict q, const float* __restrict center,
                      const float* __restrict scale, const float* __restrict offset, float high,
                      int64_t width) {
  for (int64_t j = 0; j < width; ++j) {
    float sum = 0, product = 0;
#pragma GCC unroll 4
    for (int r = 0; r < count; ++r) {
      const int64_t at = r * width + j;
      float dz = static_cast<float>(g[at]), d = 0;
      if constexpr (sums || mask == Mask::from_x) d = static_cast<float>(x[at]) - center[j];
      if constexpr (mask == Mask::from_x) {
        const float z = d * scale[j] + offset[j];
        dz = (z > 0) & (z < high) ? dz : 0.0f;
      }
      if constexpr (mask == Mask::from_y) {
        const auto z = static_cast<float>(y[at]);
        dz = (z > 0) & (z < high) ? dz : 0.0f;
      }
      if constexpr (writes_dz) dz_out[at] = static_cast<T>(dz);
      if constexpr (writes_dx) dx[at] = static_cast<T>(dz * scale[j]);
      if constexpr (sums) {
        sum += dz;
        product += dz * d;
      }
    }
    if constexpr (sums) {
      s[j] += sum;
      q[j] += product;
    }
  }
}

// The same over a matrix, in blocks whose sums go to the double totals.
template <Mask mask, bool sums, bool writes_dz, bool writes_dx, class T>
[[gnu::noinline]] void grad_matrix(const ColumnGradRows<T>& p, double* __restrict total,
                                   double* __restrict total_product, float* work,
                                   const float* center, const float* scale, const float* offset,
                                   float high, int64_t rows, int64_t width) {
  float* __restrict s = work;
  float* __restrict q = work + width;
  for (int64_t begin = 0; begin < rows; begin += kBlockRows) {
    const int64_t end = begin + kBlockRows < rows ? begin + kBlockRows : rows;
    if constexpr (sums) {
      for (int64_t j = 0; j < width; ++j) s[j] = q[j] = 0;
    }
    const auto at = [width](auto* base, int64_t r) { return base ? base + r * width : nullptr; };
    int64_t r = begin;
    for (; r + 4 <= end; r += 4) {
      grad_rows<mask, sums, writes_dz, writes_dx, 4>(at(p.g, r), at(p.x, r), at(p.y, r),
                                                     at(p.dz, r), at(p.dx, r), s, q, center, scale,
                                                     offset, high, width);
    }
    for (; r < end; ++r) {
      grad_rows<mask, sums, writes_dz, writes_dx, 1>(at(p.g, r), at(p.x, r), at(p.y, r),
                                                     at(p.dz, r), at(p.dx, r), s, q, center, scale,
                                                     offset, high, width);
    }
    if constexpr (sums) {
      for (int64_t j = 0; j < width; ++j) {
        total[j] += s[j];
        total_product[j] += q[j];
      }
    }
  }
}

// dx = scale dz - (x - center) slope - constant, with dz = g under the mask.
template <Mask mask, class T>
[[gnu::noinline]] void center_grad_matrix(
    const ColumnGradRows<T>& p, const float* __restrict center, const float* __restrict scale,
    const float* __restrict offset, const float* __restrict slope, const float* __restrict constant,
    float high, int64_t rows, int64_t width) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* __restrict g = p.g + r * width;
    const T* __restrict x = p.x + r * width;
    const T* __restrict y = mask == Mask::from_y ? p.y + r * width : nullptr;
    T* __restrict dx = p.dx + r * width;
    for (int64_t j = 0; j < width; ++j) {
      const float d = static_cast<float>(x[j]) - center[j];
      auto dz = static_cast<float>(g[j]);
      if constexpr (mask == Mask::from_x) {
        const float z = d * scale[j] + offset[j];
        dz = (z > 0) & (z < high) ? dz : 0.0f;
      }
      if constexpr (mask == Mask::from_y) {
        const auto z = static_cast<float>(y[j]);
        dz = (z > 0) & (z < high) ? dz : 0.0f;
      }
      dx[j] = static_cast<T>(scale[j] * dz - d * slope[j] - constant[j]);
    }
  }
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft::cpu
