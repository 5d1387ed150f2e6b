// Judging a classifier: loss, confusion matrix and what follows from it.
#pragma once

#include <functional>

#include "transfer/batches.h"
#include "transfer/metrics.h"

namespace graft {

struct Evaluation {
  bool complete = false;  // false when `keep_going` stopped it
  double loss = 0;        // mean cross-entropy, without class weights and label smoothing
  ConfusionMatrix confusion;
  Metrics metrics;
};

using Forward = std::function<Tensor(const Tensor&)>;

// Runs one pass without a tape. The caller has put the model into inference mode. Labels are class
// indices of the logits; `positive` is the class that positive_f1 is about. `keep_going` is called
// after every batch with the number of samples done.
Evaluation evaluate(const Forward& forward, int64_t classes, int64_t positive, Batches& batches,
                    Device device, const std::function<bool(int64_t)>& keep_going);

}  // namespace graft
