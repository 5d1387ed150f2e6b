#include "transfer/forgetting.h"

#include <algorithm>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "kernels/error.h"
#include "transfer/measure/logistic.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

constexpr int64_t kFolds = 5;

std::vector<bool> right(const std::vector<int64_t>& said, const std::vector<int64_t>& labels) {
  std::vector<bool> result;
  for (size_t i = 0; i < said.size(); ++i) result.push_back(said[i] == labels[i]);
  return result;
}

// The labels numbered 0.. over the classes that occur: a probe has no use for the others.
std::vector<int64_t> dense(const std::vector<int64_t>& labels, int64_t& classes) {
  std::vector<int64_t> known = labels;
  std::sort(known.begin(), known.end());
  known.erase(std::unique(known.begin(), known.end()), known.end());
  classes = std::ssize(known);
  std::vector<int64_t> result;
  for (const int64_t label : labels) {
    result.push_back(std::lower_bound(known.begin(), known.end(), label) - known.begin());
  }
  return result;
}

}  // namespace

KeptAccuracy kept_accuracy(const std::vector<bool>& before, const std::vector<bool>& after) {
  GRAFT_CHECK(before.size() == after.size() && before.size() >= 2,
              "forgetting: expected the same images before and after, at least 2, got ",
              before.size(), " and ", after.size());
  const auto n = std::ssize(before);
  KeptAccuracy kept;
  kept.before = proportion_interval(std::count(before.begin(), before.end(), true), n);
  kept.after = proportion_interval(std::count(after.begin(), after.end(), true), n);
  std::vector<double> changes;
  for (size_t i = 0; i < before.size(); ++i) {
    changes.push_back(static_cast<double>(after[i]) - static_cast<double>(before[i]));
  }
  kept.change = mean_interval(changes);
  const double least = 3 / static_cast<double>(n);
  kept.change.low = std::min(kept.change.low, kept.change.value - least);
  kept.change.high = std::max(kept.change.high, kept.change.value + least);
  return kept;
}

Forgetting measure_forgetting(const ForgettingOptions& options,
                              const std::function<bool(int64_t done, int64_t total)>& keep_going) {
  FeatureNetwork before = open_features(options.before, options.device, options.precision);
  FeatureNetwork after = open_features(options.after, options.device, options.precision);
  GRAFT_CHECK(before.has_head, options.before.string(),
              ": has no classifier of its own, so there is no source accuracy to lose");
  GRAFT_CHECK(before.card.architecture == after.card.architecture, options.after.string(),
              ": is a ", after.card.architecture, " and ", options.before.string(), " a ",
              before.card.architecture, "; name the weights before and after one fine-tuning");
  ImageDataset data = read_images(options.data, options.split);
  const std::vector<int64_t> counts = data.class_counts();
  for (size_t c = 0; c < counts.size(); ++c) {
    GRAFT_CHECK(counts[c] >= kFolds, options.data.string(), ": class \"", data.class_names[c],
                "\" has ", counts[c], " images, too few for a probe on ", kFolds,
                " folds; add some");
  }
  match_classes(data, before.card, options.data.string());
  const int64_t total = 2 * std::ssize(data.samples);
  int64_t done_before = 0;
  const auto told = [&](int64_t done) { return keep_going(done_before + done, total); };
  const ExtractedFeatures old = extract_features(before, data, options.reading, told);
  if (!old.features.defined()) return {};
  done_before = std::ssize(data.samples);
  const ExtractedFeatures now = extract_features(after, data, options.reading, told);
  if (!now.features.defined()) return {};

  Forgetting result;
  result.images = std::ssize(old.labels);
  const NoGrad guard;
  const Tensor turned = head_outputs(before, now.features, options.reading.batch);
  result.head = kept_accuracy(right(argmax(old.logits).to_vector<int64_t>(), old.labels),
                              right(argmax(turned).to_vector<int64_t>(), now.labels));
  const std::vector<int64_t> labels = dense(old.labels, result.classes);
  const auto probe = [&](const Tensor& features) {
    return right(
        cross_validated_labels(features, labels, result.classes, kFolds, {options.seed, 0, 0}),
        labels);
  };
  result.probe = kept_accuracy(probe(old.features), probe(now.features));
  return result;
}

}  // namespace graft
