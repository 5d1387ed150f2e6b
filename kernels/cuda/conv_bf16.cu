// Dense convolution of bf16 images: the implicit matrix products of conv_products.cuh on the tensor
// cores of gemm_bf16.cuh.
//
// Layout: NHWC images, OHWI filters, contiguous. 16-byte copies where 8 divides the channels of a
// group and the arrays are aligned; otherwise (an image's 3 channels) elements are copied one by
// one. Numerics: f32 sums over taps and channels, one rounding to bf16; gradients of filters are
// f32 sums and stay f32. Determinism: cuts by the shape alone (gemm.cuh), each result has one
// writer.
#include "kernels/cuda/conv_bf16.h"
#include "kernels/cuda/conv_products.cuh"
#include "kernels/cuda/gemm_bf16.cuh"

namespace graft::cuda {
namespace {

const uint16_t* bits(const Bf16* array) { return reinterpret_cast<const uint16_t*>(array); }

// Patches as columns of sums over pixels want registers for their addresses.
using WeightTile = MmaTile<128, 64, 32, 32, 2>;

// Runs the products of a pass with operands of kPack.
template <int kPack, class Large = LargeMmaTile>
auto multiplier(const char* op, void* scratch) {
  return [=](const Product& p, const auto& a, const auto& b, const auto& output) {
    with_mma_tile<kPack, Large>(p.batch, p.m, p.n, p.k, [&](auto tile) {
      using Tile = decltype(tile);
      launch_mma<Tile>(op, a, b, output, cut_gemm<Tile>(p.batch, p.m, p.n, p.k),
                       static_cast<float*>(scratch));
    });
  };
}

template <int kPack, class Large>
size_t partial_bytes(const Product& p) {
  return with_mma_tile<kPack, Large>(p.batch, p.m, p.n, p.k, [&](auto tile) {
    return static_cast<size_t>(cut_gemm<decltype(tile)>(p.batch, p.m, p.n, p.k).partials()) *
           sizeof(float);
  });
}

bool packed(const ConvShape& s, std::initializer_list<const void*> arrays) {
  return in_packs(8, s.in_channels, s.groups, arrays) && in_packs(8, s.out_channels, s.groups, {});
}

}  // namespace

size_t conv_bf16_scratch(cudnn::Pass pass, const ConvShape& s) {
  // Which of the packs it is follows from the alignment of the arrays.
  const auto most_of = []<class Large>(const Product& p, Large) {
    return std::max(partial_bytes<8, Large>(p), partial_bytes<1, Large>(p));
  };
  return most_scratch(pass, s, [&](const Product& p) {
    return pass == cudnn::Pass::backward_weight ? most_of(p, WeightTile{})
                                                : most_of(p, LargeMmaTile{});
  });
}

void conv_bf16_forward(const ConvShape& s, Bf16* y, const Bf16* x, const Bf16* filters,
                       const float* bias, const Bf16* residual, Activation activation,
                       void* scratch) {
  if (in_packs(8, s.in_channels, s.groups, {x, filters})) {
    visit_forward<8>(s, y, bits(x), bits(filters), bias, residual, activation,
                     multiplier<8>("conv2d", scratch));
  } else {
    visit_forward<1>(s, y, bits(x), bits(filters), bias, residual, activation,
                     multiplier<1>("conv2d", scratch));
  }
}

void conv_bf16_backward_data(const ConvShape& s, Bf16* dx, const Bf16* g, const Bf16* filters,
                             void* scratch) {
  if (packed(s, {g, filters})) {
    visit_backward_data<8, 8>(s, dx, bits(g), bits(filters),
                              multiplier<8>("conv2d backward", scratch));
  } else {
    visit_backward_data<1, 1>(s, dx, bits(g), bits(filters),
                              multiplier<1>("conv2d backward", scratch));
  }
}

void conv_bf16_backward_weight(const ConvShape& s, float* dw, const Bf16* x, const Bf16* g,
                               void* scratch) {
  if (packed(s, {x, g})) {
    visit_backward_weight<8>(s, dw, bits(x), bits(g),
                             multiplier<8, WeightTile>("conv2d backward", scratch));
  } else {
    visit_backward_weight<1>(s, dw, bits(x), bits(g), multiplier<1>("conv2d backward", scratch));
  }
}

}  // namespace graft::cuda
