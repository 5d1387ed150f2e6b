#include "layers/tap.h"

#include <algorithm>

#include "engine/near_names.h"
#include "layers/sequential.h"

namespace graft {
namespace {

Module* find_module(ImageModel& model, const std::string& name) {
  for (const auto& [full_name, module] : model.named_modules()) {
    if (full_name == name) return module;
  }
  return nullptr;
}

// The last part of a Sequential, which need not itself be run as a whole.
Module* innermost_last(Module* module) {
  for (;;) {
    auto* sequence = dynamic_cast<Sequential*>(module);
    if (sequence == nullptr || sequence->last() == nullptr) return module;
    module = sequence->last();
  }
}

std::vector<std::string> stage_names(const ImageModel& model) {
  std::vector<std::string> names;
  for (const Stage& stage : model.stages()) names.push_back(stage.name());
  return names;
}

}  // namespace

void Tappable::show(const Tensor& output) const {
  for (Tap* tap : taps_) tap->output_ = output;
}

Tap::Tap(ImageModel& model, const std::string& layer) : layer_(layer) {
  if (Module* module = layer.empty() ? nullptr : find_module(model, layer)) {
    source_ = innermost_last(module);
  } else {
    for (const Stage& stage : model.stages()) {
      if (stage.name() == layer) source_ = &stage;
    }
  }
  if (source_ == nullptr) {
    std::string advice = did_you_mean(layer, layer_names(model));
    if (advice.empty()) advice = text("; there are ", stage_names(model), " and names within them");
    fail("tap: there is no layer \"", layer, "\"", advice);
  }
  source_->taps_.push_back(this);
}

Tap::~Tap() { std::erase(source_->taps_, this); }

const Tensor& Tap::output() const {
  GRAFT_CHECK(has_output(), "tap: ", layer_, " has not run; run the model first");
  return output_;
}

std::vector<std::string> layer_names(ImageModel& model) {
  std::vector<std::string> names;
  for (const Stage& stage : model.stages()) {
    if (find_module(model, stage.name()) == nullptr) names.push_back(stage.name());
  }
  for (const auto& [name, module] : model.named_modules()) {
    if (!name.empty()) names.push_back(name);
  }
  return names;
}

}  // namespace graft
