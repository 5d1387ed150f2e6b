// The factor of gradient clipping, for CPU and CUDA alike. PyTorch's clip_grad_norm_.
#pragma once

#include <cmath>

#include "kernels/isa.h"

namespace graft {
inline namespace GRAFT_ISA_NAMESPACE {

// What gradients whose squares add up to `square_sum` are multiplied with, so that their norm is at
// most max_norm. 1 for a norm that is not finite: a gradient of NaN or infinity is no direction to
// keep. The small number keeps a norm of zero harmless.
GRAFT_HD inline float clip_factor_of(double square_sum, double max_norm) {
  const double norm = std::sqrt(square_sum), factor = max_norm / (norm + 1e-6);
  return norm - norm == 0 && factor < 1 ? static_cast<float>(factor) : 1.0f;
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
