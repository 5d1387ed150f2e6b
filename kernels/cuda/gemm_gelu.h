// Products that end in GELU or its derivative, by our own kernels.
#pragma once

#include "kernels/cuda/gemm.cuh"
#include "kernels/plan.h"

namespace graft::cuda {

// The tile of such a product in f32. There is one, because every other makes more kernels to
// compile, and a larger one's sums leave GELU too few registers.
using GeluTile = MediumTile;
constexpr GemmTileKind kGeluTile = GemmTileKind::medium;

// The product of a shape whose end is not none: a, b and others.pre as it describes them. f32 was
// cut with cut_gemm<GeluTile>(); partials: cut.partials() floats, 16-byte aligned.
void matmul_gelu(const MatmulShape& shape, const GemmCut& cut, float* y, const float* a,
                 const float* b, const MatmulArrays& others, float* partials);
// bf16; scratch memory is its own.
void matmul_gelu(const MatmulShape& shape, uint16_t* y, const uint16_t* a, const uint16_t* b,
                 const MatmulArrays& others);

}  // namespace graft::cuda
