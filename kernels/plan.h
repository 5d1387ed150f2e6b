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

// What a product does with its finished sums s (with the bias, where there is one).
enum class MatmulEnd : uint8_t {
  none,       // y = s
  gelu,       // y = gelu(s), and pre = s where that array is given
  gelu_grad,  // y = s gelu'(pre)
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
  bool sums_a = false;       // also sums a along k; a is transposed and batch is 1
  // gelu wants b transposed, gelu_grad not, as the weight of a linear layer lies on the way there
  // and back; both want a as it is, batch 1 and y of a's type.
  MatmulEnd end = MatmulEnd::none;
  Gelu gelu = Gelu::exact;
  Dtype dtype = Dtype::f32;  // of a, and of b where that is no weight
  Dtype y_dtype = Dtype::f32;
};

// The arrays of a product besides a, b and y; null where its shape has none.
struct MatmulArrays {
  const float* bias = nullptr;
  void* pre = nullptr;    // what GELU is taken of, (m, n) of y's type; apart from y
  float* sums = nullptr;  // of a's columns, (m)
};

inline namespace GRAFT_ISA_NAMESPACE {

// Scratch memory for the sums of a's columns by our own kernel: partial sums and an f32 copy of a,
// where it is bf16.
struct ColumnSums {
  ReduceShape shape;
  size_t copy_offset = 0, bytes = 0;
  explicit ColumnSums(const MatmulShape& s) : shape{1, s.k, s.m} {
    if (!s.sums_a) return;
    copy_offset = (static_cast<size_t>(shape.partials()) * sizeof(double) + 63) / 64 * 64;
    const bool copied = s.dtype == Dtype::bf16;
    bytes = copy_offset + (copied ? static_cast<size_t>(s.k * s.m) * sizeof(float) : 0);
  }
  // With the kernels of the backend.
  template <class Cast, class ReduceSum>
  void run(float* sums, ConstReals a, void* scratch, const Cast& cast,
           const ReduceSum& reduce_sum) const {
    const float* wide = a.as<float>();
    if (a.dtype == Dtype::bf16) {
      void* copy = static_cast<char*>(scratch) + copy_offset;
      cast(copy, Dtype::f32, a.data, Dtype::bf16, shape.axis * shape.inner);
      wide = static_cast<const float*>(copy);
    }
    reduce_sum(sums, wide, shape, 1, static_cast<double*>(scratch));
  }
};

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
