// What trains when. A plan is a list of phases, and a phase a list of rules over layer names:
//
//   {"name": "lp-ft",
//    "phases": [
//      {"name": "head", "epochs": 2, "learning_rate": 0.003,
//       "layers": [{"match": "*", "freeze": true}, {"match": "_fc", "freeze": false}]},
//      {"name": "all", "epochs": 3, "learning_rate": 0.0005, "schedule": "cosine",
//       "layers": [{"match": "_blocks.?", "learning_rate": 0.1}]}]}
//
// Rules apply in order, and a later one wins. Presets (presets.h) are plans, too. A run keeps its
// plan with every default filled in, one key a line, so that two runs can be compared with diff.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "engine/optim.h"
#include "layers/models/zoo.h"
#include "layers/name_pattern.h"
#include "transfer/options.h"

namespace graft {

struct LayerRule {
  std::vector<std::string> match;  // name patterns, see matches()
  std::optional<bool> freeze;
  std::optional<double> learning_rate;  // multiplier of the phase's
  std::optional<double> weight_decay;   // of matrices and filters, instead of the phase's
  std::optional<BatchNormPolicy> batch_norm;
  std::optional<double> dropout;  // before the head, or a block's drop path
};

struct Phase {
  std::string name;
  int64_t epochs = 1;
  double learning_rate = 0;
  double weight_decay = 0;
  Schedule schedule;
  BatchNormPolicy batch_norm = BatchNormPolicy::frozen_stats;
  std::vector<LayerRule> layers;
};

struct Plan {
  std::string name;
  std::string architecture;  // "": any
  std::vector<Phase> phases;
};

// What a phase means for one parameter.
struct ParameterSetting {
  bool trains = true;
  double learning_rate = 0;  // the peak, multiplier included
  double weight_decay = 0;
};
ParameterSetting setting_of(const Phase& phase, ImageModel& model, const NamedTensor& parameter);
// The policy of the batch norm with this name: the last rule's that names it, else the phase's.
BatchNormPolicy batch_norm_policy(const Phase& phase, const std::string& name);

// The plan of a run: that of options.plan or options.preset, else one phase made of the options'
// freeze, freeze_features, head_multiplier and batch_norm. Throws naming the phase on: a pattern
// that matches nothing (with near names), nothing left to train, a plan for another architecture,
// the policy explicit with a batch norm that no rule names, a file that is no plan.
Plan plan_of(const FinetuneOptions& options, const std::string& architecture, ImageModel& model);
void check_plan(const Plan& plan, const std::string& architecture, ImageModel& model);

// JSON text and back. Keys that a file leaves out are taken from the options; a phase without
// epochs gets options.epochs. `source` is named in errors.
std::string to_json(const Plan& plan);
Plan plan_from_json(const std::string& json, const std::string& source,
                    const FinetuneOptions& defaults);
Plan read_plan(const std::filesystem::path& file, const FinetuneOptions& defaults);

// --- a phase applied to a model
struct TrainableCount {
  int64_t tensors = 0, trainable_tensors = 0;
  int64_t values = 0, trainable_values = 0;
};
// Turns gradients on for what trains in this phase and off for the rest.
TrainableCount apply_freeze(ImageModel& model, const Phase& phase);
// Training mode, except that frozen modules stay in inference mode (no dropout, no moving
// statistics), and every batch norm follows its policy.
void set_training_mode(ImageModel& model, const Phase& phase);
// The parameters that train, a group for each pair of learning rate and weight decay.
std::vector<ParameterGroup> parameter_groups(ImageModel& model, const Phase& phase);
// The parameters, running statistics and counters that must not move in this phase.
std::vector<NamedTensor> frozen_tensors(ImageModel& model, const Phase& phase);
// Whether a batch norm uses batch statistics in some phase.
bool uses_batch_statistics(const Plan& plan, ImageModel& model);

// --- the table that --dry-run prints
struct LayerRow {
  std::string name;   // of a module with parameters of its own
  std::string block;  // that it belongs to, see presets.h
  int64_t parameters = 0, trainable = 0;
  int64_t adapter = 0;  // values of its low-rank adapter, among the parameters
  double learning_rate = 0, weight_decay = 0;  // of what trains; 0 when frozen
  std::string batch_norm;                      // its policy's name; "" when it is no batch norm
  std::optional<double> dropout;               // where the plan sets one
  int64_t bytes = 0;  // weights, and gradients and optimizer state of what trains
};
std::vector<LayerRow> layer_rows(ImageModel& model, const Phase& phase, OptimizerKind optimizer);
// The same with the layers of a block in one row where they agree.
std::vector<LayerRow> block_rows(const std::vector<LayerRow>& layers);

// A line for each difference between two plans: "phase 2 \"all\": learning_rate 0.0005, was 0.001".
// Empty when they are the same.
std::vector<std::string> differences(const Plan& before, const Plan& after);

}  // namespace graft
