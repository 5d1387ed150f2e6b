// From an op to its kernel: by device, in one place. A kernel that one of the backends lacks is a
// link error.
//
//   GRAFT_KERNEL(unary, x.device())(Unary::relu, {}, y, x, n);
#pragma once

#include "kernels/kernels.h"

#define GRAFT_KERNEL(kernel, device) \
  ((device).is_cpu() ? ::graft::cpu::kernel : ::graft::cuda::kernel)
