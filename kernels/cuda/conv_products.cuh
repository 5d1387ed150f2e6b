// The passes of a dense convolution as matrix products, whatever multiplies them: conv.cu in f32,
// conv_bf16.cu on tensor cores. By group:
//
//   y  (pixels, out)          = patches of x (pixels, taps x in)   filters^T
//   dx (pixels, in)           = patches of g (pixels, taps x out)  filters
//   dw (out, taps x in)       = g^T (out, pixels)                  patches of x (pixels, taps x in)
//
// The patches are never stored: the panels of gemm.cuh are read from the images, zeros from outside
// (S. Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014). Under 1x1 filters of
// stride 1 patches are pixels and the operands plain matrices. For dx under a stride s the pixels
// of one residue mod s see the same taps: each residue is a product of its own, without the
// multiplications by zero of a stretched gradient.
//
// The functions call run(product, a, b, output) for each product. kDeep: elements moved at once of
// operands that lie along k; kWide: of those that lie along rows (gemm.cuh).
#pragma once

#include <algorithm>
#include <initializer_list>
#include <numeric>

#include "kernels/cuda/conv_operands.cuh"
#include "kernels/cuda/cudnn.h"

namespace graft::cuda {

// Sizes that a plan has found to fit.
inline int as_int(int64_t size) { return static_cast<int>(size); }

struct Product {
  int64_t batch, m, n, k;
};

inline Product forward_product(const ConvShape& s) {
  return {s.groups, s.batch * s.out_height * s.out_width, s.out_channels / s.groups,
          s.kernel_height * s.kernel_width * (s.in_channels / s.groups)};
}

inline Product weight_product(const ConvShape& s) {
  return {s.groups, s.out_channels / s.groups,
          s.kernel_height * s.kernel_width * (s.in_channels / s.groups),
          s.batch * s.out_height * s.out_width};
}

// One direction of backward-data for the input pixels residue, residue + stride, ...: the filter's
// taps that reach them, and where those find their gradients.
struct Phase {
  ConvAxis axis;
  int first_tap = 0, tap_step = 1;
};

inline Phase phase_of(int64_t residue, int64_t size, int64_t stride, int64_t dilation, int64_t pad,
                      int64_t kernel) {
  // Input pixel residue + i stride is reached by tap t from output (residue + i stride + pad - t
  // dilation) / stride, where that is whole.
  const int64_t step = stride / std::gcd(stride, dilation), candidates = std::min(step, kernel);
  int64_t first = 0;
  while (first < candidates && (residue + pad - first * dilation) % stride != 0) ++first;
  Phase phase;
  phase.axis.grid = (size - residue + stride - 1) / stride;
  phase.first_tap = static_cast<int>(first);
  phase.tap_step = static_cast<int>(step);
  if (first == candidates) return phase;
  phase.axis.taps = (kernel - 1 - first) / step + 1;
  phase.axis.shift = static_cast<int>((residue + pad - first * dilation) / stride);
  phase.axis.step = -static_cast<int>(step * dilation / stride);
  return phase;
}

// Calls use(residue down, residue across, phase down, phase across, product) for every product of
// backward-data.
template <class Use>
void for_phases(const ConvShape& s, const Use& use) {
  for (int64_t row = 0; row < std::min(s.stride_height, s.in_height); ++row) {
    const Phase down =
        phase_of(row, s.in_height, s.stride_height, s.dilation_height, s.pad_top, s.kernel_height);
    for (int64_t column = 0; column < std::min(s.stride_width, s.in_width); ++column) {
      const Phase across = phase_of(column, s.in_width, s.stride_width, s.dilation_width,
                                    s.pad_left, s.kernel_width);
      use(row, column, down, across,
          Product{s.groups, s.batch * down.axis.grid * across.axis.grid, s.in_channels / s.groups,
                  down.axis.taps * across.axis.taps * (s.out_channels / s.groups)});
    }
  }
}

// Whether patches are pixels.
inline bool plain(const ConvShape& s) {
  return s.groups == 1 && s.kernel_height == 1 && s.kernel_width == 1 && s.stride_height == 1 &&
         s.stride_width == 1 && s.out_height == s.in_height && s.out_width == s.in_width &&
         s.pad_top == 0 && s.pad_left == 0;
}

// Whether the channels of a group come in aligned packs of `width`.
inline bool in_packs(int width, int64_t channels, int64_t groups,
                     std::initializer_list<const void*> arrays) {
  return channels / groups % width == 0 && aligned(arrays);
}

template <class T>
Patches<T> forward_patches(const ConvShape& s, const T* x) {
  return Patches<T>(x, s.batch, s.in_height, s.in_width, s.in_channels, s.groups,
                    ConvAxis{s.out_height, s.kernel_height, as_int(s.stride_height),
                             -as_int(s.pad_top), as_int(s.dilation_height)},
                    ConvAxis{s.out_width, s.kernel_width, as_int(s.stride_width),
                             -as_int(s.pad_left), as_int(s.dilation_width)});
}

template <int kDeep, class T, class Result, class Run>
void visit_forward(const ConvShape& s, Result* y, const T* x, const T* filters, const float* bias,
                   const Result* residual, Activation activation, const Run& run) {
  const Product p = forward_product(s);
  const ImageOutput<Result> output{y,
                                   bias,
                                   residual,
                                   activation,
                                   as_int(s.out_channels),
                                   as_int(p.n),
                                   in_packs(4, s.out_channels, s.groups, {y, bias, residual})};
  const MatrixOperand<false, kDeep, T> right{filters, p.n, as_int(p.k), p.n * p.k};
  if (plain(s)) {
    run(p, MatrixOperand<false, kDeep, T>{x, p.m, as_int(p.k)}, right, output);
  } else {
    run(p, PatchRows<T, kDeep>{forward_patches(s, x)}, right, output);
  }
}

template <int kDeep, int kWide, class T, class Result, class Run>
void visit_backward_data(const ConvShape& s, Result* dx, const T* g, const T* filters,
                         const Run& run) {
  const bool wide = in_packs(4, s.in_channels, s.groups, {dx});
  if (plain(s)) {
    const Product p{1, s.batch * s.out_height * s.out_width, s.in_channels, s.out_channels};
    run(p, MatrixOperand<false, kDeep, T>{g, p.m, as_int(p.k)},
        MatrixOperand<true, kWide, T>{filters, p.n, as_int(p.k)},
        ImageOutput<Result>{dx, nullptr, nullptr, Activation::none, as_int(s.in_channels),
                            as_int(p.n), wide});
    return;
  }
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  for_phases(s, [&](int64_t row, int64_t column, const Phase& down, const Phase& across,
                    const Product& p) {
    const PatchRows<T, kDeep> gradients{Patches<T>(
        g, s.batch, s.out_height, s.out_width, s.out_channels, s.groups, down.axis, across.axis)};
    const FilterTaps<T, kWide> taps{.filters = filters,
                                    .in = as_int(in),
                                    .out = as_int(out),
                                    .kernel_height = as_int(s.kernel_height),
                                    .kernel_width = as_int(s.kernel_width),
                                    .depth = as_int(p.k),
                                    .first_down = down.first_tap,
                                    .step_down = down.tap_step,
                                    .first_across = across.first_tap,
                                    .step_across = across.tap_step,
                                    .by_out = Divider(out),
                                    .by_tap_row = gradients.patches.by_tap_row};
    const GridOutput<Result> output{.images = dx,
                                    .height = as_int(s.in_height),
                                    .width = as_int(s.in_width),
                                    .channels = as_int(s.in_channels),
                                    .group_channels = as_int(in),
                                    .first_row = as_int(row),
                                    .stride_down = as_int(s.stride_height),
                                    .first_column = as_int(column),
                                    .stride_across = as_int(s.stride_width),
                                    .by_grid = gradients.patches.by_grid,
                                    .by_grid_row = gradients.patches.by_grid_row,
                                    .wide = wide};
    run(p, gradients, taps, output);
  });
}

template <int kWide, class T, class Run>
void visit_backward_weight(const ConvShape& s, float* dw, const T* x, const T* g, const Run& run) {
  const Product p = weight_product(s);
  const FilterOutput output{dw, p.m, p.n, p.n % 4 == 0 && aligned({dw})};
  const PixelColumns<T, kWide> gradients{g, p.k, s.out_channels, p.m};
  if (plain(s)) {
    run(p, gradients, PixelColumns<T, kWide>{x, p.k, s.in_channels, p.n}, output);
  } else {
    run(p, gradients, PatchColumns<T, kWide>{forward_patches(s, x)}, output);
  }
}

// The most scratch memory that a pass wants; bytes_of(product): of one product.
template <class BytesOf>
size_t most_scratch(cudnn::Pass pass, const ConvShape& s, const BytesOf& bytes_of) {
  if (pass == cudnn::Pass::forward) return bytes_of(forward_product(s));
  if (pass == cudnn::Pass::backward_weight) return bytes_of(weight_product(s));
  size_t most = 0;
  for_phases(s, [&](int64_t, int64_t, const Phase&, const Phase&, const Product& p) {
    most = std::max(most, bytes_of(p));
  });
  return most;
}

}  // namespace graft::cuda
