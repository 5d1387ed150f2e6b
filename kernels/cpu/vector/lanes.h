// Vectors of channels: GCC's vector types, as wide as the instruction set of the build.
#pragma once

#include <cstdint>

#include "kernels/element.h"
#include "kernels/isa.h"

namespace graft::cpu::GRAFT_ISA {

#ifdef GRAFT_ISA_avx512
inline constexpr int kLanes = 16;
inline constexpr int kRegisters = 32;
#else
inline constexpr int kLanes = 8;
inline constexpr int kRegisters = 16;
#endif

template <int V>
struct LanesOf {
  typedef float type __attribute__((vector_size(V * sizeof(float))));
};
template <int V>
using Lanes = typename LanesOf<V>::type;

// Rows of channels start anywhere: loads and stores are unaligned.
template <int V>
[[gnu::always_inline]] inline Lanes<V> load(const float* from) {
  Lanes<V> value;
  __builtin_memcpy(&value, from, sizeof value);
  return value;
}
template <int V>
[[gnu::always_inline]] inline void store(float* to, Lanes<V> value) {
  __builtin_memcpy(to, &value, sizeof value);
}

// bf16 in memory, f32 in the vector.
template <int V>
struct IntegersOf {
  typedef uint16_t halves __attribute__((vector_size(V * sizeof(uint16_t))));
  typedef uint32_t words __attribute__((vector_size(V * sizeof(uint32_t))));
};
template <int V>
using Halves = typename IntegersOf<V>::halves;
template <int V>
using Words = typename IntegersOf<V>::words;
template <int V>
[[gnu::always_inline]] inline Lanes<V> load(const Bf16* from) {
  Halves<V> halves;
  __builtin_memcpy(&halves, from, sizeof halves);
  return __builtin_bit_cast(Lanes<V>, __builtin_convertvector(halves, Words<V>) << 16);
}
template <int V>
[[gnu::always_inline]] inline void store(Bf16* to, Lanes<V> value) {
  const auto bits = __builtin_bit_cast(Words<V>, value);
  const Words<V> rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16;
  const Words<V> nan = (bits >> 16) | 0x40;
  const auto halves = __builtin_convertvector(value != value ? nan : rounded, Halves<V>);
  __builtin_memcpy(to, &halves, sizeof halves);
}

}  // namespace graft::cpu::GRAFT_ISA
