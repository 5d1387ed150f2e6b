// From an op to its kernel: by device, in one place.
//
//   GRAFT_KERNEL(unary, x.device(), "relu")(Unary::relu, {}, y, x, n);
//
// GRAFT_KERNEL needs the kernel in both backends: a missing one is a link error. GRAFT_CPU_KERNEL
// is for kernels that exist on the CPU only so far, and says so on other devices.
#pragma once

#include "kernels/error.h"
#include "kernels/kernels.h"

namespace graft {

inline void check_cpu(Device device, const char* op) {
  GRAFT_CHECK(device.is_cpu(), op, ": has no kernel for ", device,
              " in this build; move the tensors to the CPU or use --device cpu");
}

}  // namespace graft

#define GRAFT_CPU_KERNEL(kernel, device, op) (::graft::check_cpu(device, op), ::graft::cpu::kernel)
#define GRAFT_KERNEL(kernel, device, op) \
  (static_cast<void>(op), (device).is_cpu() ? ::graft::cpu::kernel : ::graft::cuda::kernel)
