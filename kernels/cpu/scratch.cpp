#include "kernels/cpu/scratch.h"

#include <cstdlib>

#include "kernels/error.h"

namespace graft::cpu {
namespace {

struct Block {
  void* data = nullptr;
  size_t bytes = 0;
  ~Block() { std::free(data); }
};
thread_local Block block;

}  // namespace

void* scratch(size_t bytes) {
  if (bytes > block.bytes) {
    const size_t rounded = (bytes + 4095) / 4096 * 4096;
    std::free(block.data);
    block.bytes = 0;
    block.data = std::aligned_alloc(64, rounded);
    GRAFT_CHECK(block.data != nullptr, "kernel scratch: out of memory for ", rounded, " bytes");
    block.bytes = rounded;
  }
  return block.data;
}

}  // namespace graft::cpu
