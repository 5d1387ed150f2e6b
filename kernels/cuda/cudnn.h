// Dense convolution on cuDNN, for conv.cu. Every function that returns false has done nothing: the
// caller takes its own kernel.
#pragma once

#include <cstddef>
#include <memory>

#include "kernels/plan.h"

namespace graft::cuda::cudnn {

// Descriptors and an algorithm for one pass over one shape.
struct Convolution;
enum class Pass { forward, backward_data, backward_weight };

// Null where cuDNN is absent, turned off (GRAFT_CUDNN=0 in the environment) or refuses the shape.
std::shared_ptr<const Convolution> convolution(Pass pass, const ConvShape& shape);
size_t scratch_bytes(const Convolution& made);

// y = conv(x), or y += conv(x).
bool forward(const Convolution& made, float* y, const float* x, const void* weight, bool add,
             void* scratch);
// y = relu(conv(x) + bias + residual); residual may be null, and may not be y.
bool forward_bias_relu(const Convolution& made, float* y, const float* x, const void* weight,
                       const float* bias, const float* residual, void* scratch);
bool backward_data(const Convolution& made, float* dx, const float* g, const void* weight,
                   void* scratch);
bool backward_weight(const Convolution& made, float* dw, const float* x, const float* g,
                     void* scratch);

}  // namespace graft::cuda::cudnn
