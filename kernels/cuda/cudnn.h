// Dense convolution on cuDNN, for conv.cu. Every function that returns false has done nothing: the
// caller takes its own kernel.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/plan.h"

namespace graft::cuda::cudnn {

// Descriptors and an algorithm for one pass over one shape. Images and filters are of the shape's
// dtype, bias and dw f32.
struct Convolution;
enum class Pass { forward, backward_data, backward_weight };

// Null where cuDNN is absent, turned off (GRAFT_CUDNN=0 in the environment) or refuses the shape.
std::shared_ptr<const Convolution> convolution(Pass pass, const ConvShape& shape);
size_t scratch_bytes(const Convolution& made);

// y = conv(x), or y += conv(x).
bool forward(const Convolution& made, void* y, const void* x, const void* weight, bool add,
             void* scratch);
// y = relu(conv(x) + bias + residual), f32; residual may be null, and may not be y.
bool forward_bias_relu(const Convolution& made, void* y, const void* x, const void* weight,
                       const float* bias, const void* residual, void* scratch);
bool backward_data(const Convolution& made, void* dx, const void* g, const void* weight,
                   void* scratch);
bool backward_weight(const Convolution& made, float* dw, const void* x, const void* g,
                     void* scratch);

}  // namespace graft::cuda::cudnn
