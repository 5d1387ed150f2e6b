// Which parameters train, in which optimizer groups, and which modules stay in inference mode.
#pragma once

#include <string>
#include <vector>

#include "engine/optim.h"
#include "layers/models/zoo.h"
#include "transfer/options.h"

namespace graft {

// Whether a pattern names this parameter or module or something above it: "layer1" matches
// "layer1.0.conv1.weight" but not "layer10.0.conv1.weight". * stands for any characters (dots too),
// ? for one.
bool matches(const std::string& pattern, const std::string& name);

struct TrainableCount {
  int64_t tensors = 0, trainable_tensors = 0;
  int64_t values = 0, trainable_values = 0;
};
// Turns gradients off for what options.freeze and options.freeze_features name, and on for the
// rest. Throws on a pattern that matches nothing and when nothing is left to train.
TrainableCount apply_freeze(ImageModel& model, const FinetuneOptions& options);

// Training mode, except that frozen modules stay in inference mode (no dropout, no moving
// statistics) and batch norm follows its policy.
void set_training_mode(ImageModel& model, const FinetuneOptions& options);

// The trainable parameters in four groups: features and head, with weight decay (rank 2 and
// more) and without (biases, norms).
std::vector<ParameterGroup> parameter_groups(ImageModel& model, const FinetuneOptions& options);

}  // namespace graft
