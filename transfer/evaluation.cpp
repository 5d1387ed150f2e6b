#include "transfer/evaluation.h"

#include "engine/autograd.h"
#include "engine/ops.h"
#include "kernels/error.h"

namespace graft {

Evaluation evaluate(const Forward& forward, int64_t classes, int64_t positive, Batches& batches,
                    Device device, const std::function<bool(int64_t)>& keep_going) {
  const NoGrad guard;
  Evaluation result;
  result.confusion = ConfusionMatrix(classes);
  double loss_sum = 0;
  int64_t samples = 0;
  CrossEntropyOptions sum;
  sum.reduction = Reduction::sum;
  DeviceBatches there(batches, device);
  there.start_epoch(0, 0);
  for (Batch batch; there.next(batch);) {
    const Tensor logits = forward(batch.images);
    const Tensor loss = cross_entropy(logits, batch.labels, sum), classes_of = argmax(logits);
    there.prefetch();
    loss_sum += static_cast<double>(loss.item());
    const std::vector<int64_t> actual = batch.labels.to_vector<int64_t>();
    const std::vector<int64_t> predicted = classes_of.to_vector<int64_t>();
    for (size_t i = 0; i < actual.size(); ++i) result.confusion.add(actual[i], predicted[i]);
    samples += static_cast<int64_t>(actual.size());
    if (!keep_going(samples)) return result;
  }
  GRAFT_CHECK(samples > 0, "evaluation: no image could be read");
  result.loss = loss_sum / static_cast<double>(samples);
  result.metrics = metrics_of(result.confusion, positive);
  result.complete = true;
  return result;
}

}  // namespace graft
