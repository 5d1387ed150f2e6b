// Under which key a library's algorithm for a shape is kept (kernels/choices.h).
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace graft::cuda {

// Choices hold for one library, one kind of GPU and one driver: where any of them changes, what was
// fastest may have changed, and what a number stands for.
std::string choice_key(const char* library, uint64_t version, const std::vector<int64_t>& shape);

}  // namespace graft::cuda
