// One training step: forward, loss, backward, optimizer. On a CUDA device a step whose
// shapes repeat is recorded once and then run as a whole.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/ops.h"
#include "engine/optim.h"
#include "engine/step_graph.h"
#include "layers/module.h"
#include "transfer/batches.h"
#include "transfer/evaluation.h"
#include "transfer/regularise/objective.h"

namespace graft {

struct TrainStepOptions {
  Device device;
  bool graphs = true;  // record steps as CUDA graphs
};

class TrainStep {
 public:
  // model: whose counters and caches the step concerns.
  TrainStep(Module& model, Forward forward, const Objective& objective, Optimizer& optimizer,
            TrainStepOptions options);

  struct Outcome {
    double loss = 0;
    std::vector<int64_t> predicted;  // a class for each image
  };
  // Throws Error when the loss is not finite; step counts from 0, for the message and the random
  // numbers. The result does not depend on whether the step was recorded. `meanwhile` is called
  // when the device has work and before its answer is waited for.
  Outcome operator()(const Batch& batch, uint64_t seed, int64_t step,
                     const std::function<void()>& meanwhile);
  // Whether steps are being run as graphs.
  bool recorded() const { return graph_ != nullptr; }

 private:
  Outcome run(const Batch& batch, uint64_t seed, int64_t step,
              const std::function<void()>& meanwhile);
  void record(const Objective::Input& input, uint64_t seed);
  Outcome replay(const Objective::Input& input, int64_t step,
                 const std::function<void()>& meanwhile);
  Outcome outcome(const Tensor& loss, const Tensor& predicted, int64_t step) const;

  Module& model_;
  Forward forward_;
  const Objective& objective_;
  Optimizer& optimizer_;
  TrainStepOptions options_;

  bool graphs_ = false;  // whether steps are recorded at all
  // The shape of the last steps, and how often it came.
  Shape shape_;
  int64_t repeats_ = 0;
  // What was recorded, for images of shape_: the places of input, output and changing numbers.
  std::unique_ptr<StepGraph> graph_;
  std::unique_ptr<StepNumbers> numbers_;
  uint64_t seed_ = 0;
  Objective::Input input_;
  Tensor loss_, predicted_;
  std::vector<std::pair<Tensor, int64_t>> counters_;  // what a step adds to each host counter
  std::vector<Tensor> changed_;                       // weights and statistics that a step changes
};

}  // namespace graft
