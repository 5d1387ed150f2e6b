// Tensor-core products of bf16 matrices with f32 sums: the warp-wide instructions ldmatrix and
// mma.sync m16n8k16 (PTX ISA 9.7.14 and 9.7.15; sm_80 and later). All 32 lanes must call together.
//
// Where things lie, g = lane / 4, t = lane % 4 (pairs: the lower index in the lower half):
//   a (16 x 16)  v[0..3]: rows g, g+8, g, g+8; columns 2t, 2t, 2t+8, 2t+8 and the next ones
//   b (16 x 8)   v[0..1]: column g; rows 2t, 2t+8 and the next ones
//   c (16 x 8)   v[0..3]: rows g, g, g+8, g+8; columns 2t, 2t+1, 2t, 2t+1
//
// Numerics: products are exact; the 16 of them and c are added in f32, in an order and with a
// rounding that NVIDIA does not specify but that does not change from run to run. The simulated
// device adds in double and rounds once.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>

#include "kernels/cuda/pack.cuh"
#ifdef GRAFT_SIMT
#include "kernels/simt/tensor_core.h"
#endif

namespace graft::cuda {

// What a lane holds of four 8x8 matrices: two neighbours of each.
struct alignas(16) FourMatrices {
  uint32_t v[4];
};
struct MmaSums {
  float v[4];
};

__device__ inline float from_bf16(uint16_t bits) { return __uint_as_float(uint32_t{bits} << 16); }
// To nearest, ties to even; NaN stays NaN.
__device__ inline uint16_t to_bf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40 : rounded);
}

// Four 8x8 matrices from shared memory: lane i gives the address, aligned to 16 bytes, of row i % 8
// of matrix i / 8 and gets, of each matrix, the elements 2t and 2t+1 of row g; kTransposed: of
// column g.
template <bool kTransposed>
__device__ inline FourMatrices load_matrices(const uint16_t* row) {
#ifdef GRAFT_SIMT
  const auto eight = *reinterpret_cast<const FourMatrices*>(row);
  FourMatrices result;
  simt::exchange_matrices(result.v, &eight, kTransposed, simt::Where::current());
  return result;
#else
  FourMatrices result{};
#ifdef __CUDA_ARCH__
  const unsigned from = static_cast<unsigned>(__cvta_generic_to_shared(row));
  if constexpr (kTransposed) {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result.v[0]), "=r"(result.v[1]), "=r"(result.v[2]), "=r"(result.v[3])
                 : "r"(from)
                 : "memory");
  } else {
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(result.v[0]), "=r"(result.v[1]), "=r"(result.v[2]), "=r"(result.v[3])
                 : "r"(from)
                 : "memory");
  }
#endif
  return result;
#endif
}

// c += a b.
__device__ inline void multiply_add(MmaSums& c, const FourMatrices& a, uint32_t b0, uint32_t b1) {
#ifdef GRAFT_SIMT
  simt::multiply_matrices(c.v, {{a.v[0], a.v[1], a.v[2], a.v[3]}, {b0, b1}},
                          simt::Where::current());
#elif defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
      : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace graft::cuda
