// Working memory for CPU kernels.
#pragma once

#include <cstddef>

namespace graft::cpu {

// At least `bytes` bytes, 64-byte aligned, uninitialised, that belong to the calling thread until
// its next call. Grows and stays: a kernel calls it once, outside its parallel regions.
void* scratch(size_t bytes);

}  // namespace graft::cpu
