// The data of an adaptation, and two endless streams of batches in step.
#pragma once

#include <memory>

#include "transfer/batches.h"

namespace graft {

struct DomainBatches {
  std::unique_ptr<Batches> source_train, source_held_out;  // labelled
  // The target's images, shuffled and in order. Their labels are not looked at, but for the oracle
  // where `target_labelled`.
  std::unique_ptr<Batches> target_train, target_in_order;
  bool target_labelled = false;
};

// Batches without end: a loader that is through starts its next epoch, whatever the other one
// does. The batch of a step is a function of the step alone, so a resumed run needs no state: that
// place in that epoch, or where no image there can be read, the next one of the epoch that has
// some.
class EndlessBatches {
 public:
  EndlessBatches(Batches& batches, Device device) : batches_(batches), feed_(batches, device) {}
  // The batch of a step; steps in ascending order cost nothing extra.
  Batch at(int64_t step);

 private:
  Batches& batches_;
  DeviceBatches feed_;
  int64_t next_ = -1;  // the step whose batch comes next from the feed; -1: none
};

}  // namespace graft
