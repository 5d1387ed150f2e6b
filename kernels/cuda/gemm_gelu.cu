// Products with GELU behind their sums, on the way there, and with its derivative, on the way back,
// as a linear layer has them (MatmulEnd):
//
//   y = gelu(x w^T + bias), pre = x w^T + bias;   dpre = (g w) gelu'(pre)
//
// Source: the epilogues GELU_AUX_BIAS and DGELU of cuBLASLt, whose GELU is the tanh form; these are
// exact, too. Layout: x (m, k) and g (m, k) row-major, w (n, k) there and (k, n) on the way back.
// Numerics and determinism: gemm.cuh, gemm_bf16.cuh, gemm_end.cuh.
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_end.cuh"
#include "kernels/cuda/gemm_gelu.h"
#include "kernels/cuda/scratch.h"

namespace graft::cuda {
namespace {

// Calls run(the end of the product) with the formula that the shape names.
template <class T, class Run>
void with_end(const MatmulShape& s, T* y, const MatmulArrays& others, const Run& run) {
  T* pre = static_cast<T*>(others.pre);
  const bool wide = s.n % 4 == 0 && aligned({y, pre, others.bias});
  const auto with_formula = [&]<class F>(F) {
    if (s.end == MatmulEnd::gelu) {
      run(GeluEnd<F, T>{y, pre, others.bias, s.m, s.n, wide});
    } else {
      run(GeluGradEnd<F, T>{y, pre, s.m, s.n, wide});
    }
  };
  if (s.gelu == Gelu::exact) {
    with_formula(fn::Gelu{});
  } else {
    with_formula(fn::GeluTanh{});
  }
}

// The only layouts: w along k for GELU, along n for its derivative.
template <class End>
constexpr bool kAlongRows = false;
template <class F, class T>
constexpr bool kAlongRows<GeluGradEnd<F, T>> = true;

template <bool kAlong, int kPack, class T>
MatrixOperand<kAlong, kPack, T> operand(const T* data, int64_t rows, int64_t depth) {
  return {data, rows, static_cast<int>(depth)};
}

}  // namespace

void matmul_gelu(const MatmulShape& s, const GemmCut& cut, float* y, const float* a, const float* b,
                 const MatmulArrays& others, float* partials) {
  with_end(s, y, others, [&]<class End>(const End& end) {
    const auto left = operand<false, 1>(a, s.m, s.k);
    if constexpr (kAlongRows<End>) {
      if (s.n % 4 == 0 && aligned({b})) {
        launch_gemm<GeluTile>("matmul", left, operand<true, 4>(b, s.n, s.k), end, cut, partials);
        return;
      }
    }
    launch_gemm<GeluTile>("matmul", left, operand<kAlongRows<End>, 1>(b, s.n, s.k), end, cut,
                          partials);
  });
}

void matmul_gelu(const MatmulShape& s, uint16_t* y, const uint16_t* a, const uint16_t* b,
                 const MatmulArrays& others) {
  with_end(s, y, others, [&]<class End>(const End& end) {
    constexpr bool kAlong = kAlongRows<End>;
    const auto multiply = [&]<int kPack>(std::integral_constant<int, kPack>) {
      with_mma_tile<kPack>(s.batch, s.m, s.n, s.k, [&](auto tile) {
        using Tile = decltype(tile);
        const GemmCut cut = cut_gemm<Tile>(s.batch, s.m, s.n, s.k);
        const size_t bytes = static_cast<size_t>(cut.partials()) * sizeof(float);
        void* partials = bytes == 0 ? nullptr : scratch("matmul", bytes);
        launch_mma<Tile>("matmul", operand<false, kPack>(a, s.m, s.k),
                         operand<kAlong, kPack>(b, s.n, s.k), end, cut,
                         static_cast<float*>(partials));
      });
    };
    if (aligned({a, b}) && s.k % 8 == 0 && (!kAlong || s.n % 8 == 0)) {
      multiply(std::integral_constant<int, 8>());
    } else {
      multiply(std::integral_constant<int, 1>());
    }
  });
}

}  // namespace graft::cuda
