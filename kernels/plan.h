// What the library kernels (oneDNN; cuDNN and cuBLASLt on the other side) need besides pointers: a
// plan, made once for a shape and kept, says which weight layout and how much scratch memory it
// wants.
#pragma once

#include <algorithm>
#include <bit>
#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/isa.h"
#include "kernels/types.h"

namespace graft {

struct LibraryPlan {
  std::shared_ptr<const void> primitive;  // the library's own objects
  // Names the weight layout that the plan reads: 0 is the plain one, the others come from
  // pack_weight() and stay valid for the life of the process. Equal numbers mean equal layouts.
  int packing = 0;
  size_t packed_bytes = 0;
  size_t scratch_bytes = 0;
};

// What a convolution's forward pass does after the products: y = act(conv + bias + residual).
struct ConvEpilogue {
  bool bias = false;
  bool residual = false;
  Activation activation = Activation::none;
};

// (batch, m, k) x (batch, k, n) -> (batch, m, n), row-major.
struct MatmulShape {
  int64_t batch, m, n, k;
  bool transpose_a = false;  // a is (batch, k, m)
  bool transpose_b = false;  // b is (batch, n, k)
  bool shared_a = false;     // a has no batch dimension: every product uses the same one
  bool shared_b = false;     // likewise b
  bool bias = false;         // adds bias (n) to every row
  bool packed_b = false;     // b is a weight worth packing; batch is 1
  bool weight_b = false;     // b is an f32 weight whatever dtype says; batch is 1
  Dtype dtype = Dtype::f32;  // of a, and of b where that is no weight
  Dtype y_dtype = Dtype::f32;
};

inline namespace GRAFT_ISA_NAMESPACE {

// Depthwise backward-weights sums this many partial results: a number that depends on the shape
// alone, so that the last bits do not depend on the threads.
inline int64_t depthwise_chunks(const ConvShape& s) {
  const auto pixels = static_cast<uint64_t>(s.batch * s.out_height * s.out_width);
  return static_cast<int64_t>(std::bit_floor(std::clamp<uint64_t>(pixels / 128, 1, 16)));
}

// Floats of scratch memory that the depthwise kernels want.
inline int64_t depthwise_scratch(const ConvShape& s) {
  return depthwise_chunks(s) * s.kernel_height * s.kernel_width * s.in_channels;
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
