// Which elements dropout keeps.
#pragma once

#include <cstdint>

#include "kernels/philox.h"

namespace graft::cpu {
inline namespace GRAFT_ISA_NAMESPACE {

// Elements whose words are made together: 16 counters side by side, which the compiler vectorises.
constexpr int64_t kKeepBlocks = 16, kKeepWords = 4 * kKeepBlocks;

// u >= p for u = (word >> 8) / 2^24, in whole numbers, and the survivors' factor.
struct Keep {
  uint32_t threshold;
  float scale;
};
inline Keep keep_of(float probability) {
  const double scaled = static_cast<double>(probability) * 16777216.0;
  const auto whole = static_cast<uint32_t>(scaled);
  return {whole + (static_cast<double>(whole) < scaled ? 1u : 0u),
          probability < 1 ? 1.0f / (1.0f - probability) : 0.0f};
}

// kept[i]: whether element first + i stays, for kKeepWords elements; `first` is a multiple of 4.
inline void keep_mask(uint32_t* __restrict kept, const RngKey& key, uint64_t first,
                      uint32_t threshold) {
  for (uint64_t b = 0; b < static_cast<uint64_t>(kKeepBlocks); ++b) {
    const Philox4 words = philox(key, first / 4 + b);
    for (uint64_t w = 0; w < 4; ++w) kept[4 * b + w] = (words.v[w] >> 8) >= threshold;
  }
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft::cpu
