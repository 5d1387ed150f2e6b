// cp.async: from global to shared memory without a register in between (PTX ISA 9.7.9.25; sm_80 and
// later). A thread sees its own copies after wait_copies(); others see them after a barrier behind
// that.
#pragma once

#include <cuda_runtime.h>

#ifdef GRAFT_SIMT
#include <cuda_runtime.h>
#endif

namespace graft::cuda {

// Starts copying kBytes (4, 8 or 16), both addresses aligned to that. Without `valid` zeros arrive
// and `source` is not read.
template <int kBytes>
__device__ inline void copy_async(void* target, const void* source, bool valid = true) {
#ifdef GRAFT_SIMT
  simt::copy_async(target, source, kBytes, valid ? kBytes : 0);
#elif defined(__CUDA_ARCH__)
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(target));
  const int bytes = valid ? kBytes : 0;
  if constexpr (kBytes == 16) {
    asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(to), "l"(source), "r"(bytes)
                 : "memory");
  } else {
    asm volatile("cp.async.ca.shared.global [%0], [%1], %2, %3;" ::"r"(to), "l"(source),
                 "n"(kBytes), "r"(bytes)
                 : "memory");
  }
#endif
}
// Closes a group of copies.
__device__ inline void commit_copies() {
#ifdef GRAFT_SIMT
  simt::commit_copies();
#elif defined(__CUDA_ARCH__)
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}
// Waits until at most kGroups of this thread's groups are still under way.
template <int kGroups>
__device__ inline void wait_copies() {
#ifdef GRAFT_SIMT
  simt::wait_copies(kGroups);
#elif defined(__CUDA_ARCH__)
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

}  // namespace graft::cuda
