// Philox 4x32-10 (Salmon, Moraes, Dror, Shaw: Parallel random numbers: as easy as 1, 2, 3, SC
// 2011).
#pragma once

#include <cstdint>

#include "kernels/isa.h"
#include "kernels/types.h"

namespace graft {
inline namespace GRAFT_ISA_NAMESPACE {

// The key with its step in place, wherever that stands.
GRAFT_HD inline RngKey resolved(RngKey key) {
  if (key.step_at != nullptr) key.step = *key.step_at;
  return key;
}

struct Philox4 {
  uint32_t v[4];
};

// Four random words for block `index` of a key. The counter is (index, stream, step's low word) and
// the Philox key is the seed; the step's high word is folded into the seed.
GRAFT_HD inline Philox4 philox(const RngKey& key, uint64_t index) {
  uint32_t c0 = static_cast<uint32_t>(index), c1 = static_cast<uint32_t>(index >> 32);
  uint32_t c2 = key.stream, c3 = static_cast<uint32_t>(key.step);
  uint32_t k0 = static_cast<uint32_t>(key.seed);
  uint32_t k1 = static_cast<uint32_t>(key.seed >> 32) ^ static_cast<uint32_t>(key.step >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t p0 = uint64_t{0xD2511F53u} * c0, p1 = uint64_t{0xCD9E8D57u} * c2;
    const uint32_t n0 = static_cast<uint32_t>(p1 >> 32) ^ c1 ^ k0;
    const uint32_t n2 = static_cast<uint32_t>(p0 >> 32) ^ c3 ^ k1;
    c1 = static_cast<uint32_t>(p1);
    c3 = static_cast<uint32_t>(p0);
    c0 = n0;
    c2 = n2;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}

// Word number `element` of a key's sequence.
GRAFT_HD inline uint32_t philox_word(const RngKey& key, uint64_t element) {
  const Philox4 words = philox(key, element >> 2);
  // Chosen, not indexed: a GPU has no index into registers, and would put the four into memory.
  const uint32_t even = element & 2 ? words.v[2] : words.v[0];
  const uint32_t odd = element & 2 ? words.v[3] : words.v[1];
  return element & 1 ? odd : even;
}

// Uniform in [0, 1) with 24 bits.
GRAFT_HD inline float to_uniform(uint32_t word) { return static_cast<float>(word >> 8) * 0x1p-24f; }

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
