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
#include "kernels/simt/machine.h"
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

#ifdef GRAFT_SIMT
namespace detail {

GRAFT_SIMT_PLAIN FourMatrices exchange_rows(const FourMatrices& row, bool transposed,
                                            const simt::Where& where) {
  simt::Exchange* exchange = simt::begin_exchange("ldmatrix", ~0u, &row, sizeof row, where);
  const unsigned lane = simt::lane_here();
  FourMatrices result;
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned down = transposed ? lane % 4 * 2 + half : lane / 4;
      const unsigned across = transposed ? lane / 4 : lane % 4 * 2 + half;
      __builtin_memcpy(&pair[half], simt::brought_by(exchange, matrix * 8 + down) + 2 * across, 2);
    }
    result.v[matrix] = pair[0] | uint32_t{pair[1]} << 16;
  }
  simt::end_exchange(exchange);
  return result;
}

struct MmaFactors {
  uint32_t a[4], b[2];
};
GRAFT_SIMT_PLAIN void multiply(MmaSums& c, const MmaFactors& mine, const simt::Where& where) {
  simt::Exchange* exchange = simt::begin_exchange("mma", ~0u, &mine, sizeof mine, where);
  const unsigned lane = simt::lane_here();
  const auto element = [](const uint32_t* pairs, unsigned pair, unsigned half) {
    return __builtin_bit_cast(float, pairs[pair] >> (16 * half) << 16);
  };
  for (unsigned i = 0; i < 4; ++i) {
    const unsigned row = lane / 4 + i / 2 * 8, column = lane % 4 * 2 + i % 2;
    double sum = c.v[i];
    for (unsigned k = 0; k < 16; ++k) {
      MmaFactors left, right;
      __builtin_memcpy(&left, simt::brought_by(exchange, row % 8 * 4 + k % 8 / 2), sizeof left);
      __builtin_memcpy(&right, simt::brought_by(exchange, column * 4 + k % 8 / 2), sizeof right);
      sum += static_cast<double>(element(left.a, k / 8 * 2 + row / 8, k % 2)) *
             element(right.b, k / 8, k % 2);
    }
    c.v[i] = static_cast<float>(sum);
  }
  simt::end_exchange(exchange);
}

}  // namespace detail
#endif

// Four 8x8 matrices from shared memory: lane i gives the address, aligned to 16 bytes, of row i % 8
// of matrix i / 8 and gets, of each matrix, the elements 2t and 2t+1 of row g; kTransposed: of
// column g.
template <bool kTransposed>
__device__ inline FourMatrices load_matrices(const uint16_t* row) {
#ifdef GRAFT_SIMT
  return detail::exchange_rows(*reinterpret_cast<const FourMatrices*>(row), kTransposed,
                               simt::Where::current());
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
  detail::multiply(c, {{a.v[0], a.v[1], a.v[2], a.v[3]}, {b0, b1}}, simt::Where::current());
#elif defined(__CUDA_ARCH__)
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, "
      "{%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c.v[0]), "+f"(c.v[1]), "+f"(c.v[2]), "+f"(c.v[3])
      : "r"(a.v[0]), "r"(a.v[1]), "r"(a.v[2]), "r"(a.v[3]), "r"(b0), "r"(b1));
#endif
}

}  // namespace graft::cuda
