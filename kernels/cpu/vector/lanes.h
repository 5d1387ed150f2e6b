// Vectors of channels: GCC's vector types, as wide as the instruction set of the build.
#pragma once

#include <cstdint>

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

}  // namespace graft::cpu::GRAFT_ISA
