// The one way to use more than one thread on the CPU: OpenMP's pool, which oneDNN shares.
#pragma once

#include <algorithm>
#include <cstdint>
#include <omp.h>

#include "kernels/isa.h"

namespace graft::cpu {
inline namespace GRAFT_ISA_NAMESPACE {

// Work on fewer elements than this is not worth waking a thread for (about 10 us of arithmetic).
constexpr int64_t kGrain = 16384;

// Calls body(begin, end) on consecutive ranges that cover 0..n-1. The ranges depend on the number
// of threads: a body whose result depends on its range must use parallel_chunks.
template <class Body>
void parallel_for(int64_t n, int64_t cost_per_item, const Body& body) {
  if (n <= 0) return;
  // All threads or one: libgomp ends the threads that a smaller team leaves over.
  if (n * std::max<int64_t>(1, cost_per_item) < 2 * kGrain || n == 1 || omp_in_parallel()) {
    body(int64_t{0}, n);
    return;
  }
#pragma omp parallel
  {
    const int64_t thread = omp_get_thread_num(), count = omp_get_num_threads();
    const int64_t begin = n * thread / count, end = n * (thread + 1) / count;
    if (begin < end) body(begin, end);
  }
}

// Calls body(chunk, begin, end) for a fixed number of chunks, whatever the number of threads: the
// way to keep a reduction bitwise equal on any machine. Partial results are indexed by chunk.
template <class Body>
void parallel_chunks(int64_t n, int64_t chunks, const Body& body) {
  if (n <= 0) return;
#pragma omp parallel for schedule(static) if (chunks > 1 && !omp_in_parallel())
  for (int64_t chunk = 0; chunk < chunks; ++chunk) {
    const int64_t begin = n * chunk / chunks, end = n * (chunk + 1) / chunks;
    body(chunk, begin, end);
  }
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft::cpu
