// Temporary device memory for a launcher that needs two passes.
#pragma once

#include <cstddef>

namespace graft::cuda {

// At least `bytes`, 256-byte aligned, contents arbitrary. The calling thread's: valid for what is
// launched until its next call, which may return the same memory (the stream keeps the order). Ask
// once a launcher. Throws Error when memory runs out.
void* scratch(const char* op, size_t bytes);

}  // namespace graft::cuda
