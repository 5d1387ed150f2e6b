// Dropout (Srivastava et al. 2014) and drop path (Huang et al. 2016), on counter-based random
// numbers.
//
//   y_i = x_i / (1 - p) where u_i >= p, else 0;  u_i = uniform of word i of the key, 24 bits
//
// The gradient is the same function of the gradient, so no mask is stored. Layout: flat arrays, no
// alignment assumed. The bits depend on the key and the element's index alone: deterministic, and
// the same on every backend. Philox is evaluated for 16 counters side by side, which the compiler
// vectorises.
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"
#include "kernels/philox.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kBlocks = 16, kWords = 4 * kBlocks;

// u >= p for u = (word >> 8) / 2^24, in whole numbers.
uint32_t threshold_of(float probability) {
  const double scaled = static_cast<double>(probability) * 16777216.0;
  const auto whole = static_cast<uint32_t>(scaled);
  return whole + (static_cast<double>(whole) < scaled ? 1u : 0u);
}

// kept[i]: whether element first + i stays, for kWords elements; `first` is a multiple of 4.
void keep_mask(uint32_t* __restrict kept, const RngKey& key, uint64_t first, uint32_t threshold) {
  for (uint64_t b = 0; b < static_cast<uint64_t>(kBlocks); ++b) {
    const Philox4 words = philox(key, first / 4 + b);
    for (uint64_t w = 0; w < 4; ++w) kept[4 * b + w] = (words.v[w] >> 8) >= threshold;
  }
}

}  // namespace

void dropout(float* y, const float* x, float probability, RngKey key, int64_t n) {
  const uint32_t threshold = threshold_of(probability);
  const float scale = probability < 1 ? 1.0f / (1.0f - probability) : 0.0f;
  const int64_t blocks = (n + kWords - 1) / kWords;
  parallel_for(blocks, 8 * kWords, [=](int64_t begin, int64_t end) {
    uint32_t kept[kWords];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kWords, count = n - at < kWords ? n - at : kWords;
      keep_mask(kept, key, static_cast<uint64_t>(at), threshold);
      for (int64_t i = 0; i < count; ++i) y[at + i] = kept[i] ? x[at + i] * scale : 0.0f;
    }
  });
}

void drop_path(float* y, const float* x, float probability, RngKey key, int64_t rows,
               int64_t width) {
  const uint32_t threshold = threshold_of(probability);
  const float scale = probability < 1 ? 1.0f / (1.0f - probability) : 0.0f;
  parallel_for(rows, width, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const bool kept = (philox_word(key, static_cast<uint64_t>(r)) >> 8) >= threshold;
      for (int64_t j = r * width; j < (r + 1) * width; ++j) y[j] = kept ? x[j] * scale : 0.0f;
    }
  });
}

}  // namespace graft::cpu::GRAFT_ISA
