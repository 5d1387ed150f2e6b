#include "transfer/adapt/domain_batches.h"

#include "kernels/error.h"

namespace graft {

Batch EndlessBatches::at(int64_t step) {
  const int64_t count = batches_.count();
  GRAFT_CHECK(count > 0, "adapt: a domain has no batch to train on; lower --batch");
  const int64_t epoch = step / count, place = step % count;
  if (next_ != step) feed_.start_epoch(epoch, place);
  Batch batch;
  if (!feed_.next(batch)) {  // the rest of the epoch cannot be read
    feed_.start_epoch(epoch, 0);
    GRAFT_CHECK(feed_.next(batch), "adapt: a domain has no image that can be read");
  }
  // A feed that passed something over is ahead of the steps.
  next_ = batch.number == place && place + 1 < count ? step + 1 : -1;
  return batch;
}

}  // namespace graft
