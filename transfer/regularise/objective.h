// What a training step minimises: cross-entropy over the batch, mixed or not, and the terms of the
// regularisers.
#pragma once

#include "engine/ops.h"
#include "transfer/batches.h"
#include "transfer/plan.h"
#include "transfer/regularise/mixing.h"
#include "transfer/regularise/regulariser.h"

namespace graft {

class Objective {
 public:
  // The model is on its device, in its precision, and outlives the objective. `start` is called
  // once, where a regulariser wants it.
  Objective(ImageModel& model, const FinetuneOptions& options, CrossEntropyOptions loss,
            const Start& start);

  struct Input {
    Tensor images;  // on the device
    Tensor target;  // labels as the batch has them, or class probabilities on the device
    std::vector<Tensor> targets;  // of each regulariser, on the device; undefined where it has none
  };
  // What the step with these random numbers learns from.
  Input input(const Batch& batch, uint64_t seed, uint64_t step) const;
  // After the model ran over input.images and gave these logits.
  Tensor loss(const Tensor& logits, const Input& input) const;

  // What trains beside the model, and its groups in a phase that lets it: at the phase's own rate.
  std::vector<NamedTensor> parameters() const;
  std::vector<ParameterGroup> parameter_groups(ImageModel& model, const Phase& phase) const;
  // Lets the regularisers see the training images before the first step, where they have not yet;
  // `images` opens them, without augmentation. See Regulariser::measure().
  bool measure(const std::function<std::unique_ptr<Batches>()>& images,
               const std::function<bool(int64_t)>& keep_going) const;
  bool wants_measuring() const;
  // All that a resumed run needs of them, on the CPU; and the way back.
  std::map<std::string, Tensor> state() const;
  void load(const std::map<std::string, Tensor>& state) const;

 private:
  RegulariseOptions options_;
  CrossEntropyOptions loss_;
  int64_t classes_;
  Device device_;
  std::vector<std::unique_ptr<Regulariser>> regularisers_;
};

// Which of the options say nothing in which phase, for people. Throws Error naming one that says
// nothing in any.
std::vector<std::string> check_objective(const FinetuneOptions& options, const Plan& plan,
                                         ImageModel& model);
// Whether some batch norm uses batch statistics in this phase, and moves the running ones.
bool moves_statistics(ImageModel& model, const Phase& phase);

}  // namespace graft
