// Products by cuBLASLt, where the library is on the machine.
#pragma once

#include <memory>

#include "kernels/plan.h"

namespace graft::cuda {

// A shape's product as cuBLASLt sees it, and the algorithms to choose from.
struct LibraryProduct;

// Null where there is no library or it has no algorithm for the shape, with all that the shape says
// of its end and of sums. Kept for the process.
std::shared_ptr<const LibraryProduct> library_product(const MatmulShape& shape);
// Scratch memory that the next call wants.
size_t library_scratch(const LibraryProduct& product);
// The shape's product, arrays of its types, all aligned to 16 bytes; with MatmulEnd::gelu,
// others.pre is wanted. False: nothing was done, no algorithm works.
bool library_matmul(const LibraryProduct& product, void* y, const void* a, const void* b,
                    const MatmulArrays& others, void* scratch);

}  // namespace graft::cuda
