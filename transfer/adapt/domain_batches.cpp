#include "transfer/adapt/domain_batches.h"

#include "kernels/error.h"

namespace graft {

Batch EndlessBatches::at(int64_t step) {
  const int64_t count = batches_.count();
  GRAFT_CHECK(count > 0, "adapt: a domain has no batch to train on; lower --batch");
  if (next_ != step) {
    epoch_ = step / count;
    feed_.start_epoch(epoch_, step % count);
  }
  next_ = step + 1;
  Batch batch;
  for (int tries = 0; tries < 2; ++tries) {
    if (feed_.next(batch)) return batch;
    feed_.start_epoch(++epoch_, 0);
  }
  fail("adapt: a domain has no image that can be read");
}

}  // namespace graft
