// Feature extraction and full fine-tuning: Yosinski et al. 2014. LP-FT: Kumar et al. 2022, head
// first, then everything from there. Gradual unfreezing and discriminative rates: Howard and Ruder,
// ULMFiT, 2018: one more block an epoch from the head down; a block learns 2.6 times slower than
// the one above it. Layer-wise decay: Bao et al., BEiT, 2022: the same with a factor of 0.75.
// fine-tune: fastai's recipe: one epoch of the head, then everything at half the rate, spread
// geometrically down to a hundredth. Chain-thaw: Felbo et al., DeepMoji, 2017: the head, then each
// block alone from the input up, then everything.
#include "transfer/presets.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "engine/near_names.h"
#include "kernels/error.h"
#include "layers/norm.h"

namespace graft {
namespace {

// "layer1.0" for layer1.0.conv1, "features.3" for features.3.0, "conv1" for conv1.
std::string block_name(const std::string& module) {
  const size_t dot = module.find('.');
  if (dot == std::string::npos) return module;
  const size_t end = std::min(module.find('.', dot + 1), module.size());
  const std::string second = module.substr(dot + 1, end - dot - 1);
  const bool number = !second.empty() && std::all_of(second.begin(), second.end(),
                                                     [](char c) { return c >= '0' && c <= '9'; });
  return module.substr(0, number ? end : dot);
}

LayerRule freeze_rule(std::vector<std::string> match, bool freeze) {
  LayerRule rule;
  rule.match = std::move(match);
  rule.freeze = freeze;
  return rule;
}
LayerRule rate_rule(std::vector<std::string> match, double multiplier) {
  LayerRule rule;
  rule.match = std::move(match);
  rule.learning_rate = multiplier;
  return rule;
}

class Maker {
 public:
  Maker(const FinetuneOptions& options, ImageModel& model)
      : options_(options), blocks_(blocks_of(model)), head_(model.head_name()) {}

  Plan feature_extraction() { return plan({head_phase(options_.epochs)}); }
  Plan full() { return plan({phase("all", options_.epochs)}); }
  Plan discriminative(double factor) {
    Phase all = phase("all", options_.epochs);
    slow_down(all, factor);
    return plan({all});
  }

  // A third of the epochs for the head, at the linear probe's rate.
  Plan lp_ft() {
    need(2);
    const int64_t first = std::max<int64_t>(1, options_.epochs / 3);
    return plan({head_phase(first), phase("all", options_.epochs - first)});
  }

  Plan fine_tune() {
    need(2);
    Phase head = head_phase(1);
    head.learning_rate = decimal(options_.learning_rate);
    head.schedule = {.kind = ScheduleKind::one_cycle, .rise = 0.99};
    Phase all = phase("all", options_.epochs - 1);
    all.learning_rate = decimal(options_.learning_rate) / 2;
    all.schedule = {.kind = ScheduleKind::one_cycle, .rise = 0.3, .div_factor = 5};
    const double last = static_cast<double>(blocks_.size() - 1);
    for (size_t i = 0; i + 1 < blocks_.size(); ++i) {
      all.layers.push_back(
          rate_rule(blocks_[i].modules, std::pow(100, static_cast<double>(i) / last - 1)));
    }
    return plan({head, all});
  }

  // One epoch a block; where there are more blocks than epochs, several blocks at once.
  Plan gradual() {
    const size_t bodies = blocks_.size() - 1;
    const auto epochs = static_cast<size_t>(options_.epochs);
    need(2);
    const size_t groups = std::min(bodies, epochs - 1);
    std::vector<Phase> phases{head_phase(1)};
    phases.front().learning_rate = decimal(options_.learning_rate);
    for (size_t i = 1; i <= groups; ++i) {
      const size_t first = bodies - bodies * i / groups;  // thawed from here up
      const auto length = static_cast<int64_t>(i == groups ? epochs - groups : 1);
      Phase next = phase("from " + blocks_[first].name, length);
      next.layers = {freeze_rule(modules(0, first), true)};
      if (first == 0) next.layers.clear();
      slow_down(next, 2.6);
      phases.push_back(std::move(next));
    }
    return plan(std::move(phases));
  }

  Plan chain_thaw() {
    need(3);
    const size_t bodies = blocks_.size() - 1;
    const size_t groups = std::min(bodies, static_cast<size_t>(options_.epochs) - 2);
    std::vector<Phase> phases{head_phase(1)};
    for (size_t i = 0; i < groups; ++i) {
      const size_t first = bodies * i / groups, end = bodies * (i + 1) / groups;
      Phase next = phase(
          "only " + blocks_[first].name + (end - first > 1 ? " to " + blocks_[end - 1].name : ""),
          1);
      next.layers = {freeze_rule({"*"}, true), freeze_rule(modules(first, end), false)};
      phases.push_back(std::move(next));
    }
    phases.push_back(phase("all", options_.epochs - 1 - static_cast<int64_t>(groups)));
    return plan(std::move(phases));
  }

 private:
  Plan plan(std::vector<Phase> phases) const { return {"", "", std::move(phases)}; }

  Phase phase(std::string name, int64_t epochs) const {
    Phase result;
    result.name = std::move(name);
    result.epochs = epochs;
    result.learning_rate = decimal(options_.learning_rate);
    result.weight_decay = decimal(options_.weight_decay);
    result.schedule = options_.schedule;
    result.batch_norm = options_.batch_norm;
    return result;
  }
  Phase head_phase(int64_t epochs) const {
    Phase result = phase("head", epochs);
    result.learning_rate = decimal(FinetuneOptions::linear_probe().learning_rate);
    result.layers = {freeze_rule({"*"}, true), freeze_rule({head_}, false)};
    return result;
  }
  std::vector<std::string> modules(size_t begin, size_t end) const {
    std::vector<std::string> names;
    for (size_t i = begin; i < end; ++i) {
      names.insert(names.end(), blocks_[i].modules.begin(), blocks_[i].modules.end());
    }
    return names;
  }
  void slow_down(Phase& phase, double factor) const {
    for (size_t i = 0; i + 1 < blocks_.size(); ++i) {
      const double below = static_cast<double>(blocks_.size() - 1 - i);
      phase.layers.push_back(rate_rule(blocks_[i].modules, std::pow(factor, -below)));
    }
  }
  void need(int64_t epochs) const {
    GRAFT_CHECK(options_.epochs >= epochs, "plan: this preset has phases of its own and needs at ",
                "least ", epochs, " epochs, got ", options_.epochs);
  }

  const FinetuneOptions& options_;
  std::vector<Block> blocks_;
  std::string head_;
};

struct Entry {
  Preset preset;
  Plan (*make)(Maker&);
};
const std::vector<Entry>& entries() {
  static const std::vector<Entry> all{
      {{"feature-extraction", "train the head only"},
       [](Maker& m) { return m.feature_extraction(); }},
      {{"full", "train everything at one rate"}, [](Maker& m) { return m.full(); }},
      {{"lp-ft", "the head for a third of the epochs, then everything"},
       [](Maker& m) { return m.lp_ft(); }},
      {{"gradual", "unfreeze one more block an epoch, each 2.6 times slower than the next"},
       [](Maker& m) { return m.gradual(); }},
      {{"discriminative", "everything, each block 2.6 times slower than the next"},
       [](Maker& m) { return m.discriminative(2.6); }},
      {{"layer-decay", "everything, each block at 0.75 of the next one's rate"},
       [](Maker& m) { return m.discriminative(1 / 0.75); }},
      {{"fine-tune", "one epoch of the head, then everything, slower towards the input"},
       [](Maker& m) { return m.fine_tune(); }},
      {{"chain-thaw", "the head, then each block alone, then everything"},
       [](Maker& m) { return m.chain_thaw(); }},
  };
  return all;
}

}  // namespace

std::vector<Block> blocks_of(ImageModel& model) {
  std::map<std::string, Module*> modules;
  for (const auto& [name, module] : model.named_modules()) modules[name] = module;
  const std::string head = model.head_name();
  std::vector<Block> blocks;
  for (const NamedTensor& parameter : model.named_parameters()) {
    const std::string module = parameter.name.substr(0, parameter.name.rfind('.'));
    if (module == head) continue;
    const std::string block = block_name(module);
    if (!blocks.empty() && blocks.back().modules.back() == block) continue;
    if (!blocks.empty() && dynamic_cast<BatchNorm2d*>(modules.at(block)) != nullptr) {
      blocks.back().modules.push_back(block);
    } else {
      blocks.push_back({block, {block}});
    }
  }
  blocks.push_back({head, {head}});
  return blocks;
}

std::vector<Preset> presets() {
  std::vector<Preset> list;
  for (const Entry& entry : entries()) list.push_back(entry.preset);
  return list;
}

Plan make_preset(const std::string& name, const FinetuneOptions& options, ImageModel& model) {
  std::vector<std::string> names;
  for (const Entry& entry : entries()) {
    names.push_back(entry.preset.name);
    if (entry.preset.name != name) continue;
    GRAFT_CHECK(options.steps <= 0, "plan: the phases of ", name,
                " are counted in epochs; give --epochs instead of --steps");
    Maker maker(options, model);
    Plan plan = entry.make(maker);
    plan.name = name;
    return plan;
  }
  fail("plan: there is no preset \"", name, "\"", did_you_mean(name, names), " (the presets are ",
       names, ")");
}

}  // namespace graft
