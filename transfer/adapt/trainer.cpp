#include "transfer/adapt/trainer.h"

#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "engine/near_names.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "layers/init.h"
#include "transfer/adapt/judge.h"
#include "transfer/adapt/methods.h"
#include "transfer/adapt/run_files.h"

namespace graft {
namespace {

constexpr double kLeastSecondsBetweenSaves = 5;

double seconds_since(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

constexpr std::array kPartNames{"features", "head", "extra"};

std::unique_ptr<Optimizer> make_optimizer(const FinetuneOptions& options,
                                          std::vector<ParameterGroup> groups) {
  if (groups.empty()) return nullptr;
  std::unique_ptr<Optimizer> optimizer;
  if (options.optimizer == OptimizerKind::sgd) {
    optimizer = make_sgd(std::move(groups), {.momentum = options.momentum});
  } else {
    optimizer = make_adamw(std::move(groups), {});
  }
  optimizer->set_clip_norm(options.clip_norm);
  return optimizer;
}

// Of the network's groups the parameters inside or outside the head.
std::vector<ParameterGroup> part_of(const std::vector<ParameterGroup>& groups,
                                    const std::string& head, bool inside) {
  std::vector<ParameterGroup> result;
  for (const ParameterGroup& group : groups) {
    ParameterGroup part = group;
    std::erase_if(part.parameters, [&](const NamedParameter& parameter) {
      return parameter.name.starts_with(head + ".") != inside;
    });
    if (!part.parameters.empty()) result.push_back(std::move(part));
  }
  return result;
}

std::vector<ParameterGroup> groups_of(Module& extra, float rate, float decay) {
  ParameterGroup matrices{"matrices", {}, rate, decay}, vectors{"vectors", {}, rate, 0};
  for (const NamedTensor& entry : extra.named_parameters()) {
    if (!entry.tensor->requires_grad()) continue;  // a frozen copy
    (entry.tensor->rank() >= 2 ? matrices : vectors)
        .parameters.push_back({entry.name, *entry.tensor});
  }
  std::vector<ParameterGroup> groups;
  for (ParameterGroup* group : {&matrices, &vectors}) {
    if (!group->parameters.empty()) groups.push_back(std::move(*group));
  }
  return groups;
}

}  // namespace

void check_adapt_options(const AdaptOptions& options, const MethodInfo& method) {
  MethodSettings(method.name, method.options, options.settings);
  const std::vector<std::string> known = validator_names();
  GRAFT_CHECK(std::find(known.begin(), known.end(), options.validator) != known.end(),
              "adapt: there is no validator \"", options.validator, "\"",
              did_you_mean(options.validator, known), " (there are ", known, ")");
  GRAFT_CHECK(options.back_off > 0 && options.back_off <= 1,
              "adapt: back-off must be above 0 and at most 1, got ", options.back_off);
  GRAFT_CHECK(options.training.schedule.kind != ScheduleKind::plateau,
              "adapt: the plateau schedule waits for a validation without labels to be trusted; "
              "choose another");
  GRAFT_CHECK(options.steps_per_epoch >= 0, "adapt: steps an epoch must be at least 0, got ",
              options.steps_per_epoch);
  GRAFT_CHECK(options.extra_multiplier > 0, "adapt: extra multiplier must be above 0, got ",
              options.extra_multiplier);
}

AdaptTrainer::AdaptTrainer(AdaptRun run, AdaptObserver& observer)
    : run_(std::move(run)), observer_(observer), last_save_(Clock::now()) {
  info_ = run_.own_method ? *run_.own_method : adapt_method(run_.options.method);
  check_adapt_options(run_.options, info_);
  FinetuneOptions& options = run_.options.training;
  options.batch_norm = run_.options.norm == NormMode::frozen ? BatchNormPolicy::frozen_stats
                                                             : BatchNormPolicy::train;
  ImageModel& model = *run_.model;
  phase_ = plan_of(options, run_.card.architecture, model).phases.front();
  model.to(options.device);
  model.set_precision(options.precision);
  if (options.batch_norm_momentum >= 0) {
    set_batch_norm_momentum(model, options.batch_norm_momentum);
  }
  const TrainableCount count = apply_freeze(model, phase_);
  norm_ = std::make_unique<DomainNorm>(model, run_.options.norm);
  make_method();
  make_optimizers();
  observer_.message(text(info_.name, ": ", count.trainable_values, " of ", count.values,
                         " weights train, batch norm ", to_name(run_.options.norm)));
  source_ = std::make_unique<EndlessBatches>(*run_.data.source_train, options.device);
  if (info_.uses_target) {
    target_ = std::make_unique<EndlessBatches>(*run_.data.target_train, options.device);
  }
  const bool resumed = !run_.tensors.empty();
  load_tensors();
  begin_proof(resumed);
}

// A resumed run starts with what was frozen as it was at the first step.
void AdaptTrainer::begin_proof(bool resumed) {
  const std::vector<NamedTensor> frozen = frozen_tensors(*run_.model, phase_);
  if (resumed) {
    FreezeProof proof = run_.proofs.at(0);
    verify_frozen(proof, frozen);
  } else {
    run_.proofs = {hash_frozen(phase_.name, frozen)};
  }
}

void AdaptTrainer::make_method() {
  ImageModel& model = *run_.model;
  const FinetuneOptions& options = run_.options.training;
  MethodContext context;
  context.feature_width = context.aligned_width = model.feature_width();
  context.classes = model.classes();
  context.key = derive({options.seed, 0, 0}, 0xADA97);
  context.blank = [this, &options] {
    std::unique_ptr<ImageModel> copy = run_.blank();
    copy->to(options.device);
    copy->set_precision(options.precision);
    return copy;
  };
  if (!run_.options.layer.empty()) {
    tap_ = std::make_unique<Tap>(model, run_.options.layer);
    const NoGrad guard;  // one batch tells the layer's width
    model.eval();
    Batch batch;
    run_.data.source_held_out->start_epoch(0, 0);
    GRAFT_CHECK(run_.data.source_held_out->next(batch), "adapt: the source has no held-out image");
    model.features(batch.images.to(options.device));
    context.aligned_width = tap_->output().dim(-1);
    tap_->clear();
  }
  method_ = info_.make(MethodSettings(info_.name, info_.options, run_.options.settings), context);
  method_->check(model);
  if (method_->extra() != nullptr) method_->extra()->to(options.device);
}

void AdaptTrainer::make_optimizers() {
  const FinetuneOptions& options = run_.options.training;
  const std::vector<ParameterGroup> network = parameter_groups(*run_.model, phase_);
  const std::string head = run_.model->head_name();
  optimizers_[0] = make_optimizer(options, part_of(network, head, false));
  optimizers_[1] = make_optimizer(options, part_of(network, head, true));
  if (method_->extra() != nullptr) {
    optimizers_[2] = make_optimizer(
        options, groups_of(*method_->extra(), options.learning_rate * run_.options.extra_multiplier,
                           options.weight_decay));
  }
  for (size_t part = 0; part < optimizers_.size(); ++part) {
    if (!optimizers_[part]) continue;
    for (const ParameterGroup& group : optimizers_[part]->groups()) {
      base_rates_[part].push_back(group.learning_rate);
    }
  }
}

void AdaptTrainer::load_tensors() {
  if (run_.tensors.empty()) return;
  std::map<std::string, StateDict> parts;
  for (const auto& [name, tensor] : run_.tensors) {
    const size_t end = name.find('/', name.starts_with("optimizer/") ? 10 : 0);
    parts[name.substr(0, end)][name.substr(end + 1)] = tensor;
  }
  run_.model->load_strict(parts["model"], "the run's state");
  norm_->load_source_state(parts["source_norm"]);
  if (method_->extra() != nullptr) method_->extra()->load_strict(parts["extra"], "the run's state");
  for (size_t part = 0; part < optimizers_.size(); ++part) {
    const StateDict& state = parts[text("optimizer/", kPartNames[part])];
    if (optimizers_[part] && !state.empty()) optimizers_[part]->load_state(state);
  }
  run_.tensors.clear();
}

int64_t AdaptTrainer::steps_per_epoch() const {
  if (run_.options.steps_per_epoch > 0) return run_.options.steps_per_epoch;
  return std::max(run_.data.source_train->count(), run_.data.target_train->count());
}

AdaptResult AdaptTrainer::run() {
  AdaptState& state = run_.state;
  const bool keeps = !run_.options.training.out.empty();
  if (keeps && state.step == 0) save();
  while (!state.finished) {
    if (!train_epoch() || !judge_epoch()) {
      save();
      return result(true);
    }
    if (state.finished) verify_frozen(run_.proofs[0], frozen_tensors(*run_.model, phase_));
    if (state.finished || seconds_since(last_save_) >= kLeastSecondsBetweenSaves) save();
  }
  if (best_.empty() && state.best_epoch > 0 && keeps) {
    for (const FileTensor& entry :
         read_safetensors(RunFolder{run_.options.training.out}.best()).tensors) {
      best_[entry.name] = entry.tensor;
    }
  }
  if (!best_.empty()) run_.model->load_strict(best_, "the best epoch");
  return result(false);
}

bool AdaptTrainer::train_epoch() {
  AdaptState& state = run_.state;
  const int64_t steps = steps_per_epoch();
  const int64_t end = (state.epoch + 1) * steps;
  if (state.step == state.epoch * steps) state.sums.clear();
  const int64_t begin = state.step;
  epoch_start_ = Clock::now();
  set_training_mode(*run_.model, phase_);
  if (method_->extra() != nullptr) method_->extra()->train();
  while (state.step < end) {
    train_step();
    ++state.step;
    ++steps_here_;
    const double done = static_cast<double>(state.step - state.epoch * steps);
    Progress progress{Progress::Phase::training};
    progress.done = state.step - state.epoch * steps;
    progress.total = steps;
    progress.loss = state.sums["source_loss"] / done;
    progress.accuracy = state.sums["source_accuracy"] / done;
    progress.images_per_second =
        static_cast<double>((state.step - begin) * run_.options.training.batch) /
        seconds_since(epoch_start_);
    if (!keep_going(progress)) return false;
    if (seconds_since(last_save_) >= run_.options.training.save_minutes * 60) save();
  }
  return true;
}

void AdaptTrainer::train_step() {
  const FinetuneOptions& options = run_.options.training;
  AdaptState& state = run_.state;
  const int64_t total = options.epochs * steps_per_epoch();
  const double factor = schedule_factor(phase_.schedule, state.step, total);
  for (size_t part = 0; part < optimizers_.size(); ++part) {
    for (size_t i = 0; i < base_rates_[part].size(); ++i) {
      optimizers_[part]->groups()[i].learning_rate =
          static_cast<float>(static_cast<double>(base_rates_[part][i]) * factor);
    }
  }
  // Step 0 of the generator drew the initial weights.
  begin_rng_step(options.seed, static_cast<uint64_t>(state.step) + 1);
  const Batch source = source_->at(state.step);
  const Batch target = target_ ? target_->at(state.step) : Batch{};
  AdaptStep step(
      *run_.model, *norm_, tap_.get(),
      {optimizers_[0].get(), optimizers_[1].get(), optimizers_[2].get()}, source.images,
      source.labels, target.images,
      {static_cast<double>(state.step) / static_cast<double>(total), state.strength, state.step});
  method_->step(step);
  for (const auto& [name, value] : step.notes()) state.sums[name] += value;
}

bool AdaptTrainer::judge_epoch() {
  AdaptState& state = run_.state;
  const FinetuneOptions& options = run_.options.training;
  ImageModel& model = *run_.model;
  const int64_t steps = steps_per_epoch();
  const auto watched = [&](Batches& batches) {
    return look(model, batches, options.device, [&](int64_t done) {
      Progress progress{Progress::Phase::validation};
      progress.done = done;
      progress.total = batches.samples();
      return keep_going(progress);
    });
  };
  norm_->use(Domain::source);
  const DomainView source = watched(*run_.data.source_held_out);
  norm_->use(Domain::target);
  if (source.labels.empty()) return false;
  KeptBuffers kept(model);
  method_->before_judging(model, *run_.data.target_in_order, options.device);
  const DomainView target = watched(*run_.data.target_in_order);
  StateDict judged = model.state_dict();
  kept.restore();
  if (target.labels.empty()) return false;
  judged_ = std::move(judged);

  AdaptReport report;
  report.epoch = ++state.epoch;
  report.step = state.step;
  report.learning_rate = phase_.learning_rate *
                         schedule_factor(phase_.schedule, state.step - 1, options.epochs * steps);
  report.strength = state.strength;
  for (const auto& [name, sum] : state.sums) {
    report.train[name] = sum / static_cast<double>(steps);
  }
  report.source_loss = source.loss();
  report.source_accuracy = source.accuracy();
  report.validators = validator_scores(source, target);
  report.health = health_of(source, target, {state.largest_spread, state.best_source_accuracy});
  if (run_.data.target_labelled) report.oracle = target.accuracy();
  state.largest_spread = std::max(state.largest_spread, report.health.spread);
  state.best_source_accuracy = std::max(state.best_source_accuracy, report.source_accuracy);
  select(report);
  state.finished = state.epoch >= options.epochs ||
                   (options.patience > 0 && state.since_best >= options.patience);
  report.seconds = seconds_since(epoch_start_);
  run_.reports.push_back(report);
  observer_.adapted(report);
  if (!report.health.alarms.empty() && run_.options.back_off < 1) {
    state.strength *= run_.options.back_off;
    observer_.message(text("backing off: the adaptation goes on with strength ", state.strength));
  }
  return true;
}

void AdaptTrainer::select(AdaptReport& report) {
  AdaptState& state = run_.state;
  const std::string& validator = run_.options.validator;
  const double value =
      validator == "last" ? static_cast<double>(report.epoch) : report.validators.at(validator);
  report.best = state.best_epoch == 0 || value > state.best_value ||
                (value == state.best_value && report.source_loss < state.best_loss);
  if (!report.best) {
    ++state.since_best;
    return;
  }
  state.best_epoch = report.epoch;
  state.best_value = value;
  state.best_loss = report.source_loss;
  state.since_best = 0;
  best_ = judged_;
  best_unsaved_ = true;
}

bool AdaptTrainer::keep_going(Progress progress) {
  progress.epoch = run_.state.epoch + 1;
  progress.epochs = run_.options.training.epochs;
  observer_.progress(progress);
  return !observer_.stop_requested();
}

void AdaptTrainer::save() {
  last_save_ = Clock::now();
  const RunFolder folder{run_.options.training.out};
  if (folder.path.empty()) return;
  const Metadata card = to_metadata(run_.card);
  if (best_unsaved_) write_safetensors(folder.best(), best_, card);
  best_unsaved_ = false;
  if (!judged_.empty()) write_safetensors(folder.last(), judged_, card);
  if (!run_.reports.empty()) write_adapt_metrics(folder, run_.reports);
  std::map<std::string, Tensor> tensors;
  const auto keep = [&](const std::string& part, const std::map<std::string, Tensor>& from) {
    for (const auto& [name, tensor] : from) tensors[part + "/" + name] = tensor;
  };
  keep("model", run_.model->state_dict());
  keep("source_norm", norm_->source_state());
  if (method_->extra() != nullptr) keep("extra", method_->extra()->state_dict());
  for (size_t part = 0; part < optimizers_.size(); ++part) {
    if (optimizers_[part]) keep(text("optimizer/", kPartNames[part]), optimizers_[part]->state());
  }
  write_freeze_proofs(folder, run_.proofs);
  write_adapt_state(folder, run_.state, tensors, run_.card);
}

AdaptResult AdaptTrainer::result(bool interrupted) {
  AdaptResult result;
  const FinetuneOptions& options = run_.options.training;
  result.stopped_early =
      !interrupted && options.patience > 0 && run_.state.since_best >= options.patience;
  run_.model->eval();
  tap_.reset();
  result.model = std::move(run_.model);
  result.card = run_.card;
  result.epochs = run_.reports;
  result.best_epoch = run_.state.best_epoch;
  result.steps = run_.state.step;
  result.interrupted = interrupted;
  result.proof = run_.proofs[0];
  return result;
}

}  // namespace graft
