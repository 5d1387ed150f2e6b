// The one way to start a kernel: empty grids, the stream and the error check are settled here.
#pragma once

#include <cstdint>
#include <tuple>
#include <utility>

#include "kernels/cuda/check.h"
#ifdef GRAFT_SIMT
#include "kernels/simt/runtime.h"
#endif

namespace graft::cuda {

// All work runs in order on one stream.
cudaStream_t stream();

constexpr unsigned kThreads = 256;

// blocks x blocks_y blocks of `threads`. Counts are what they are: launch() says when CUDA has no
// grid that large.
struct Grid {
  int64_t blocks = 0;
  unsigned threads = kThreads;
  int64_t blocks_y = 1;
};

// Blocks of `threads` for `items` independent items, one a thread. The grid is capped at 16 blocks
// of 256 threads per multiprocessor, twice what is resident at once: kernels walk the rest in grid
// strides.
Grid grid_for(int64_t items, unsigned threads = kThreads);
// One block an item, capped likewise.
Grid grid_of_blocks(int64_t items, unsigned threads = kThreads);

#ifdef GRAFT_SIMT
namespace detail {
template <class... Params, size_t... I>
GRAFT_SIMT_PLAIN void invoke(void (*kernel)(Params...), const std::tuple<Params...>& params,
                             std::index_sequence<I...>) {
  kernel(std::get<I>(params)...);
}
}  // namespace detail
#endif

// The grid as CUDA counts; throws Error where it is too large.
dim3 grid_size(const char* op, const Grid& grid);

// shared_bytes: dynamic shared memory; more than 48 KiB is asked for here as CUDA wants it.
template <class... Params, class... Args>
void launch(const char* op, Grid grid, size_t shared_bytes, void (*kernel)(Params...),
            const Args&... args) {
  if (grid.blocks == 0 || grid.blocks_y == 0) return;  // CUDA refuses these
  const dim3 blocks = grid_size(op, grid);
  if (shared_bytes > size_t{48} << 10) {
    check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                               static_cast<int>(shared_bytes)),
          op);
  }
#ifdef GRAFT_SIMT
  struct Call {
    void (*kernel)(Params...);
    std::tuple<Params...> params;
    static GRAFT_SIMT_PLAIN void invoke(const void* call) {
      const auto* self = static_cast<const Call*>(call);
      detail::invoke(self->kernel, self->params, std::index_sequence_for<Params...>{});
    }
  };
  simt::enqueue_launch({op, blocks, dim3(grid.threads), shared_bytes, &Call::invoke,
                        std::make_shared<const Call>(
                            Call{kernel, std::tuple<Params...>(static_cast<Params>(args)...)}),
                        reinterpret_cast<const void*>(kernel)},
                       stream());
#else
  // clang-format off
  kernel<<<blocks, grid.threads, shared_bytes, stream()>>>(static_cast<Params>(args)...);
  // clang-format on
#endif
  check(cudaGetLastError(), op);
}

}  // namespace graft::cuda
