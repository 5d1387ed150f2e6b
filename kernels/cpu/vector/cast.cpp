// Conversion between element types.
// Layout: contiguous. Numerics: bf16 by integer rounding to nearest even, NaN kept; f16 by the F16C
// instructions, which round to nearest even. 64-bit types go to the 16-bit ones through f32, as in
// PyTorch.
#include <immintrin.h>

#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
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
T read(T value) {
  return value;
}
float read(Bf16 value) {
  return __builtin_bit_cast(float, static_cast<uint32_t>(value.bits) << 16);
}
float read(F16 value) { return _cvtsh_ss(value.bits); }
uint8_t read(Boolean value) { return value.value != 0; }

uint16_t to_bf16(float value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, value);
  const uint32_t rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  return static_cast<uint16_t>(value != value ? (bits >> 16) | 0x40 : rounded);
}

int64_t to_i64(double value) {
  if (value != value) return 0;
  if (value >= 0x1p63) return INT64_MAX;
  if (value < -0x1p63) return INT64_MIN;
  return static_cast<int64_t>(value);
}

template <class To>
struct Write {
  template <class From>
  static To from(From value) {
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
  static Bf16 from(From value) {
    return {to_bf16(static_cast<float>(value))};
  }
};
template <>
struct Write<F16> {
  template <class From>
  static F16 from(From value) {
    return {_cvtss_sh(static_cast<float>(value), _MM_FROUND_TO_NEAREST_INT)};
  }
};
template <>
struct Write<Boolean> {
  template <class From>
  static Boolean from(From value) {
    return {static_cast<uint8_t>(value != 0)};
  }
};

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
      parallel_for(n, 1, [=](int64_t begin, int64_t end) {
        To* target = static_cast<To*>(y);
        const From* source = static_cast<const From*>(x);
        for (int64_t i = begin; i < end; ++i) target[i] = Write<To>::from(read(source[i]));
      });
    });
  });
}

}  // namespace graft::cpu::GRAFT_ISA
