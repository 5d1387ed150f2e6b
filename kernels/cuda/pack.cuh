// Moving several neighbouring elements with one instruction: 16 bytes at a time where the addresses
// allow it.
#pragma once

#include <cstdint>
#include <cuda_runtime.h>
#include <initializer_list>

namespace graft::cuda {

// kWidth elements that are loaded and stored together.
template <class T, int kWidth>
struct alignas(sizeof(T) * kWidth) Pack {
  T v[kWidth];
};

template <int kWidth, class T>
__device__ Pack<T, kWidth> load(const T* from) {
#ifdef GRAFT_SIMT
  simt::check_aligned(from, alignof(Pack<T, kWidth>));
#endif
  return *reinterpret_cast<const Pack<T, kWidth>*>(from);
}
template <class T, int kWidth>
__device__ void store(T* to, const Pack<T, kWidth>& pack) {
#ifdef GRAFT_SIMT
  simt::check_aligned(to, alignof(Pack<T, kWidth>));
#endif
  *reinterpret_cast<Pack<T, kWidth>*>(to) = pack;
}

// The same, to global memory only, and surely as one instruction: where many packs are stored under
// conditions, the compiler takes them apart.
template <class T, int kWidth>
__device__ void store_whole(T* to, const Pack<T, kWidth>& pack) {
#ifdef __CUDA_ARCH__
  if constexpr (sizeof(pack) == 16) {
    __stwb(reinterpret_cast<uint4*>(to), __builtin_bit_cast(uint4, pack));
    return;
  }
#endif
  store(to, pack);
}

// kWidth elements of an array of T (float or Bf16) as floats, and back.
template <int kWidth, class T>
__device__ Pack<float, kWidth> load_floats(const T* from) {
  if constexpr (sizeof(T) == sizeof(float)) {
    return load<kWidth>(from);
  } else {
    const Pack<T, kWidth> pack = load<kWidth>(from);
    Pack<float, kWidth> floats;
    for (int k = 0; k < kWidth; ++k) floats.v[k] = static_cast<float>(pack.v[k]);
    return floats;
  }
}
template <class T, int kWidth>
__device__ void store_floats(T* to, const Pack<float, kWidth>& floats) {
  if constexpr (sizeof(T) == sizeof(float)) {
    store(to, floats);
  } else {
    Pack<T, kWidth> pack;
    for (int k = 0; k < kWidth; ++k) pack.v[k] = static_cast<T>(floats.v[k]);
    store(to, pack);
  }
}

// Elements of a 16-byte pack.
template <class T>
constexpr int kPackWidth = 16 / static_cast<int>(sizeof(T));

// Whether all the arrays begin at a multiple of 16 bytes (null does).
inline bool aligned(std::initializer_list<const void*> arrays) {
  for (const void* array : arrays) {
    if (reinterpret_cast<uintptr_t>(array) % 16 != 0) return false;
  }
  return true;
}

// Calls body.operator()<width>(start) for every pack of 0..n-1, grid-stride; the tail goes one by
// one.
template <int kWidth, class Body>
__device__ void for_packs(int64_t n, const Body& body) {
  const int64_t first = int64_t{blockIdx.x} * blockDim.x + threadIdx.x;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  const int64_t packs = n / kWidth;
  for (int64_t i = first; i < packs; i += step) body.template operator()<kWidth>(i * kWidth);
  if constexpr (kWidth > 1) {
    for (int64_t i = packs * kWidth + first; i < n; i += step) body.template operator()<1>(i);
  }
}

}  // namespace graft::cuda
