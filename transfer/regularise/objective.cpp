#include "transfer/regularise/objective.h"

#include <algorithm>
#include <set>

#include "kernels/error.h"
#include "layers/norm.h"

namespace graft {
namespace {

bool trains_features(ImageModel& model, const Phase& phase) {
  for (const NamedTensor& parameter : model.named_parameters()) {
    if (!in_head(model, parameter.name) && setting_of(phase, model, parameter).trains) return true;
  }
  return false;
}

}  // namespace

Objective::Objective(ImageModel& model, const FinetuneOptions& options, CrossEntropyOptions loss,
                     const Start& start)
    : options_(options.regularise),
      loss_(std::move(loss)),
      classes_(model.classes()),
      device_(options.device) {
  for (const RegulariserRow& row : regularisers()) {
    if (options_.*row.weight > 0) regularisers_.push_back(row.make(model, options_, start));
  }
  set_stochastic_norm(model, options_.stoch_norm);
}

Objective::Input Objective::input(const Batch& batch, uint64_t seed, uint64_t step) const {
  Input input{batch.images.to(device_), batch.labels, {}};
  Tensor labels = batch.labels;
  if (options_.mixes()) {
    const Tensor& x = input.images;
    const Mix mix = draw_mix(options_, x.dim(0), x.dim(1), x.dim(2), seed, step);
    input.images = mix_images(x, mix);
    labels = mix_labels(labels, classes_, mix);
    input.target = labels.to(device_);
  }
  for (const auto& regulariser : regularisers_) {
    const Tensor target = regulariser->target(labels);
    input.targets.push_back(target.defined() ? target.to(device_) : target);
  }
  return input;
}

Tensor Objective::loss(const Tensor& logits, const Input& input) const {
  Tensor total = cross_entropy(logits, input.target, loss_);
  for (size_t i = 0; i < regularisers_.size(); ++i) {
    const Tensor term = regularisers_[i]->term(input.images, input.targets[i]);
    if (term.defined()) total = add(total, term);
    regularisers_[i]->clear();
  }
  return total;
}

std::vector<NamedTensor> Objective::parameters() const {
  std::vector<NamedTensor> all;
  for (const auto& regulariser : regularisers_) {
    for (NamedTensor& parameter : regulariser->parameters()) all.push_back(std::move(parameter));
  }
  return all;
}

std::vector<ParameterGroup> Objective::parameter_groups(ImageModel& model,
                                                        const Phase& phase) const {
  std::vector<ParameterGroup> groups;
  if (!trains_features(model, phase)) return groups;
  for (const NamedTensor& parameter : parameters()) {
    ParameterGroup& group = groups.emplace_back();
    group.name = parameter.name;
    group.learning_rate = static_cast<float>(phase.learning_rate);
    group.weight_decay =
        parameter.tensor->rank() < 2 ? 0.0f : static_cast<float>(phase.weight_decay);
    group.parameters.push_back({parameter.name, *parameter.tensor});
  }
  return groups;
}

bool Objective::measure(const std::function<std::unique_ptr<Batches>()>& images,
                        const std::function<bool(int64_t)>& keep_going) const {
  for (const auto& regulariser : regularisers_) {
    if (!regulariser->wants_measuring()) continue;
    const std::unique_ptr<Batches> all = images();
    const bool done = regulariser->measure(*all, keep_going);
    regulariser->clear();
    if (!done) return false;
  }
  return true;
}

bool Objective::wants_measuring() const {
  return std::any_of(regularisers_.begin(), regularisers_.end(),
                     [](const auto& regulariser) { return regulariser->wants_measuring(); });
}

std::map<std::string, Tensor> Objective::state() const {
  std::map<std::string, Tensor> all;
  for (const auto& regulariser : regularisers_) all.merge(regulariser->state());
  return all;
}

void Objective::load(const std::map<std::string, Tensor>& state) const {
  for (const auto& regulariser : regularisers_) regulariser->load(state);
}

bool moves_statistics(ImageModel& model, const Phase& phase) {
  std::set<std::string> frozen;
  for (const NamedTensor& entry : frozen_tensors(model, phase)) frozen.insert(entry.name);
  for (const NamedTensor& buffer : model.named_buffers()) {
    if (frozen.count(buffer.name) == 0) return true;
  }
  return false;
}

std::vector<std::string> check_objective(const FinetuneOptions& options, const Plan& plan,
                                         ImageModel& model) {
  const RegulariseOptions& o = options.regularise;
  std::vector<std::string> notes;
  const auto check = [&](const std::string& name, const auto& works, const std::string& why,
                         const std::string& remedy) {
    std::vector<std::string> idle;
    for (const Phase& phase : plan.phases) {
      if (!works(phase)) idle.push_back(phase.name);
    }
    GRAFT_CHECK(idle.size() < plan.phases.size(), "finetune: ", name, " would do nothing: ", why,
                "; ", remedy);
    for (const std::string& phase : idle) {
      notes.push_back(text(name, " does nothing in phase \"", phase, "\": ", why));
    }
  };
  for (const RegulariserRow& row : regularisers()) {
    if (o.*row.weight == 0) continue;
    if (!row.on_features && o.l2_sp_head > 0) continue;  // the head
    check(
        row.name, [&](const Phase& phase) { return trains_features(model, phase); },
        "nothing but the head trains", "leave it out, or let more train");
  }
  if (o.co_tuning > 0) {
    const int64_t classes = read_card(options.weights).classes;
    GRAFT_CHECK(classes > 0,
                "finetune: Co-Tuning trains the head that the weights were made with, ", "and ",
                options.weights.string(),
                " holds features without one; leave it out, or give weights with their classifier");
    notes.push_back(text("Co-Tuning: the weights' own head of ", classes,
                         " classes trains beside the new one, and is no part of the result"));
  }
  if (o.stoch_norm > 0) {
    check(
        "StochNorm", [&](const Phase& phase) { return moves_statistics(model, phase); },
        "no batch norm uses batch statistics", "give --batch-norm train, or leave it out");
  }
  return notes;
}

}  // namespace graft
