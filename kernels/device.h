// Device memory and its copies. The only CUDA calls outside kernels are behind these.
#pragma once

#include <cstddef>

#include "kernels/types.h"

namespace graft::cuda {

// Number of usable devices; 0 without a driver. Never throws.
int device_count();
// Device memory, 256-byte aligned. Throws Error when there is no device; null when memory ran out.
void* allocate(size_t bytes, int device);
void release(void* data, int device);
// Blocking copy between any two devices or the host.
void copy(void* target, Device target_device, const void* source, Device source_device,
          size_t bytes);
void fill_bytes(void* target, int value, size_t bytes, int device);

}  // namespace graft::cuda
