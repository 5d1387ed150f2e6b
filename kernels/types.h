// The types that kernels and engine share: element types, devices, and the parameter structs of the
// larger kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <string_view>

namespace graft {

// Element types. The engine computes in f32 and keeps parameters there; activations and their
// gradients are f32 or bf16. i64, i32 and u8 hold indices and pixels; the others exist so that
// weight files can be read, inspected and cast.
enum class Dtype : uint8_t { f32, bf16, f16, f64, i64, i32, i16, i8, u8, boolean };

// Whether ops compute with it.
inline bool is_real(Dtype dtype) { return dtype == Dtype::f32 || dtype == Dtype::bf16; }
size_t size_of(Dtype dtype);            // bytes of one element
std::string_view name_of(Dtype dtype);  // "f32"
std::ostream& operator<<(std::ostream& out, Dtype dtype);

// An array of f32 or bf16 numbers, the type known at run time: what most kernels read and write.
// They compute in f32 and round what they store. Arrays of one call have the same type where its
// declaration does not say otherwise. visit_real() of element.h gives the C++ type.
struct Reals {
  void* data = nullptr;
  Dtype dtype = Dtype::f32;
  Reals() = default;
  Reals(float* data_) : data(data_) {}  // NOLINT: meant to convert
  Reals(void* data_, Dtype dtype_) : data(data_), dtype(dtype_) {}
  template <class T>
  T* as() const {
    return static_cast<T*>(data);
  }
  friend bool operator==(const Reals& a, std::nullptr_t) { return a.data == nullptr; }
};
struct ConstReals {
  const void* data = nullptr;
  Dtype dtype = Dtype::f32;
  ConstReals() = default;
  ConstReals(const float* data_) : data(data_) {}  // NOLINT: meant to convert
  ConstReals(const void* data_, Dtype dtype_) : data(data_), dtype(dtype_) {}
  ConstReals(Reals other) : data(other.data), dtype(other.dtype) {}  // NOLINT: meant to convert
  template <class T>
  const T* as() const {
    return static_cast<const T*>(data);
  }
  friend bool operator==(const ConstReals& a, std::nullptr_t) { return a.data == nullptr; }
};

struct Device {
  enum class Kind : uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;
  bool is_cpu() const { return kind == Kind::cpu; }
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device kCpu{};

std::ostream& operator<<(std::ostream& out, Device device);  // "cpu", "cuda:0"

// Whether nvcc compiled the CUDA backend of this build. Where it did not, the same kernels are
// there for the simulated device of kernels/simt.
#ifdef GRAFT_HAS_CUDA
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

enum class Activation : uint8_t { none, relu, relu6 };

// GELU (Hendrycks and Gimpel 2016): x times the normal distribution's function, or the
// approximation of it by tanh.
enum class Gelu : uint8_t { exact, tanh };

// Geometry of a 2-d convolution. Images are NHWC, f32 or bf16; filters OHWI (I = in_channels /
// groups), f32.
struct ConvShape {
  int64_t batch, in_height, in_width, in_channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width;
  int64_t stride_height = 1, stride_width = 1;
  int64_t dilation_height = 1, dilation_width = 1;
  int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  int64_t groups = 1;
  Dtype dtype = Dtype::f32;  // of the images
  bool depthwise() const { return groups == in_channels && out_channels == in_channels; }
  friend bool operator==(const ConvShape&, const ConvShape&) = default;
};

// Geometry of a 2-d pooling window over NHWC images.
struct PoolShape {
  int64_t batch, in_height, in_width, channels;
  int64_t out_height, out_width;
  int64_t kernel_height, kernel_width;
  int64_t stride_height = 1, stride_width = 1;
  int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  bool count_include_pad = true;  // average only
};

// How two operands broadcast over a contiguous result: its sizes, and how far a step along each
// dimension moves in each operand (0 where the operand is repeated).
constexpr int kMaxBroadcastRank = 6;
struct BroadcastShape {
  int rank = 0;
  int64_t sizes[kMaxBroadcastRank] = {};
  int64_t a_strides[kMaxBroadcastRank] = {};
  int64_t b_strides[kMaxBroadcastRank] = {};
};

// Everything the backward pass of batch-norm reads and writes. x is (rows, channels), f32 or bf16
// as g, y, dx and dz are. Null: not wanted, or not there.
struct BatchNormGrad {
  int64_t rows = 0, channels = 0;
  bool batch_statistics = true;  // else the statistics were constants (frozen)
  Activation activation = Activation::none;
  ConstReals g;                   // gradient of the result
  ConstReals x;                   // null is allowed when frozen without dweight and dbias
  ConstReals y;                   // the result; when null the activation's mask is made from x
  const float* stats = nullptr;   // (3, channels), of batch_norm_statistics
  const float* weight = nullptr;  // null: ones
  const float* bias = nullptr;    // null: zeros
  Reals dx;
  Reals dz;  // g through the activation: the residual's gradient
  float* dweight = nullptr;
  float* dbias = nullptr;
};

enum class PairLoss : uint8_t { mse, l1, huber, bce_with_logits };

struct CrossEntropyShape {
  int64_t rows = 0, classes = 0;
  float label_smoothing = 0;
  int64_t ignore_index = -100;
};

// One parameter of a fused optimizer pass. m and v are the optimizer's own state.
struct OptimTensor {
  float* p = nullptr;
  const float* g = nullptr;
  float* m = nullptr;  // SGD: momentum buffer, null without momentum
  float* v = nullptr;
  int64_t n = 0;
  bool first_step = false;  // SGD: the buffer starts as a copy of the gradient
};

// The numbers of an optimizer pass that change from step to step.
struct OptimRates {
  float learning_rate = 0;
  float decay = 0;       // AdamW: learning rate times weight decay
  float step_size = 0;   // AdamW: learning rate / bias correction of m
  float root_scale = 1;  // AdamW: 1 / sqrt(bias correction of v)
  // In device memory, instead of the numbers above: for work that is recorded once and run many
  // times.
  const OptimRates* at = nullptr;
};

// A reduction of (outer, axis, inner) to (outer, inner). The axis is cut into chunks when there are
// too few outputs to keep threads busy; the cut depends on the shape alone, so that results do not
// depend on the number of threads.
struct ReduceShape {
  int64_t outer = 1, axis = 1, inner = 1;
  int64_t chunks() const {
    constexpr int64_t kChunkElements = 32768, kMostChunks = 64;
    if (outer >= kMostChunks || inner >= kChunkElements) return 1;
    const int64_t wanted = axis * (inner > 0 ? inner : 1) / kChunkElements;
    return wanted < 1 ? 1 : (wanted > kMostChunks ? kMostChunks : wanted);
  }
  int64_t partials() const { return chunks() > 1 ? outer * chunks() * inner : 0; }
};

// A permutation: the sizes of the result, and how far a step along each of its dimensions moves in
// the source.
constexpr int kMaxPermuteRank = 8;
struct PermuteShape {
  int rank = 0;
  int64_t sizes[kMaxPermuteRank] = {};
  int64_t strides[kMaxPermuteRank] = {};
};

// gather along one axis: the index's sizes and the source's strides, dimension by dimension, and
// the source's size along the axis.
constexpr int kMaxGatherRank = 8;
struct GatherShape {
  int rank = 0, axis = 0;
  int64_t axis_size = 0;
  int64_t sizes[kMaxGatherRank] = {};
  int64_t strides[kMaxGatherRank] = {};
};

// Names one block of random numbers: the same key gives the same numbers on every backend and
// with any number of threads.
struct RngKey {
  uint64_t seed = 0;
  uint64_t step = 0;
  uint32_t stream = 0;
  // In device memory, instead of `step`: for work that is recorded once and run many times.
  const uint64_t* step_at = nullptr;
};

}  // namespace graft
