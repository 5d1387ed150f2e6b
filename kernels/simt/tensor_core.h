// The warp's tensor-core instructions on matrices of bf16, as CUDA's ldmatrix and mma.sync spread
// them over the lanes (kernels/cuda/mma.cuh says how). All 32 lanes meet in each.
#pragma once

#include <cstdint>

#include "kernels/simt/machine.h"

namespace graft::simt {

// ldmatrix .x4: `row` are the eight values that this lane has loaded; gets its two of each matrix.
void exchange_matrices(uint32_t (&result)[4], const void* row, bool transposed, const Where& where);

// mma.sync m16n8k16: c += a b, added in double, k ascending, and rounded once.
struct MmaFactors {
  uint32_t a[4], b[2];
};
void multiply_matrices(float (&c)[4], const MmaFactors& mine, const Where& where);

}  // namespace graft::simt
