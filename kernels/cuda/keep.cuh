// Which elements dropout keeps.
#pragma once

#include <cstdint>

#include "kernels/cuda/pack.cuh"
#include "kernels/philox.h"

namespace graft::cuda {

// What a kernel needs to know of a probability: u >= p in whole numbers, and the survivors' factor.
struct Keep {
  uint32_t threshold;
  float scale;
  __device__ float operator()(float x, uint32_t word) const {
    return word >> 8 >= threshold ? x * scale : 0.0f;
  }
  // A pack of neighbours, the first of which is element i of the key's sequence. A pack of four
  // begins at a multiple of 4.
  template <int kWidth>
  __device__ Pack<float, kWidth> of(Pack<float, kWidth> pack, const RngKey& key, int64_t i) const {
    static_assert(kWidth == 1 || kWidth == 4);
    if (threshold == 0) return pack;  // nothing is dropped, and the factor is 1
    if constexpr (kWidth == 4) {
      const Philox4 words = philox(key, static_cast<uint64_t>(i) / 4);
      for (int k = 0; k < 4; ++k) pack.v[k] = (*this)(pack.v[k], words.v[k]);
    } else {
      pack.v[0] = (*this)(pack.v[0], philox_word(key, static_cast<uint64_t>(i)));
    }
    return pack;
  }
};
inline Keep keep_of(float probability) {
  const double scaled = static_cast<double>(probability) * 16777216.0;
  const auto whole = static_cast<uint32_t>(scaled);
  return {whole + (static_cast<double>(whole) < scaled ? 1u : 0u),
          probability < 1 ? 1.0f / (1.0f - probability) : 0.0f};
}

}  // namespace graft::cuda
