#include "transfer/freeze.h"

#include <algorithm>
#include <set>

#include "kernels/error.h"
#include "layers/norm.h"

namespace graft {
namespace {

bool glob(const char* pattern, const char* text_begin, const char* text_end) {
  for (; *pattern != '\0'; ++pattern, ++text_begin) {
    if (*pattern == '*') {
      for (const char* rest = text_begin; rest <= text_end; ++rest) {
        if (glob(pattern + 1, rest, text_end)) return true;
      }
      return false;
    }
    if (text_begin == text_end || (*pattern != '?' && *pattern != *text_begin)) return false;
  }
  return text_begin == text_end;
}

bool below(const std::string& name, const std::string& module) {
  return name == module || name.rfind(module + ".", 0) == 0;
}

bool frozen_by_name(const std::string& name, const std::string& head,
                    const FinetuneOptions& options) {
  if (options.freeze_features && !below(name, head)) return true;
  return std::any_of(options.freeze.begin(), options.freeze.end(),
                     [&](const std::string& pattern) { return matches(pattern, name); });
}

}  // namespace

bool matches(const std::string& pattern, const std::string& name) {
  for (size_t end = name.find('.');; end = name.find('.', end + 1)) {
    const size_t length = std::min(end, name.size());
    if (glob(pattern.c_str(), name.data(), name.data() + length)) return true;
    if (end == std::string::npos) return false;
  }
}

TrainableCount apply_freeze(ImageModel& model, const FinetuneOptions& options) {
  TrainableCount count;
  std::vector<bool> used(options.freeze.size());
  std::set<std::string> top;
  for (const NamedTensor& parameter : model.named_parameters()) {
    for (size_t i = 0; i < options.freeze.size(); ++i) {
      if (matches(options.freeze[i], parameter.name)) used[i] = true;
    }
    top.insert(parameter.name.substr(0, parameter.name.find('.')));
    const bool trains = !frozen_by_name(parameter.name, model.head_name(), options);
    parameter.tensor->set_requires_grad(trains);
    count.tensors += 1;
    count.values += parameter.tensor->numel();
    if (trains) {
      count.trainable_tensors += 1;
      count.trainable_values += parameter.tensor->numel();
    }
  }
  for (size_t i = 0; i < options.freeze.size(); ++i) {
    GRAFT_CHECK(used[i], "freeze: no parameter matches \"", options.freeze[i],
                "\"; the model's parts are ", std::vector<std::string>(top.begin(), top.end()),
                " and names below them");
  }
  GRAFT_CHECK(count.trainable_tensors > 0, "freeze: nothing is left to train");
  return count;
}

void set_training_mode(ImageModel& model, const FinetuneOptions& options) {
  model.train();
  for (const auto& [name, module] : model.named_modules()) {
    const std::vector<NamedTensor> parameters = module->named_parameters();
    const bool frozen =
        parameters.empty()
            ? !name.empty() && frozen_by_name(name, model.head_name(), options)
            : std::none_of(parameters.begin(), parameters.end(), [](const NamedTensor& parameter) {
                return parameter.tensor->requires_grad();
              });
    if (frozen) module->eval();
  }
  freeze_batch_norm(model, options.batch_norm == BatchNormPolicy::frozen);
  if (options.batch_norm_momentum >= 0) {
    set_batch_norm_momentum(model, options.batch_norm_momentum);
  }
}

std::vector<ParameterGroup> parameter_groups(ImageModel& model, const FinetuneOptions& options) {
  std::vector<ParameterGroup> groups(4);
  for (size_t i = 0; i < groups.size(); ++i) {
    const bool head = i >= 2, decays = i % 2 == 0;
    groups[i].name = text(head ? "head" : "features", decays ? "" : ", no decay");
    groups[i].learning_rate = options.learning_rate * (head ? options.head_multiplier : 1);
    groups[i].weight_decay = decays ? options.weight_decay : 0;
  }
  for (const NamedTensor& parameter : model.named_parameters()) {
    if (!parameter.tensor->requires_grad()) continue;
    const size_t head = below(parameter.name, model.head_name()) ? 2 : 0;
    const size_t no_decay = parameter.tensor->rank() < 2 ? 1 : 0;
    groups[head + no_decay].parameters.push_back({parameter.name, *parameter.tensor});
  }
  std::erase_if(groups, [](const ParameterGroup& group) { return group.parameters.empty(); });
  return groups;
}

}  // namespace graft
