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
                     const StartingModel& start)
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
  const Tensor images = batch.images.to(device_);
  if (!options_.mixes()) return {images, batch.labels};
  const Mix mix = draw_mix(options_, images.dim(0), images.dim(1), images.dim(2), seed, step);
  return {mix_images(images, mix), mix_labels(batch.labels, classes_, mix).to(device_)};
}

Tensor Objective::loss(const Tensor& logits, const Input& input) const {
  Tensor total = cross_entropy(logits, input.target, loss_);
  for (const auto& regulariser : regularisers_) {
    const Tensor term = regulariser->term(input.images);
    if (term.defined()) total = add(total, term);
    regulariser->clear();
  }
  return total;
}

bool Objective::recordable() const {
  return std::all_of(regularisers_.begin(), regularisers_.end(),
                     [](const auto& regulariser) { return regulariser->recordable(); });
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
  if (o.stoch_norm > 0) {
    check(
        "StochNorm", [&](const Phase& phase) { return moves_statistics(model, phase); },
        "no batch norm uses batch statistics", "give --batch-norm train, or leave it out");
  }
  return notes;
}

}  // namespace graft
