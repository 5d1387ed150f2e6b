// p(source class | target class), which Co-Tuning (co_tuning.cpp) trains the source head on.
#pragma once

#include <vector>

#include "engine/tensor.h"

namespace graft {

// The direct way of the paper: of each target class, the mean of what the source network says of
// its images, in double. Its reverse way fits a classifier on those probabilities and asks it about
// single source classes, which no image resembles. The paper divides the logits by a temperature
// that was fitted on source images; there are none here, and TLlib does without, too.
class CategoryRelation {
 public:
  CategoryRelation(int64_t target_classes, int64_t source_classes);
  // logits f32 (n, source classes) on any device, labels i64 (n) on the host.
  void add(const Tensor& logits, const Tensor& labels);
  // f32 (target classes, source classes) on the CPU. A class without images has a row of zeros.
  Tensor rows() const;

 private:
  int64_t target_classes_, source_classes_;
  std::vector<double> sums_;
  std::vector<int64_t> counts_;
};

}  // namespace graft
