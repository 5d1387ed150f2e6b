// Counter-based random numbers (Philox 4x32-10, Salmon et al., SC 2011). A key names a block of
// numbers; the element index picks one. No state is consumed, so results do not depend on thread
// counts, backends or where a run was resumed.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/tensor.h"
#include "kernels/types.h"

namespace graft {

// Sets what next_key() hands out: the run's seed and the training step. Streams restart at 0, so
// the same calls in the same order within a step get the same numbers after a resume.
// step_at: where in device memory the step stands, for a step that is recorded once and run many
// times; `step` is then ignored.
void begin_rng_step(uint64_t seed, uint64_t step, const uint64_t* step_at = nullptr);
// A fresh stream of the current step (thread-local).
RngKey next_key();

Tensor uniform(Shape shape, float low, float high, RngKey key);
Tensor normal(Shape shape, float mean, float stddev, RngKey key);
// A permutation of 0..n-1 (Fisher-Yates).
std::vector<int64_t> permutation(int64_t n, RngKey key);

// Draws numbers one after another from one key, for host code such as augmentation.
class RandomStream {
 public:
  // first_word: how many 32-bit words of the key's sequence to skip.
  explicit RandomStream(RngKey key, uint64_t first_word = 0) : key_(key), index_(first_word) {}
  uint32_t bits();
  double uniform();  // [0, 1)
  double uniform(double low, double high) { return low + (high - low) * uniform(); }
  double normal();
  int64_t below(int64_t n);  // 0..n-1

 private:
  RngKey key_;
  uint64_t index_ = 0;
  uint64_t block_ = ~uint64_t{0};  // which block of four words is in words_
  uint32_t words_[4] = {};
};

}  // namespace graft
