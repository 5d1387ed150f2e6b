#include "transfer/plan.h"

#include <algorithm>
#include <map>
#include <set>

#include "engine/near_names.h"
#include "kernels/error.h"
#include "layers/dropout.h"
#include "layers/norm.h"
#include "transfer/presets.h"

namespace graft {
namespace {

bool names(const LayerRule& rule, const std::string& name) {
  return std::any_of(rule.match.begin(), rule.match.end(),
                     [&](const std::string& pattern) { return matches(pattern, name); });
}

// Calls visit(rule) for the rules that name something, in order.
template <class Visit>
void each_rule(const Phase& phase, const std::string& name, const Visit& visit) {
  for (const LayerRule& rule : phase.layers) {
    if (names(rule, name)) visit(rule);
  }
}

bool frozen_by_rules(const Phase& phase, const std::string& name) {
  bool frozen = false;
  each_rule(phase, name, [&](const LayerRule& rule) { frozen = rule.freeze.value_or(frozen); });
  return frozen;
}

std::string module_of(const std::string& parameter) {
  return parameter.substr(0, parameter.rfind('.'));
}

std::map<std::string, BatchNorm2d*> batch_norms(ImageModel& model) {
  std::map<std::string, BatchNorm2d*> found;
  for (const auto& [name, module] : model.named_modules()) {
    if (auto* norm = dynamic_cast<BatchNorm2d*>(module)) found[name] = norm;
  }
  return found;
}

// Whether the layer normalises with the statistics of the batch while this phase trains.
bool batch_statistics(const Phase& phase, const std::string& name, BatchNorm2d& norm) {
  const BatchNormPolicy policy = batch_norm_policy(phase, name);
  if (policy == BatchNormPolicy::adapt_stats) return true;
  if (policy != BatchNormPolicy::train) return false;
  return norm.weight.requires_grad() || norm.bias.requires_grad();
}

// The names that a pattern can have meant: parameters, modules, and everything above them.
std::vector<std::string> all_names(ImageModel& model) {
  std::set<std::string> all;
  for (const NamedTensor& parameter : model.named_parameters()) {
    for (std::string name = parameter.name; !name.empty();) {
      all.insert(name);
      const size_t dot = name.rfind('.');
      name = dot == std::string::npos ? "" : name.substr(0, dot);
    }
  }
  return {all.begin(), all.end()};
}

std::string label(const Plan& plan, size_t phase) {
  if (plan.phases.size() == 1) return "";
  return text("phase ", phase + 1, " \"", plan.phases[phase].name, "\": ");
}

void check_phase(const std::string& where, const Phase& phase, ImageModel& model) {
  const std::vector<NamedTensor> parameters = model.named_parameters();
  for (const LayerRule& rule : phase.layers) {
    for (const std::string& pattern : rule.match) {
      const bool used = std::any_of(
          parameters.begin(), parameters.end(),
          [&](const NamedTensor& parameter) { return matches(pattern, parameter.name); });
      if (used) continue;
      std::vector<std::string> top;
      for (const Block& block : blocks_of(model)) top.push_back(block.name);
      fail("plan: ", where, "no layer matches \"", pattern, "\"",
           did_you_mean(pattern, all_names(model)), " (the model's parts are ", top,
           " and names below them)");
    }
  }
  const bool trains = std::any_of(
      parameters.begin(), parameters.end(),
      [&](const NamedTensor& parameter) { return setting_of(phase, model, parameter).trains; });
  GRAFT_CHECK(trains, "plan: ", where, "nothing is left to train; unfreeze at least the head, ",
              model.head_name());
  if (phase.batch_norm != BatchNormPolicy::explicit_rules) return;
  for (const auto& [name, norm] : batch_norms(model)) {
    GRAFT_CHECK(batch_norm_policy(phase, name) != BatchNormPolicy::explicit_rules, "plan: ", where,
                "batch norm is \"explicit\" but no rule says what ", name,
                " does; add {\"match\": \"", name, "\", \"batch_norm\": \"frozen-stats\"}");
  }
}

// One phase from the options for the common cases.
Plan plan_of_flags(const FinetuneOptions& options, ImageModel& model) {
  Phase phase;
  phase.name = options.freeze_features ? "head" : "all";
  phase.epochs = options.epochs;
  phase.learning_rate = decimal(options.learning_rate);
  phase.weight_decay = decimal(options.weight_decay);
  phase.schedule = options.schedule;
  phase.batch_norm = options.batch_norm;
  const auto rule = [&](std::vector<std::string> match) -> LayerRule& {
    phase.layers.emplace_back().match = std::move(match);
    return phase.layers.back();
  };
  if (options.freeze_features) {
    rule({"*"}).freeze = true;
    rule({model.head_name()}).freeze = false;
  }
  if (!options.freeze.empty()) rule(options.freeze).freeze = true;
  if (options.head_multiplier != 1) {
    rule({model.head_name()}).learning_rate = decimal(options.head_multiplier);
  }
  return {"", "", {phase}};
}

}  // namespace

BatchNormPolicy batch_norm_policy(const Phase& phase, const std::string& name) {
  BatchNormPolicy policy = phase.batch_norm;
  each_rule(phase, name, [&](const LayerRule& rule) { policy = rule.batch_norm.value_or(policy); });
  return policy;
}

ParameterSetting setting_of(const Phase& phase, ImageModel& model, const NamedTensor& parameter) {
  ParameterSetting setting{true, phase.learning_rate, phase.weight_decay};
  each_rule(phase, parameter.name, [&](const LayerRule& rule) {
    if (rule.freeze) setting.trains = !*rule.freeze;
    if (rule.learning_rate) setting.learning_rate = phase.learning_rate * *rule.learning_rate;
    setting.weight_decay = rule.weight_decay.value_or(setting.weight_decay);
  });
  // Biases and norm parameters are not drawn to zero.
  if (parameter.tensor->rank() < 2) setting.weight_decay = 0;
  const std::string module = module_of(parameter.name);
  if (setting.trains && batch_norm_policy(phase, module) == BatchNormPolicy::frozen_all) {
    setting.trains = batch_norms(model).count(module) == 0;
  }
  if (setting.trains && parameter.role == AdapterRole::base) {
    // Adapters learn in its place, but for batch norms that are to learn as they do without.
    setting.trains = batch_norm_policy(phase, module) == BatchNormPolicy::train &&
                     batch_norms(model).count(module) > 0;
  }
  if (!setting.trains) setting.learning_rate = setting.weight_decay = 0;
  return setting;
}

Plan plan_of(const FinetuneOptions& options, const std::string& architecture, ImageModel& model) {
  Plan plan = !options.plan.empty()     ? read_plan(options.plan, options)
              : !options.preset.empty() ? make_preset(options.preset, options, model)
                                        : plan_of_flags(options, model);
  check_plan(plan, architecture, model);
  if (plan.architecture.empty()) plan.architecture = architecture;
  return plan;
}

void check_plan(const Plan& plan, const std::string& architecture, ImageModel& model) {
  GRAFT_CHECK(plan.architecture.empty() || plan.architecture == architecture, "plan: it is for ",
              plan.architecture, ", but the model is ", architecture,
              "; give the plan of this model, or remove \"architecture\" from it");
  GRAFT_CHECK(!plan.phases.empty(), "plan: it has no phase");
  for (size_t i = 0; i < plan.phases.size(); ++i) {
    check_phase(label(plan, i), plan.phases[i], model);
  }
}

TrainableCount apply_freeze(ImageModel& model, const Phase& phase) {
  TrainableCount count;
  for (const NamedTensor& parameter : model.named_parameters()) {
    const bool trains = setting_of(phase, model, parameter).trains;
    parameter.tensor->set_requires_grad(trains);
    count.tensors += 1;
    count.values += parameter.tensor->numel();
    if (trains) {
      count.trainable_tensors += 1;
      count.trainable_values += parameter.tensor->numel();
    }
  }
  return count;
}

void set_training_mode(ImageModel& model, const Phase& phase) {
  model.train();
  for (const auto& [name, module] : model.named_modules()) {
    const std::vector<NamedTensor> parameters = module->named_parameters();
    const bool frozen =
        parameters.empty()
            ? !name.empty() && frozen_by_rules(phase, name)
            : std::none_of(parameters.begin(), parameters.end(), [](const NamedTensor& parameter) {
                return parameter.tensor->requires_grad();
              });
    if (frozen) module->eval();
  }
  for (const auto& [name, norm] : batch_norms(model)) {
    const bool batch = batch_statistics(phase, name, *norm);
    norm->train(batch);
    norm->freeze_statistics(!batch);
  }
  for (const auto& [name, module] : model.named_modules()) {
    auto* drops = dynamic_cast<DropsOut*>(module);
    if (drops == nullptr) continue;
    each_rule(phase, name.empty() ? model.head_name() : name, [&](const LayerRule& rule) {
      if (rule.dropout) drops->set_dropout(static_cast<float>(*rule.dropout));
    });
  }
}

std::vector<ParameterGroup> parameter_groups(ImageModel& model, const Phase& phase) {
  std::vector<ParameterGroup> groups;
  for (const NamedTensor& parameter : model.named_parameters()) {
    const ParameterSetting setting = setting_of(phase, model, parameter);
    if (!setting.trains) continue;
    const auto rate = static_cast<float>(setting.learning_rate);
    const auto decay = static_cast<float>(setting.weight_decay);
    auto group = std::find_if(groups.begin(), groups.end(), [&](const ParameterGroup& known) {
      return known.learning_rate == rate && known.weight_decay == decay;
    });
    if (group == groups.end()) {
      ParameterGroup fresh;
      fresh.name = text("learning rate ", rate, ", weight decay ", decay);
      fresh.learning_rate = rate;
      fresh.weight_decay = decay;
      group = groups.insert(groups.end(), std::move(fresh));
    }
    group->parameters.push_back({parameter.name, *parameter.tensor});
  }
  return groups;
}

std::vector<NamedTensor> frozen_tensors(ImageModel& model, const Phase& phase) {
  std::vector<NamedTensor> frozen;
  for (const NamedTensor& parameter : model.named_parameters()) {
    if (!setting_of(phase, model, parameter).trains) frozen.push_back(parameter);
  }
  const std::map<std::string, BatchNorm2d*> norms = batch_norms(model);
  for (const NamedTensor& buffer : model.named_buffers()) {
    const std::string module = module_of(buffer.name);
    const auto norm = norms.find(module);
    if (norm == norms.end() || !batch_statistics(phase, module, *norm->second)) {
      frozen.push_back(buffer);
    }
  }
  return frozen;
}

bool uses_batch_statistics(const Plan& plan, ImageModel& model) {
  for (const Phase& phase : plan.phases) {
    for (const auto& [name, norm] : batch_norms(model)) {
      const BatchNormPolicy policy = batch_norm_policy(phase, name);
      if (policy == BatchNormPolicy::train || policy == BatchNormPolicy::adapt_stats) return true;
    }
  }
  return false;
}

}  // namespace graft
