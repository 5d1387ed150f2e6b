// The element types of arrays as C++ types, and the conversion of one element, once, for the CPU
// and for CUDA. To bf16 and f16: nearest, ties to even, NaN kept; 64-bit types go there through
// f32, as in PyTorch.
#pragma once

#include <cstdint>

#include "kernels/isa.h"
#include "kernels/types.h"
#if defined(__F16C__) && !defined(__CUDACC__)
#include <immintrin.h>
#endif

namespace graft {
inline namespace GRAFT_ISA_NAMESPACE {

// The upper half of a float. Kernels that are templates over float and Bf16 load a T, compute with
// static_cast<float>, and store a static_cast<T>.
struct Bf16 {
  uint16_t bits;
  Bf16() = default;
  GRAFT_HD explicit Bf16(float value);
  GRAFT_HD explicit operator float() const;
};
struct F16 {
  uint16_t bits;
};
struct Boolean {
  uint8_t value;
};

GRAFT_HD inline float float_of_bits(uint32_t bits) { return __builtin_bit_cast(float, bits); }
GRAFT_HD inline uint32_t bits_of_float(float value) { return __builtin_bit_cast(uint32_t, value); }

GRAFT_HD inline Bf16::operator float() const { return float_of_bits(uint32_t{bits} << 16); }
GRAFT_HD inline Bf16::Bf16(float value) {
#ifdef __CUDA_ARCH__
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(bits) : "f"(value));
#else
  const uint32_t from = bits_of_float(value);
  const uint32_t rounded = (from + 0x7FFF + ((from >> 16) & 1)) >> 16;
  bits = static_cast<uint16_t>(value != value ? (from >> 16) | 0x40 : rounded);
#endif
}

// The number an element stands for, in the narrowest arithmetic type that holds it.
template <class T>
GRAFT_HD T read(T value) {
  return value;
}
GRAFT_HD inline float read(Bf16 value) { return static_cast<float>(value); }
GRAFT_HD inline float read(F16 value) {
#if defined(__F16C__) && !defined(__CUDACC__)
  return _cvtsh_ss(value.bits);
#else
  const uint32_t sign = (value.bits & 0x8000u) << 16, rest = (value.bits & 0x7FFFu) << 13;
  // NaN (made quiet) and infinity; else the exponent is 112 too small, denormal or not.
  if (rest > 0x0F800000u) return float_of_bits(sign | rest | 0x7FC00000u);
  if (rest == 0x0F800000u) return float_of_bits(sign | 0x7F800000u);
  return float_of_bits(sign | bits_of_float(float_of_bits(rest) * 0x1p112f));
#endif
}
GRAFT_HD inline uint8_t read(Boolean value) { return value.value != 0; }

GRAFT_HD inline F16 to_f16(float value) {
#if defined(__F16C__) && !defined(__CUDACC__)
  return {_cvtss_sh(value, _MM_FROUND_TO_NEAREST_INT)};
#else
  const uint32_t bits = bits_of_float(value), size = bits & 0x7FFFFFFF;
  uint32_t result = 0;
  if (size > 0x7F800000) {  // NaN
    result = 0x7E00 | ((size >> 13) & 0x3FF);
  } else if (size >= 0x47800000) {  // 2^16 and more
    result = 0x7C00;
  } else if (size < 0x38800000) {  // below 2^-14: the sum's unit is that of f16's denormals
    result = bits_of_float(float_of_bits(size) + 0.5f) - bits_of_float(0.5f);
  } else {
    result = (size - (112u << 23) + 0xFFF + ((size >> 13) & 1)) >> 13;
  }
  return {static_cast<uint16_t>(((bits >> 16) & 0x8000) | result)};
#endif
}

// Truncated towards zero and saturated; NaN gives 0.
GRAFT_HD inline int64_t to_i64(double value) {
  if (value != value) return 0;
  if (value >= 0x1p63) return INT64_MAX;
  if (value < -0x1p63) return INT64_MIN;
  return static_cast<int64_t>(value);
}

// Write<To>::from(number): the element that stands for it.
template <class To>
struct Write {
  template <class From>
  GRAFT_HD static To from(From value) {
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
  GRAFT_HD static Bf16 from(From value) {
    return Bf16(static_cast<float>(value));
  }
};
template <>
struct Write<F16> {
  template <class From>
  GRAFT_HD static F16 from(From value) {
    return to_f16(static_cast<float>(value));
  }
};
template <>
struct Write<Boolean> {
  template <class From>
  GRAFT_HD static Boolean from(From value) {
    return {static_cast<uint8_t>(value != 0)};
  }
};

// Calls use(T{}) with the C++ type of the elements of Reals: float or Bf16.
template <class Use>
decltype(auto) visit_real(Dtype dtype, const Use& use) {
  return dtype == Dtype::bf16 ? use(Bf16{}) : use(float{});
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

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
