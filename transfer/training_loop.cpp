#include "transfer/training_loop.h"

#include <algorithm>
#include <limits>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "layers/norm.h"
#include "transfer/adapters.h"
#include "transfer/freeze_proof.h"

namespace graft {
namespace {

// Epochs over cached activations can take milliseconds; writing the weights after each would
// dominate.
constexpr double kLeastSecondsBetweenSaves = 5;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::vector<int64_t> class_counts(const ImageDataset& data, const std::vector<int64_t>& indices) {
  std::vector<int64_t> counts(data.class_names.size());
  for (int64_t i : indices) {
    ++counts[static_cast<size_t>(data.samples[static_cast<size_t>(i)].label)];
  }
  return counts;
}

void append(std::vector<std::string>& to, const std::vector<std::string>& from) {
  to.insert(to.end(), from.begin(), from.end());
}

}  // namespace

TrainingLoop::TrainingLoop(PreparedRun run, Observer& observer)
    : run_(std::move(run)),
      observer_(observer),
      folder_{run_.options.out},
      last_save_(Clock::now()) {
  const FinetuneOptions& options = run_.options;
  positive_ = positive_class(run_.data.all.class_names, options.positive_class);
  run_.model->to(options.device);
  run_.model->set_precision(options.precision);
  if (options.batch_norm_momentum >= 0) {
    set_batch_norm_momentum(*run_.model, options.batch_norm_momentum);
  }
  for (const std::string& note : check_objective(options, run_.plan, *run_.model)) {
    observer_.message(note);
  }
  run_.state.model.clear();
  CrossEntropyOptions loss;
  loss.label_smoothing = options.label_smoothing;
  if (options.class_weights == ClassWeighting::balanced) {
    const std::vector<float> weights =
        balanced_class_weights(class_counts(run_.data.all, run_.data.split.train));
    loss.class_weights = Tensor::of(weights).to(options.device);
  }
  objective_ = std::make_unique<Objective>(*run_.model, options, std::move(loss), start_of(run_));
  objective_->load(run_.state.objective);
  run_.state.objective.clear();
  GRAFT_CHECK(run_.state.step == 0 || !objective_->wants_measuring(), folder_.state().string(),
              ": lacks what was measured before the first step; start the run again with --force");
  enter_phase();
}

void TrainingLoop::enter_phase() {
  const FinetuneOptions& options = run_.options;
  RunState& state = run_.state;
  const std::vector<Phase>& phases = run_.plan.phases;
  phase_begin_ = 0;
  for (phase_ = 0; phase_ + 1 < phases.size(); ++phase_) {
    if (state.epoch < phase_begin_ + phase().epochs) break;
    phase_begin_ += phase().epochs;
  }
  phase_end_ = phase_begin_ + phase().epochs;
  ImageModel& model = *run_.model;
  const TrainableCount count = apply_freeze(model, phase());
  observer_.message(text(
      phases.size() == 1 ? run_.card.architecture
                         : text("phase ", phase_ + 1, " of ", phases.size(), ", ", phase().name),
      ": ", count.trainable_values, " of ", count.values, " weights train (",
      count.trainable_tensors, " of ", count.tensors, " tensors), batch-norm statistics ",
      to_name(phase().batch_norm)));
  std::vector<ParameterGroup> groups = parameter_groups(model, phase());
  for (ParameterGroup& group : objective_->parameter_groups(model, phase())) {
    groups.push_back(std::move(group));
  }
  base_rates_.clear();
  for (const ParameterGroup& group : groups) base_rates_.push_back(group.learning_rate);
  if (options.optimizer == OptimizerKind::sgd) {
    optimizer_ = make_sgd(std::move(groups), {.momentum = options.momentum});
  } else {
    optimizer_ = make_adamw(std::move(groups), {});
  }
  optimizer_->set_clip_norm(options.clip_norm);
  const std::vector<NamedTensor> frozen = frozen_tensors(model, phase());
  if (state.epoch > phase_begin_ || state.batch > 0) {  // resumed within the phase
    if (!state.optimizer.empty()) optimizer_->load_state(state.optimizer);
  } else {
    // A phase is a fresh start: moments and patience of the one before say nothing about it.
    state.since_best = state.since_reduced = state.reductions = 0;
    run_.proofs.resize(phase_);
    run_.proofs.push_back(hash_frozen(phase().name, frozen));
  }
  if (options.regularise.ema >= 0 || options.regularise.swa >= 0) {
    average_ = std::make_unique<WeightAverage>(model, phase(), options.regularise);
    if (!state.average.empty()) average_->load(state.average, state.averaged);
  }
  state.average.clear();
  state.optimizer.clear();
}

void TrainingLoop::leave_phase() {
  verify_frozen(run_.proofs.at(phase_), frozen_tensors(*run_.model, phase()));
}

int64_t TrainingLoop::step_of_phase() const {
  return (run_.state.epoch - phase_begin_) * train_->count() + run_.state.batch;
}

bool TrainingLoop::make_batches() {
  const FinetuneOptions& options = run_.options;
  const Split& split = run_.data.split;
  ImageModel& model = *run_.model;
  const int64_t images = static_cast<int64_t>(split.train.size());
  LoaderOptions judging;
  judging.batch_size = options.batch;
  judging.channels = options.channels;
  judging.workers = options.workers;
  judging.seed = options.seed;
  judging.bad_image = options.bad_image;
  judging.for_gpu = !options.device.is_cpu();
  LoaderOptions training = judging;
  training.shuffle = training.train = true;
  // Batch statistics of a single image are hardly statistics.
  training.drop_last = uses_batch_statistics(run_.plan, model) && images > options.batch &&
                       images % options.batch == 1;
  const auto open = [&](const std::vector<int64_t>& indices, const LoaderOptions& loader) {
    return image_batches(run_.data.all, indices, run_.card.preprocessing, options.augmentation,
                         loader);
  };
  bool cached = false;
  set_training_mode(model, phase());
  CachePlan plan = plan_cache(model, options, run_.card.preprocessing, images,
                              static_cast<int64_t>(split.held_out.size()), run_.state.epoch,
                              options.steps > 0 ? std::numeric_limits<int64_t>::max() : phase_end_);
  if (!plan.line.empty()) observer_.message(plan.line);
  const size_t stages = plan.stages;
  if (stages > 0) {
    PrefixCache cache(model, options, run_.card.preprocessing, std::move(plan),
                      [&](const std::string& line) { observer_.message(line); });
    if (proven(cache, *open(split.train, judging))) {
      const Clock::time_point start = Clock::now();
      const auto keep = [&](const std::vector<int64_t>& indices, const LoaderOptions& order) {
        return cache.batches(run_.data.all, indices, order, [&](int64_t done, int64_t total) {
          Progress progress{Progress::Phase::features};
          progress.done = done;
          progress.total = total;
          progress.images_per_second = static_cast<double>(done) / seconds_since(start);
          return keep_going(progress);
        });
      };
      batches_of_images_ = false;
      train_ = keep(split.train, training);
      if (!train_) return false;
      validation_ = split.held_out.empty() ? nullptr : keep(split.held_out, judging);
      if (!validation_ && !split.held_out.empty()) return false;
      observer_.message(cache.summary());
      forward_ = [&model, stages](const Tensor& x) { return model.forward_after(stages, x); };
      cached = true;
    }
  }
  if (!cached) {
    if (!batches_of_images_) {
      train_ = open(split.train, training);
      if (!split.held_out.empty()) validation_ = open(split.held_out, judging);
    }
    batches_of_images_ = true;
    forward_ = [&model](const Tensor& x) { return model.forward(x); };
  }
  feed_ = std::make_unique<DeviceBatches>(*train_, options.device);
  train_step_ = std::make_unique<TrainStep>(model, forward_, *objective_, *optimizer_,
                                            TrainStepOptions{options.device, options.graphs});
  const int64_t batches = train_->count();
  if (options.steps > 0) {
    total_steps_ = phase_steps_ = options.steps;
    epochs_ = (total_steps_ + batches - 1) / batches;
  } else {
    epochs_ = 0;
    for (const Phase& phase : run_.plan.phases) epochs_ += phase.epochs;
    phase_steps_ = phase().epochs * batches;
    total_steps_ = run_.state.step - step_of_phase() + (epochs_ - phase_begin_) * batches;
  }
  return true;
}

// Only a GPU's results may depend on the batch in their last bits: there training from a cache is
// repeatable, but not to the byte what training without one is.
bool TrainingLoop::proven(const PrefixCache& cache, Batches& images) {
  const int64_t size = run_.options.batch;
  const auto train = static_cast<int64_t>(run_.data.split.train.size());
  const auto validation = static_cast<int64_t>(run_.data.split.held_out.size());
  images.start_epoch(0, 0);
  Batch batch;
  GRAFT_CHECK(images.next(batch), "training: no image could be read");
  const bool independent = cache.independent_of_batch(
      batch.images, {train % size, validation % size, std::min(size, validation)});
  if (independent || run_.options.cache.kind == CacheKind::bf16) return true;
  if (run_.options.device.is_cpu()) {
    observer_.message(
        "cache: none, because the last bits of what the frozen stages make of an image depend on "
        "the others of its batch; --cache bf16 keeps it all the same");
    return false;
  }
  observer_.message(
      "cache: on this device the last bits depend on the batch around an image: they may differ "
      "from "
      "those of --cache off");
  return true;
}

FinetuneResult TrainingLoop::run() {
  RunState& state = run_.state;
  if (!state.finished) {
    if (!folder_.path.empty() && !std::filesystem::exists(folder_.state())) save();
    if (!measure() || !make_batches()) return result(true);
  }
  while (!state.finished) {
    if (run_.options.steps <= 0 && state.epoch >= phase_end_) {
      enter_phase();
      if (!make_batches()) return result(true);
    }
    if (!train_epoch() || !judge_epoch()) {
      save();
      return result(true);
    }
    if (state.finished || seconds_since(last_save_) >= kLeastSecondsBetweenSaves) save();
  }
  restore_best();
  return result(false);
}

bool TrainingLoop::train_epoch() {
  RunState& state = run_.state;
  if (state.batch == 0) state.sums = {};
  if (state.batch >= train_->count()) return true;  // stopped between training and validation
  set_training_mode(*run_.model, phase());
  feed_->start_epoch(state.epoch, state.batch);
  const double seconds_before = state.sums.seconds, here_before = train_seconds_here_;
  const Clock::time_point start = Clock::now();
  for (Batch batch; state.step < total_steps_ && feed_->next(batch);) {
    // A batch without a readable image was passed over; its step counts, so that the schedule ends
    // where it should.
    state.step += batch.number - state.batch;
    state.batch = batch.number;
    train_step(batch);
    ++state.batch;
    ++state.step;
    ++steps_here_;
    state.sums.seconds = seconds_before + seconds_since(start);
    train_seconds_here_ = here_before + seconds_since(start);
    const double samples = static_cast<double>(std::max<int64_t>(state.sums.samples, 1));
    Progress progress{Progress::Phase::training};
    progress.done = state.batch;
    progress.total = std::min(train_->count(), state.batch + total_steps_ - state.step);
    progress.loss = state.sums.loss / samples;
    progress.accuracy = static_cast<double>(state.sums.correct) / samples;
    progress.images_per_second = samples / state.sums.seconds;
    if (!keep_going(progress)) return false;
    if (seconds_since(last_save_) >= run_.options.save_minutes * 60) save();
  }
  const int64_t passed_over = std::min(train_->count() - state.batch, total_steps_ - state.step);
  state.step += passed_over;
  state.batch += passed_over;
  return true;
}

void TrainingLoop::train_step(const Batch& batch) {
  const FinetuneOptions& options = run_.options;
  const int64_t step = run_.state.step;
  const double factor =
      schedule_factor(phase().schedule, step_of_phase(), phase_steps_, run_.state.reductions);
  for (size_t i = 0; i < base_rates_.size(); ++i) {
    optimizer_->groups()[i].learning_rate = static_cast<float>(base_rates_[i] * factor);
  }
  const TrainStep::Outcome outcome =
      (*train_step_)(batch, options.seed, step, [&] { feed_->prefetch(); });
  if (average_) average_->after_step();

  EpochSums& sums = run_.state.sums;
  const std::vector<int64_t>& predicted = outcome.predicted;
  const std::vector<int64_t> actual = batch.labels.to_vector<int64_t>();
  sums.loss += outcome.loss * static_cast<double>(actual.size());
  sums.samples += static_cast<int64_t>(actual.size());
  for (size_t i = 0; i < actual.size(); ++i) sums.correct += actual[i] == predicted[i];
}

bool TrainingLoop::judge_epoch() {
  RunState& state = run_.state;
  EpochReport report;
  report.epoch = state.epoch + 1;
  report.step = state.step;
  report.phase = phase().name;
  report.learning_rate =
      phase().learning_rate *
      schedule_factor(phase().schedule, step_of_phase() - 1, phase_steps_, state.reductions);
  const double samples = static_cast<double>(state.sums.samples);
  report.train_loss = state.sums.loss / samples;
  report.train_accuracy = static_cast<double>(state.sums.correct) / samples;
  report.images_per_second = samples / state.sums.seconds;
  const Clock::time_point start = Clock::now();
  std::optional<WeightAverage::Guard> averaged;
  if (average_) {
    const int64_t epochs = run_.options.steps > 0 ? epochs_ : phase_end_ - phase_begin_;
    average_->after_epoch(state.epoch + 1 - phase_begin_, epochs);
    if (average_->begun()) averaged.emplace(*average_);
  }
  if (averaged && !estimate_statistics()) return false;
  if (validation_) {
    run_.model->eval();
    const LoraMerged merged(*run_.model);
    const Evaluation judged = evaluate(forward_, run_.model->classes(), positive_, *validation_,
                                       run_.options.device, [&](int64_t done) {
                                         Progress progress{Progress::Phase::validation};
                                         progress.done = done;
                                         progress.total = validation_->samples();
                                         return keep_going(progress);
                                       });
    if (!judged.complete) return false;
    report.validation = {judged.loss, judged.metrics.accuracy, judged.metrics.balanced_accuracy,
                         judged.metrics.macro_f1, judged.metrics.positive_f1};
  }
  judge_seconds_ = seconds_since(start);
  report.seconds = state.sums.seconds + judge_seconds_;
  state.epoch += 1;
  state.batch = 0;
  select(report);
  const bool last_step =
      run_.options.steps > 0 ? state.step >= total_steps_ : state.epoch >= epochs_;
  state.finished = last_step || out_of_patience();
  if (state.finished || (run_.options.steps <= 0 && state.epoch >= phase_end_)) leave_phase();
  run_.reports.push_back(report);
  observer_.epoch_done(report);
  return true;
}

std::unique_ptr<Batches> TrainingLoop::plain_images(LoaderOptions loader) const {
  const FinetuneOptions& options = run_.options;
  loader.batch_size = options.batch;
  loader.channels = options.channels;
  loader.workers = options.workers;
  loader.bad_image = options.bad_image;
  return image_batches(run_.data.all, run_.data.split.train, run_.card.preprocessing, {}, loader);
}

bool TrainingLoop::features_done(int64_t images) {
  Progress progress{Progress::Phase::features};
  progress.done = images;
  progress.total = static_cast<int64_t>(run_.data.split.train.size());
  return keep_going(progress);
}

bool TrainingLoop::measure() {
  LoaderOptions loader;
  loader.shuffle = true;  // the first of them are of all classes
  loader.seed = run_.options.seed;
  return objective_->measure([&] { return plain_images(loader); },
                             [&](int64_t done) { return features_done(done); });
}

// EMA averages the statistics, too; those of SWA's weights are in none of the epochs.
bool TrainingLoop::estimate_statistics() {
  if (run_.options.regularise.swa < 0 || !moves_statistics(*run_.model, phase())) return true;
  const auto images = static_cast<int64_t>(run_.data.split.train.size());
  LoaderOptions loader;
  loader.drop_last = images > run_.options.batch && images % run_.options.batch == 1;
  return graft::estimate_statistics(*run_.model, phase(), *plain_images(loader),
                                    run_.options.device,
                                    [&](int64_t done) { return features_done(done); });
}

void TrainingLoop::select(EpochReport& report) {
  RunState& state = run_.state;
  const double value = value_of(report);
  const double loss = report.validation ? report.validation->loss : 0;
  // On few images accuracies tie often; the loss tells more.
  report.best = state.best_epoch == 0 || !report.validation || value > state.best_value ||
                (value == state.best_value && loss < state.best_loss);
  if (!report.best) {
    ++state.since_best;
    if (++state.since_reduced >= phase().schedule.plateau_epochs) {
      ++state.reductions;
      state.since_reduced = 0;
    }
    return;
  }
  state.since_reduced = 0;
  state.best_epoch = report.epoch;
  state.best_value = value;
  state.best_loss = loss;
  state.since_best = 0;
  best_ = merged_state_dict(*run_.model);
  if (run_.options.lora.rank > 0) best_delta_ = delta_of(run_);
  best_unsaved_ = true;
}

double TrainingLoop::value_of(const EpochReport& report) const {
  if (!report.validation) return 0;
  switch (run_.options.criterion) {
    case Criterion::accuracy:
      return report.validation->accuracy;
    case Criterion::balanced_accuracy:
      return report.validation->balanced_accuracy;
    case Criterion::f1:
      return report.validation->positive_f1.value_or(report.validation->macro_f1);
    case Criterion::loss:
      return -report.validation->loss;
  }
  return 0;
}

bool TrainingLoop::out_of_patience() const {
  // The phases of a plan belong together: only the last one ends early.
  return run_.options.patience > 0 && run_.state.since_best >= run_.options.patience &&
         phase_ + 1 == run_.plan.phases.size();
}

bool TrainingLoop::keep_going(Progress progress) {
  progress.epoch = run_.state.epoch + 1;
  progress.epochs = epochs_;
  if (steps_here_ > 0) {
    const double per_step = train_seconds_here_ / static_cast<double>(steps_here_);
    progress.seconds_left = per_step * static_cast<double>(total_steps_ - run_.state.step) +
                            judge_seconds_ * static_cast<double>(epochs_ - run_.state.epoch);
  }
  observer_.progress(progress);
  return !observer_.stop_requested();
}

void TrainingLoop::save() {
  last_save_ = Clock::now();
  if (folder_.path.empty()) return;
  RunState& state = run_.state;
  const bool adapted = run_.options.lora.rank > 0;
  if (best_unsaved_) {
    write_safetensors(folder_.best(), best_, to_metadata(run_.card));
    if (adapted) write_delta(folder_.lora(), best_delta_, delta_card(run_));
  }
  best_unsaved_ = false;
  state.model = run_.model->state_dict();
  state.optimizer = optimizer_->state();
  if (average_) state.average = average_->state();
  if (average_) state.averaged = average_->count();
  state.objective = objective_->state();
  if (state.step > 0) {
    write_safetensors(folder_.last(), adapted ? merged_state_dict(*run_.model) : state.model,
                      to_metadata(run_.card));
  }
  if (!run_.reports.empty()) write_metrics(folder_, run_.reports);
  write_freeze_proofs(folder_, run_.proofs);
  write_state(folder_, state, run_.card);
  state.model.clear();
  state.optimizer.clear();
  state.average.clear();
  state.objective.clear();
}

void TrainingLoop::restore_best() {
  merge_adapters(*run_.model);
  if (best_.empty() && run_.state.best_epoch > 0 && !folder_.path.empty()) {
    for (const FileTensor& entry : read_safetensors(folder_.best()).tensors) {
      best_[entry.name] = entry.tensor;
    }
  }
  if (!best_.empty()) run_.model->load_strict(best_, "the best epoch");
}

FinetuneResult TrainingLoop::result(bool interrupted) {
  FinetuneResult result;
  if (train_) append(bad_images_, train_->bad_images());
  if (validation_) append(bad_images_, validation_->bad_images());
  train_step_.reset();
  objective_.reset();  // its taps are on the model
  merge_adapters(*run_.model);
  run_.model->eval();
  result.model = std::move(run_.model);
  result.card = run_.card;
  result.epochs = run_.reports;
  result.best_epoch = run_.state.best_epoch;
  result.steps = run_.state.step;
  result.interrupted = interrupted;
  result.stopped_early = !interrupted && out_of_patience();
  result.bad_images = std::move(bad_images_);
  result.proofs = run_.proofs;
  return result;
}

}  // namespace graft
