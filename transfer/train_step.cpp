#include "transfer/train_step.h"

#include <cmath>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "kernels/error.h"

namespace graft {
namespace {

// Steps that run the usual way before one is recorded: they make the optimizer's state, and the
// libraries choose their algorithms.
constexpr int64_t kStepsBeforeRecording = 2;

// Step 0 of the generator drew the initial weights.
uint64_t generator_step(int64_t step) { return static_cast<uint64_t>(step) + 1; }

}  // namespace

TrainStep::TrainStep(Module& model, Forward forward, const Objective& objective,
                     Optimizer& optimizer, TrainStepOptions options)
    : model_(model),
      forward_(std::move(forward)),
      objective_(objective),
      optimizer_(optimizer),
      options_(std::move(options)) {
  graphs_ = options_.graphs && !options_.device.is_cpu();
}

TrainStep::Outcome TrainStep::operator()(const Batch& batch, uint64_t seed, int64_t step,
                                         const std::function<void()>& meanwhile) {
  if (!graphs_) return run(batch, seed, step, meanwhile);
  if (batch.images.shape() == shape_) {
    ++repeats_;
  } else if (graph_ == nullptr) {
    shape_ = batch.images.shape();
    repeats_ = 1;
  }
  if (batch.images.shape() != shape_ || repeats_ <= kStepsBeforeRecording) {
    return run(batch, seed, step, meanwhile);
  }
  // What is drawn here is drawn for every step; the rest is recorded.
  const Objective::Input input = objective_.input(batch, seed, generator_step(step));
  if (graph_ == nullptr || seed != seed_) record(input, seed);
  return replay(input, step, meanwhile);
}

TrainStep::Outcome TrainStep::run(const Batch& batch, uint64_t seed, int64_t step,
                                  const std::function<void()>& meanwhile) {
  begin_rng_step(seed, generator_step(step));
  const Objective::Input input = objective_.input(batch, seed, generator_step(step));
  const Tensor logits = forward_(input.images);
  const Tensor loss = objective_.loss(logits, input);
  const Tensor predicted = argmax(logits.detach());
  meanwhile();
  const Outcome result = outcome(loss, predicted, step);
  backward(loss);
  optimizer_.step();
  optimizer_.zero_grad();
  return result;
}

void TrainStep::record(const Objective::Input& input, uint64_t seed) {
  seed_ = seed;
  graph_.reset();
  // What the steps before used is free now, and the recorded step keeps memory of its own.
  release_cached_memory(options_.device);
  input_.images = Tensor(input.images.shape(), Dtype::f32, options_.device);
  input_.target = Tensor(input.target.shape(), input.target.dtype(), options_.device);
  input_.targets.clear();
  for (const Tensor& target : input.targets) {
    input_.targets.push_back(
        target.defined() ? Tensor(target.shape(), target.dtype(), options_.device) : target);
  }
  std::vector<NamedTensor> tensors = model_.named_tensors();
  for (NamedTensor& parameter : objective_.parameters()) tensors.push_back(std::move(parameter));
  std::vector<uint64_t> versions;
  std::vector<int64_t> counts;
  for (const NamedTensor& entry : tensors) {
    versions.push_back(entry.tensor->storage()->version());
    counts.push_back(entry.layout == FileLayout::counter ? *entry.tensor->data<int64_t>() : 0);
  }
  size_t passes = 0;  // at most: one a parameter
  for (const ParameterGroup& group : optimizer_.groups()) passes += group.parameters.size();
  numbers_ = std::make_unique<StepNumbers>(options_.device, passes);
  auto graph = std::make_unique<StepGraph>(options_.device);
  try {
    graph->record([&] {
      begin_rng_step(seed, 0, numbers_->rng_step());
      const Tensor logits = forward_(input_.images);
      const Tensor loss = objective_.loss(logits, input_);
      loss_ = loss.detach();
      predicted_ = argmax(logits.detach());
      backward(loss);
      optimizer_.collect();
      optimizer_.apply(numbers_->rates());
      optimizer_.zero_grad();
    });
  } catch (const Error& error) {
    fail("training: the step cannot be recorded as a CUDA graph (", error.what(),
         "); run it with --no-graphs");
  }
  counters_.clear();
  changed_.clear();
  for (size_t i = 0; i < tensors.size(); ++i) {
    Tensor tensor = tensors[i].tensor->detach();
    if (tensors[i].layout == FileLayout::counter) {
      int64_t& now = *tensor.mutable_data<int64_t>();
      counters_.emplace_back(tensor, now - counts[i]);
      now = counts[i];  // nothing has run yet
    } else if (tensor.storage()->version() != versions[i]) {
      changed_.push_back(std::move(tensor));
    }
  }
  graph_ = std::move(graph);
}

TrainStep::Outcome TrainStep::replay(const Objective::Input& input, int64_t step,
                                     const std::function<void()>& meanwhile) {
  numbers_->set(generator_step(step), optimizer_.advance());
  input_.images.copy_from(input.images);
  input_.target.copy_from(input.target);
  for (size_t i = 0; i < input.targets.size(); ++i) {
    if (input.targets[i].defined()) input_.targets[i].copy_from(input.targets[i]);
  }
  graph_->run();
  for (auto& [counter, difference] : counters_) *counter.mutable_data<int64_t>() += difference;
  // For whoever keeps a form of them. The others stay as they are: what was recorded may read such
  // a form, a filter with its batch norm folded in.
  for (const Tensor& tensor : changed_) tensor.storage()->bump_version();
  meanwhile();
  return outcome(loss_, predicted_, step);
}

TrainStep::Outcome TrainStep::outcome(const Tensor& loss, const Tensor& predicted,
                                      int64_t step) const {
  const double value = static_cast<double>(loss.item());
  GRAFT_CHECK(std::isfinite(value), "training: the loss is ", value, " at step ", step + 1,
              "; lower the learning rate (--lr) or clip the gradients (--clip-norm 1)");
  return {value, predicted.to_vector<int64_t>()};
}

}  // namespace graft
