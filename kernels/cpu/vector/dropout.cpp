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
#include "kernels/cpu/vector/keep.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {

void dropout(float* y, const float* x, float probability, RngKey key, int64_t n) {
  const Keep keep = keep_of(probability);
  const int64_t blocks = (n + kKeepWords - 1) / kKeepWords;
  parallel_for(blocks, 8 * kKeepWords, [=](int64_t begin, int64_t end) {
    uint32_t kept[kKeepWords];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kKeepWords, count = n - at < kKeepWords ? n - at : kKeepWords;
      keep_mask(kept, key, static_cast<uint64_t>(at), keep.threshold);
      for (int64_t i = 0; i < count; ++i) y[at + i] = kept[i] ? x[at + i] * keep.scale : 0.0f;
    }
  });
}

void drop_path(float* y, const float* x, float probability, RngKey key, int64_t rows,
               int64_t width) {
  const Keep keep = keep_of(probability);
  parallel_for(rows, width, [=](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const bool kept = (philox_word(key, static_cast<uint64_t>(r)) >> 8) >= keep.threshold;
      for (int64_t j = r * width; j < (r + 1) * width; ++j) {
        y[j] = kept ? x[j] * keep.scale : 0.0f;
      }
    }
  });
}

}  // namespace graft::cpu::GRAFT_ISA
