// The one place where a CUDA status becomes an Error.
#pragma once

#include <cuda_runtime.h>

#include "kernels/error.h"

namespace graft::cuda {

// Throws unless status is cudaSuccess. Kernels run asynchronously: an error may have begun in an
// earlier operation than `op`.
inline void check(cudaError_t status, const char* op) {
  if (status != cudaSuccess) cudaGetLastError();  // clears it, unless the context is lost
  GRAFT_CHECK(status == cudaSuccess, op, ": CUDA reports ", cudaGetErrorName(status), " (",
              cudaGetErrorString(status),
              "). Run again with CUDA_LAUNCH_BLOCKING=1 to see in which operation it begins.");
}

}  // namespace graft::cuda
