// Products of bf16 matrices on tensor cores.
#pragma once

#include <cstdint>

#include "kernels/plan.h"

namespace graft::cuda {

// y = a b + bias: a and b are bf16, bias and the sums f32; y is bf16 or f32. Scratch memory is its
// own.
void matmul_bf16(const MatmulShape& shape, uint16_t* y, const uint16_t* a, const uint16_t* b,
                 const float* bias);
void matmul_bf16(const MatmulShape& shape, float* y, const uint16_t* a, const uint16_t* b,
                 const float* bias);

}  // namespace graft::cuda
