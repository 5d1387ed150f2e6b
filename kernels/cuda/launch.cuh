// The one way to start a kernel: empty grids, the stream and the error check are settled here.
#pragma once

#include <cstdint>

#include "kernels/cuda/check.h"

namespace graft::cuda {

// All work runs in order on one stream, which blocking copies wait for.
inline const cudaStream_t kStream = cudaStreamLegacy;

constexpr int kThreads = 256;

struct Grid {
  unsigned blocks = 0, threads = kThreads;
};

// Blocks for `items` independent items. The grid is capped at 16 blocks per multiprocessor, twice
// what is resident at once: kernels walk the rest in grid strides.
Grid grid_for(int64_t items);

template <class... Params, class... Args>
void launch(const char* op, Grid grid, size_t shared_bytes, void (*kernel)(Params...),
            const Args&... args) {
  if (grid.blocks == 0) return;  // CUDA refuses an empty grid
  kernel<<<grid.blocks, grid.threads, shared_bytes, kStream>>>(static_cast<Params>(args)...);
  check(cudaGetLastError(), op);
}

}  // namespace graft::cuda
