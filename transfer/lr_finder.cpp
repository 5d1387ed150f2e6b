#include "transfer/lr_finder.h"

#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "layers/norm.h"
#include "transfer/batches.h"
#include "transfer/prepared_run.h"

namespace graft {
namespace {

// Where a longest falling subsequence starts and ends.
std::pair<size_t, size_t> longest_valley(const std::vector<double>& losses) {
  std::vector<size_t> length(losses.size(), 1);
  size_t end = 0;
  for (size_t i = 1; i < losses.size(); ++i) {
    for (size_t j = 0; j < i; ++j) {
      if (losses[i] < losses[j]) length[i] = std::max(length[i], length[j] + 1);
    }
    if (length[i] > length[end]) end = i;
  }
  return {end + 1 - length[end], end};
}

std::unique_ptr<Optimizer> optimizer_for(const FinetuneOptions& options,
                                         std::vector<ParameterGroup> groups) {
  std::unique_ptr<Optimizer> optimizer =
      options.optimizer == OptimizerKind::sgd
          ? make_sgd(std::move(groups), {.momentum = options.momentum})
          : make_adamw(std::move(groups), {});
  optimizer->set_clip_norm(options.clip_norm);
  return optimizer;
}

}  // namespace

void suggest(LrFinderResult& result) {
  const std::vector<double>& losses = result.smoothed;
  const size_t n = losses.size();
  if (n < 2) return;
  const auto [start, end] = longest_valley(losses);
  if (end > start) {
    // Half-way between the first and the second third.
    result.valley = result.rates[start + (end - start) / 2];
  }
  // Over a few steps on either side: single ones are noise.
  constexpr size_t kHalfWindow = 3;
  size_t steepest = 0;
  double slope = 0;
  for (size_t i = kHalfWindow; i + kHalfWindow < n; ++i) {
    const size_t from = i - kHalfWindow, to = i + kHalfWindow;
    const double here =
        (losses[to] - losses[from]) / std::log(result.rates[to] / result.rates[from]);
    if (here < slope) {
      slope = here;
      steepest = i;
    }
  }
  if (slope < 0) result.steepest = result.rates[steepest];
  const size_t least =
      static_cast<size_t>(std::min_element(losses.begin(), losses.end()) - losses.begin());
  if (least > 0) result.tenth_of_minimum = result.rates[least] / 10;
}

LrFinderResult find_learning_rate(const FinetuneOptions& options, const LrFinderOptions& finder,
                                  Observer& observer) {
  GRAFT_CHECK(finder.lowest > 0 && finder.lowest < finder.highest && std::isfinite(finder.highest),
              "find-lr: expected a range 0 < lowest < highest, got ", finder.lowest, " to ",
              finder.highest);
  GRAFT_CHECK(finder.steps >= 10, "find-lr: expected at least 10 steps, got ", finder.steps);
  PreparedRun run = prepare(options, observer);
  const RegulariseOptions& terms = options.regularise;
  if (terms.mixes() || terms.needs_start() || terms.bss > 0 || terms.stoch_norm > 0) {
    observer.message("the rates are tried with plain cross-entropy, without the regularisers");
  }
  ImageModel& model = *run.model;
  model.to(options.device);
  model.set_precision(options.precision);
  if (options.batch_norm_momentum >= 0) set_batch_norm_momentum(model, options.batch_norm_momentum);
  Phase phase = run.plan.phases.back();
  phase.learning_rate = 1;  // the groups' rates are then the multipliers
  apply_freeze(model, phase);
  set_training_mode(model, phase);
  std::vector<ParameterGroup> groups = parameter_groups(model, phase);
  std::vector<double> multipliers;
  for (const ParameterGroup& group : groups) multipliers.push_back(group.learning_rate);
  const std::unique_ptr<Optimizer> optimizer = optimizer_for(options, std::move(groups));

  LoaderOptions loading;
  loading.batch_size = options.batch;
  loading.channels = options.channels;
  loading.workers = options.workers;
  loading.seed = options.seed;
  loading.bad_image = options.bad_image;
  loading.for_gpu = !options.device.is_cpu();
  loading.shuffle = loading.train = true;
  // A smaller batch has another loss, and a single image no batch statistics.
  loading.drop_last = static_cast<int64_t>(run.data.split.train.size()) > options.batch;
  const std::unique_ptr<Batches> images = image_batches(
      run.data.all, run.data.split.train, run.card.preprocessing, options.augmentation, loading);
  DeviceBatches batches(*images, options.device);

  LrFinderResult result;
  double average = 0, least = 0;
  int64_t epoch = 0;
  batches.start_epoch(0, 0);
  for (int64_t step = 0; step < finder.steps; ++step) {
    Batch batch;
    while (!batches.next(batch)) batches.start_epoch(++epoch, 0);
    const double part = static_cast<double>(step) / static_cast<double>(finder.steps - 1);
    const double rate = finder.lowest * std::pow(finder.highest / finder.lowest, part);
    for (size_t i = 0; i < multipliers.size(); ++i) {
      optimizer->groups()[i].learning_rate = static_cast<float>(rate * multipliers[i]);
    }
    begin_rng_step(options.seed, static_cast<uint64_t>(step) + 1);
    CrossEntropyOptions smoothing;
    smoothing.label_smoothing = options.label_smoothing;
    const Tensor loss =
        cross_entropy(model.forward(batch.images.to(options.device)), batch.labels, smoothing);
    batches.prefetch();
    const double value = static_cast<double>(loss.item());
    average = finder.smoothing * average + (1 - finder.smoothing) * value;
    const double smooth = average / (1 - std::pow(finder.smoothing, static_cast<double>(step + 1)));
    result.diverged = !std::isfinite(value) || (step > 0 && smooth > finder.stop_factor * least);
    if (result.diverged) break;
    least = step == 0 ? smooth : std::min(least, smooth);
    result.rates.push_back(rate);
    result.losses.push_back(value);
    result.smoothed.push_back(smooth);
    backward(loss);
    optimizer->step();
    optimizer->zero_grad();
    Progress progress{Progress::Phase::training};
    progress.epoch = progress.epochs = 1;
    progress.done = step + 1;
    progress.total = finder.steps;
    progress.loss = value;
    observer.progress(progress);
    if (observer.stop_requested()) break;
  }
  suggest(result);
  return result;
}

}  // namespace graft
