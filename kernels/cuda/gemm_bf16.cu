// Matrix products y = a b + bias of bf16 matrices on tensor cores (gemm_bf16.cuh).
//
// Layout: row-major, either operand transposed or shared by the batch. 16-byte copies want operands
// aligned to 16 bytes and 8 that divides their innermost size. Numerics: f32 sums, one rounding to
// y's type. Determinism: tile and cut of k by the shape alone; the chunks' sums are added in order.
#include "kernels/cuda/gemm_bf16.cuh"
#include "kernels/cuda/gemm_bf16.h"
#include "kernels/cuda/gemm_end.cuh"
#include "kernels/cuda/scratch.h"

namespace graft::cuda {
namespace {

template <int kPack>
struct MakeOperand {
  template <bool kAlong>
  auto make(const uint16_t* data, int64_t rows, int64_t depth, bool shared) const {
    return MatrixOperand<kAlong, kPack, uint16_t>{data, rows, static_cast<int>(depth),
                                                  shared ? 0 : rows * depth};
  }
};

template <int kPack, class Epilogue>
void multiply(const MatmulShape& s, const uint16_t* a, const uint16_t* b,
              const Epilogue& epilogue) {
  with_mma_tile<kPack>(s.batch, s.m, s.n, s.k, [&](auto tile) {
    using Tile = decltype(tile);
    const GemmCut cut = cut_gemm<Tile>(s.batch, s.m, s.n, s.k);
    void* partials = cut.splits == 1
                         ? nullptr
                         : scratch("matmul", static_cast<size_t>(cut.partials()) * sizeof(float));
    visit_operands(s, a, b, MakeOperand<kPack>(), [&](const auto& left, const auto& right) {
      launch_mma<Tile>("matmul", left, right, epilogue, cut, static_cast<float*>(partials));
    });
  });
}

template <class T>
void matmul_to(const MatmulShape& s, T* y, const uint16_t* a, const uint16_t* b,
               const float* bias) {
  const GemmEnd<T> epilogue{y, bias, s.m, s.n, s.n % 4 == 0 && aligned({y, bias})};
  const bool packable = aligned({a, b}) && (s.transpose_a ? s.m : s.k) % 8 == 0 &&
                        (s.transpose_b ? s.k : s.n) % 8 == 0;
  if (packable) {
    multiply<8>(s, a, b, epilogue);
  } else {
    multiply<1>(s, a, b, epilogue);
  }
}

}  // namespace

void matmul_bf16(const MatmulShape& s, uint16_t* y, const uint16_t* a, const uint16_t* b,
                 const float* bias) {
  matmul_to(s, y, a, b, bias);
}
void matmul_bf16(const MatmulShape& s, float* y, const uint16_t* a, const uint16_t* b,
                 const float* bias) {
  matmul_to(s, y, a, b, bias);
}

}  // namespace graft::cuda
