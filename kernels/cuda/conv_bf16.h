// Dense convolution of bf16 images on tensor cores, for conv.cu.
#pragma once

#include "kernels/cuda/cudnn.h"
#include "kernels/element.h"

namespace graft::cuda {

// Scratch memory of a pass, 16-byte aligned.
size_t conv_bf16_scratch(cudnn::Pass pass, const ConvShape& shape);

// Images, gradients and filters (OHWI) are bf16; bias, sums and dw f32. y = act(conv(x) + bias +
// residual): either may be null, residual may be y.
void conv_bf16_forward(const ConvShape& shape, Bf16* y, const Bf16* x, const Bf16* filters,
                       const float* bias, const Bf16* residual, Activation activation,
                       void* scratch);
void conv_bf16_backward_data(const ConvShape& shape, Bf16* dx, const Bf16* g, const Bf16* filters,
                             void* scratch);
void conv_bf16_backward_weight(const ConvShape& shape, float* dw, const Bf16* x, const Bf16* g,
                               void* scratch);

}  // namespace graft::cuda
