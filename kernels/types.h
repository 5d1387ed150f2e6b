// The types that kernels and engine share: element types, devices, and the parameter structs of the
// larger kernels.
#pragma once

#include <cstddef>
#include <cstdint>
#include <iosfwd>
#include <string_view>

namespace graft {

// Element types. The engine computes in f32; i64, i32 and u8 hold indices and pixels; the others
// exist so that weight files can be read, inspected and cast.
enum class Dtype : uint8_t { f32, bf16, f16, f64, i64, i32, i16, i8, u8, boolean };

size_t size_of(Dtype dtype);             // bytes of one element
std::string_view name_of(Dtype dtype);   // "f32"
std::ostream& operator<<(std::ostream& out, Dtype dtype);

struct Device {
  enum class Kind : uint8_t { cpu, cuda };
  Kind kind = Kind::cpu;
  int index = 0;
  bool is_cpu() const { return kind == Kind::cpu; }
  friend bool operator==(const Device&, const Device&) = default;
};

inline constexpr Device kCpu{};

std::ostream& operator<<(std::ostream& out, Device device);  // "cpu", "cuda:0"

// Whether this build holds the CUDA backend.
#ifdef GRAFT_HAS_CUDA
inline constexpr bool kHasCuda = true;
#else
inline constexpr bool kHasCuda = false;
#endif

enum class Activation : uint8_t { none, relu, relu6 };

// Geometry of a 2-d convolution. Images are NHWC, filters OHWI (I = in_channels / groups).
struct ConvShape {
  int64_t batch, in_height, in_width, in_channels;
  int64_t out_height, out_width, out_channels;
  int64_t kernel_height, kernel_width;
  int64_t stride_height = 1, stride_width = 1;
  int64_t dilation_height = 1, dilation_width = 1;
  int64_t pad_top = 0, pad_bottom = 0, pad_left = 0, pad_right = 0;
  int64_t groups = 1;
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

// Names one block of random numbers: the same key gives the same numbers on every backend and
// with any number of threads.
struct RngKey {
  uint64_t seed = 0;
  uint64_t step = 0;
  uint32_t stream = 0;
};

}  // namespace graft
