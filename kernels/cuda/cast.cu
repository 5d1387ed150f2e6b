// Conversion between element types.
// Layout: contiguous; a thread moves 16 bytes of the wider type at a time where both arrays are
// aligned to 16 bytes, else one element. Numerics: bf16 and f16 by integer rounding to nearest
// even, NaN kept; 64-bit types go to them through f32, as in PyTorch. Elementwise, hence
// deterministic; the same bits as on the CPU.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct Boolean {
  uint8_t value;
};

// The number an element stands for, in the narrowest arithmetic type that holds it.
template <class T>
__device__ T read(T value) {
  return value;
}
__device__ float read(Bf16 value) { return __uint_as_float(uint32_t{value.bits} << 16); }
__device__ float read(F16 value) {
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = (value.bits & 0x7FFFu) << 13;
  // NaN (made quiet) and infinity; else the exponent is 112 too small, denormal or not.
  if (rest > 0x0F800000u) return __uint_as_float(sign | rest | 0x7FC00000u);
  if (rest == 0x0F800000u) return __uint_as_float(sign | 0x7F800000u);
  return __uint_as_float(sign | __float_as_uint(__uint_as_float(rest) * 0x1p112f));
}
__device__ uint8_t read(Boolean value) { return value.value != 0; }

__device__ uint16_t to_bf16(float value) {
  const uint32_t bits = __float_as_uint(value);
  const uint32_t rounded = (bits + 0x7FFF + (bits >> 16 & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40 : rounded);
}

__device__ uint16_t to_f16(float value) {
  const uint32_t bits = __float_as_uint(value), size = bits & 0x7FFFFFFF;
  uint32_t result = 0;
  if (size > 0x7F800000) {  // NaN
    result = 0x7E00 | (size >> 13 & 0x3FF);
  } else if (size >= 0x47800000) {  // 2^16 and more
    result = 0x7C00;
  } else if (size < 0x38800000) {  // below 2^-14: the sum's unit is that of f16's denormals
    result = __float_as_uint(__uint_as_float(size) + 0.5f) - __float_as_uint(0.5f);
  } else {
    result = (size - (112u << 23) + 0xFFF + (size >> 13 & 1)) >> 13;
  }
  return static_cast<uint16_t>((bits >> 16 & 0x8000) | result);
}

__device__ int64_t to_i64(double value) {
  if (value != value) return 0;
  if (value >= 0x1p63) return INT64_MAX;
  if (value < -0x1p63) return INT64_MIN;
  return static_cast<int64_t>(value);
}

template <class To>
struct Write {
  template <class From>
  __device__ static To from(From value) {
    if constexpr (From(0.5) != From(0) && To(0.5) == To(0)) {  // a fraction to an integer
      return static_cast<To>(to_i64(static_cast<double>(value)));
    } else {
      return static_cast<To>(value);
    }
  }
};
template <>
struct Write<Bf16> {
  template <class From>
  __device__ static Bf16 from(From value) {
    return {to_bf16(static_cast<float>(value))};
  }
};
template <>
struct Write<F16> {
  template <class From>
  __device__ static F16 from(From value) {
    return {to_f16(static_cast<float>(value))};
  }
};
template <>
struct Write<Boolean> {
  template <class From>
  __device__ static Boolean from(From value) {
    return {static_cast<uint8_t>(value != 0)};
  }
};

template <class To, class From>
constexpr int kCastWidth = 16 /
                           static_cast<int>(sizeof(To) > sizeof(From) ? sizeof(To) : sizeof(From));

template <class To, class From>
__global__ void cast_kernel(To* y, const From* x, bool wide, int64_t n) {
  const auto cast_pack = [=]<int W>(int64_t i) {
    const Pack<From, W> from = load<W>(x + i);
    Pack<To, W> to;
    for (int k = 0; k < W; ++k) to.v[k] = Write<To>::from(read(from.v[k]));
    store(y + i, to);
  };
  if (wide) {
    for_packs<kCastWidth<To, From>>(n, cast_pack);
  } else {
    for_packs<1>(n, cast_pack);
  }
}

// Calls use(T{}) with the C++ type of an element type.
template <class Use>
void visit_type(Dtype dtype, const Use& use) {
  switch (dtype) {
    case Dtype::f32:
      return use(float{});
    case Dtype::bf16:
      return use(Bf16{});
    case Dtype::f16:
      return use(F16{});
    case Dtype::f64:
      return use(double{});
    case Dtype::i64:
      return use(int64_t{});
    case Dtype::i32:
      return use(int32_t{});
    case Dtype::i16:
      return use(int16_t{});
    case Dtype::i8:
      return use(int8_t{});
    case Dtype::u8:
      return use(uint8_t{});
    case Dtype::boolean:
      return use(Boolean{});
  }
}

}  // namespace

void cast(void* y, Dtype to, const void* x, Dtype from, int64_t n) {
  visit_type(to, [=]<class To>(To) {
    visit_type(from, [=]<class From>(From) {
      const bool wide = aligned({y, x});
      const int64_t width = wide ? kCastWidth<To, From> : 1;
      launch("cast", grid_for((n + width - 1) / width), 0, cast_kernel<To, From>,
             static_cast<To*>(y), static_cast<const From*>(x), wide, n);
    });
  });
}

}  // namespace graft::cuda
