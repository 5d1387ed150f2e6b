#include "transfer/adapt/judge.h"

#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "kernels/error.h"
#include "transfer/measure/statistics.h"
#include "transfer/measure/validators.h"

namespace graft {
namespace {

// The measures of pairs of rows are quadratic in them.
constexpr int64_t kMostRows = 1000;

template <class T>
std::vector<T> thinned(const std::vector<T>& x, int64_t most) {
  const auto n = static_cast<int64_t>(x.size());
  if (n <= most) return x;
  std::vector<T> result;
  for (int64_t i = 0; i < most; ++i) result.push_back(x[static_cast<size_t>(i * n / most)]);
  return result;
}

}  // namespace

Tensor thinned(const Tensor& x, int64_t most) {
  const int64_t n = x.dim(0), width = x.numel() / std::max<int64_t>(n, 1);
  if (n <= most) return x;
  Tensor result({most, width});
  for (int64_t i = 0; i < most; ++i) {
    std::copy_n(x.data<float>() + (i * n / most) * width, width,
                result.mutable_data<float>() + i * width);
  }
  return result;
}

double DomainView::accuracy() const {
  int64_t correct = 0;
  for (size_t i = 0; i < labels.size(); ++i) correct += labels[i] == predicted[i];
  return static_cast<double>(correct) / static_cast<double>(labels.size());
}

double DomainView::loss() const { return mean_of(losses); }

DomainView look(ImageModel& model, Batches& batches, Device device,
                const std::function<bool(int64_t)>& keep_going) {
  const NoGrad guard;
  model.eval();
  DomainView view;
  std::vector<float> features, probabilities;
  DeviceBatches there(batches, device);
  there.start_epoch(0, 0);
  for (Batch batch; there.next(batch);) {
    const Tensor rows = model.features(batch.images);
    const Tensor odds = log_softmax(model.head(rows));
    there.prefetch();
    const std::vector<float> values = cast(rows, Dtype::f32).to_vector<float>();
    const std::vector<float> logs = odds.to_vector<float>();
    const std::vector<int64_t> predicted = argmax(odds).to_vector<int64_t>();
    const std::vector<int64_t> labels = batch.labels.to_vector<int64_t>();
    features.insert(features.end(), values.begin(), values.end());
    for (const float log : logs) probabilities.push_back(std::exp(log));
    for (size_t i = 0; i < labels.size(); ++i) {
      const size_t at = i * static_cast<size_t>(odds.dim(1)) + static_cast<size_t>(labels[i]);
      view.losses.push_back(-static_cast<double>(logs[at]));
    }
    view.labels.insert(view.labels.end(), labels.begin(), labels.end());
    view.predicted.insert(view.predicted.end(), predicted.begin(), predicted.end());
    if (!keep_going(static_cast<int64_t>(view.labels.size()))) return {};
  }
  const auto n = static_cast<int64_t>(view.labels.size());
  GRAFT_CHECK(n > 0, "adapt: no image of a domain could be read");
  view.features = Tensor::of(features, {n, model.feature_width()});
  view.probabilities = Tensor::of(probabilities, {n, model.classes()});
  return view;
}

std::map<std::string, double> validator_scores(const DomainView& source, const DomainView& target) {
  const int64_t classes = target.probabilities.dim(1);
  const Tensor source_rows = thinned(source.features, kMostRows);
  const Tensor target_rows = thinned(target.features, kMostRows);
  const std::vector<int64_t> labels = thinned(source.labels, kMostRows);
  const std::vector<int64_t> predicted = thinned(target.predicted, kMostRows);
  const std::vector<double> losses = thinned(source.losses, kMostRows);
  return {{"source", source.accuracy()},
          {"bnm", nuclear_norm_score(target.probabilities)},
          {"dev", deep_embedded_validation(source_rows, target_rows, losses)},
          {"entropy", entropy_score(target.probabilities)},
          {"knn", neighbour_agreement(target_rows, predicted, source_rows, labels, classes)},
          {"mmd", discrepancy_score(source_rows, target_rows)},
          {"reverse", reverse_validation(target_rows, predicted, source_rows, labels, classes)},
          {"snd", soft_neighbourhood_density(target.probabilities, 0.05, kMostRows)}};
}

std::vector<std::string> validator_names() {
  return {"bnm", "dev", "entropy", "knn", "last", "mmd", "reverse", "snd", "source"};
}

}  // namespace graft
