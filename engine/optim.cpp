#include "engine/optim.h"

#include <cmath>
#include <map>
#include <set>

#include "engine/dispatch.h"
#include "engine/running.h"
#include "kernels/clip.h"

namespace graft {
namespace {

// What an optimizer keeps for one parameter. Undefined until its first step.
struct Slot {
  Tensor first, second;  // momentum; or exp_avg and exp_avg_sq
  int64_t step = 0;
};

void check_gradient(const NamedParameter& parameter, const Tensor& grad, const char* op) {
  GRAFT_CHECK(grad.dtype() == Dtype::f32 && grad.device() == parameter.tensor.device(), op,
              ": the gradient of ", parameter.name, " is ", grad, " on ", grad.device(),
              ", expected f32 on ", parameter.tensor.device());
}

// A gradient for each parameter that has one; a gradient that two share is there once.
class GradientList {
 public:
  void add(const float* grad, int64_t n) {
    if (n == 0 || !seen_.insert(grad).second) return;
    OptimTensor entry;
    entry.g = grad;
    entry.n = n;
    entries_.push_back(entry);
  }
  bool empty() const { return entries_.empty(); }
  const OptimTensor* data() const { return entries_.data(); }
  int64_t count() const { return static_cast<int64_t>(entries_.size()); }

 private:
  std::set<const void*> seen_;
  std::vector<OptimTensor> entries_;
};

// Shared by both optimizers: one slot a parameter, and state in and out under "parameter/entry".
class SlotOptimizer : public Optimizer {
 public:
  SlotOptimizer(std::vector<ParameterGroup> groups, const char* first, const char* second,
                bool has_step)
      : Optimizer(std::move(groups)), first_(first), second_(second), has_step_(has_step) {
    for (const ParameterGroup& group : groups_) {
      for (const NamedParameter& parameter : group.parameters) slots_[parameter.name];
    }
  }

  std::map<std::string, Tensor> state() override {
    std::map<std::string, Tensor> result;
    for (const auto& [name, slot] : slots_) {
      if (slot.first.defined()) result[name + "/" + first_] = slot.first.clone();
      if (slot.second.defined()) result[name + "/" + second_] = slot.second.clone();
      if (has_step_ && slot.step > 0) {
        result[name + "/step"] = Tensor::of<int64_t>({slot.step}, {});
      }
    }
    return result;
  }

  void load_state(const std::map<std::string, Tensor>& state) override {
    std::map<std::string, Slot> loaded;
    std::set<std::string> used;
    std::string problems;
    const auto problem = [&](const auto&... parts) { problems += text("\n  ", parts...); };
    // An entry of the parameter's own shape, on its device; `some` tells that it has other entries.
    const auto take = [&](const Tensor& parameter, const std::string& key, bool some) {
      const auto found = state.find(key);
      if (found == state.end()) {
        if (some) problem("missing: ", key);
        return Tensor();
      }
      used.insert(key);
      const Tensor& value = found->second;
      if (!value.defined() || value.dtype() != Dtype::f32 || value.shape() != parameter.shape()) {
        problem(key, ": expected f32", parameter.shape(), ", got ", value);
        return Tensor();
      }
      return value.to(parameter.device()).clone();
    };
    for (const ParameterGroup& group : groups_) {
      for (const auto& [name, tensor] : group.parameters) {
        Slot& slot = loaded[name];
        bool some = false;
        for (const char* entry : {first_, second_, "step"}) {
          some = some || state.count(name + "/" + entry) > 0;
        }
        if (*first_ != 0) slot.first = take(tensor, name + "/" + first_, some);
        if (*second_ != 0) slot.second = take(tensor, name + "/" + second_, some);
        if (!has_step_) continue;
        const auto found = state.find(name + "/step");
        if (found == state.end()) {
          if (some) problem("missing: ", name, "/step");
          continue;
        }
        used.insert(found->first);
        if (found->second.dtype() != Dtype::i64 || found->second.numel() != 1) {
          problem(found->first, ": expected i64[], got ", found->second);
        } else {
          slot.step = found->second.to_vector<int64_t>()[0];
          if (slot.step < 1) problem(found->first, ": expected at least 1, got ", slot.step);
        }
      }
    }
    for (const auto& [key, value] : state) {
      if (used.count(key) == 0) problem("left over: ", key, ", which this optimizer does not have");
    }
    GRAFT_CHECK(problems.empty(), "optimizer: the state does not fit this optimizer:", problems,
                "\nuse the state of the same model, optimizer and settings, or start afresh");
    slots_ = std::move(loaded);
  }

 protected:
  // One pass: parameters of one group that have taken equally many steps.
  struct Pass {
    const ParameterGroup* group;
    std::vector<OptimTensor> tensors;
    std::vector<Slot*> slots;
    Device device;
  };

  void collect() override {
    passes_.clear();
    for (ParameterGroup& group : groups_) {
      std::map<int64_t, Pass> by_step;
      for (NamedParameter& parameter : group.parameters) {
        const Tensor grad = parameter.tensor.grad();
        if (!grad.defined()) continue;
        check_gradient(parameter, grad, name());
        const auto found = slots_.find(parameter.name);
        GRAFT_CHECK(found != slots_.end(), name(), ": ", parameter.name,
                    " was not there when the optimizer was made; make a new optimizer");
        Slot& slot = found->second;
        Pass& pass = by_step[slot.step];
        pass.group = &group;
        pass.device = parameter.tensor.device();
        pass.slots.push_back(&slot);
        pass.tensors.push_back({.p = parameter.tensor.mutable_data<float>(),
                                .g = grad.data<float>(),
                                .n = parameter.tensor.numel()});
        add_state(parameter.tensor, slot, pass.tensors.back());
      }
      for (auto& [step, pass] : by_step) passes_.push_back(std::move(pass));
    }
  }

  // Where the factor for these gradients will stand on the device; null without clipping.
  const float* clip() {
    GradientList grads;
    if (clip_norm_ > 0) {
      for (const Pass& pass : passes_) {
        for (const OptimTensor& entry : pass.tensors) grads.add(entry.g, entry.n);
      }
    }
    if (grads.empty()) return nullptr;
    const Device device = passes_.front().device;
    if (!clip_factor_.defined()) clip_factor_ = Tensor({}, Dtype::f32, device);
    GRAFT_KERNEL(clip_factor, device)
    (clip_factor_.mutable_data<float>(), grads.data(), grads.count(), clip_norm_);
    return clip_factor_.data<float>();
  }

  virtual const char* name() const = 0;
  // Makes the slot's tensors where they are missing and notes them in the entry.
  virtual void add_state(const Tensor& parameter, Slot& slot, OptimTensor& entry) = 0;

  std::vector<Pass> passes_;

 private:
  std::map<std::string, Slot> slots_;
  Tensor clip_factor_;
  const char *first_, *second_;
  bool has_step_;
};

class Sgd final : public SlotOptimizer {
 public:
  Sgd(std::vector<ParameterGroup> groups, const SgdOptions& options)
      : SlotOptimizer(std::move(groups), options.momentum != 0 ? "momentum" : "", "", false),
        options_(options) {}

  std::vector<OptimRates> advance() override {
    std::vector<OptimRates> rates;
    for (const Pass& pass : passes_) rates.push_back({.learning_rate = pass.group->learning_rate});
    return rates;
  }
  void apply(const std::vector<OptimRates>& rates) override {
    const float* factor = clip();
    for (size_t i = 0; i < passes_.size(); ++i) {
      const Pass& pass = passes_[i];
      GRAFT_KERNEL(sgd_step, pass.device)
      (pass.tensors.data(), static_cast<int64_t>(pass.tensors.size()), rates[i], factor,
       options_.momentum, pass.group->weight_decay, options_.nesterov);
    }
  }

 private:
  const char* name() const override { return "sgd"; }
  void add_state(const Tensor& parameter, Slot& slot, OptimTensor& entry) override {
    if (options_.momentum == 0) return;
    entry.first_step = !slot.first.defined();
    if (entry.first_step) slot.first = empty_like(parameter);
    entry.m = slot.first.mutable_data<float>();
  }

  SgdOptions options_;
};

class AdamW final : public SlotOptimizer {
 public:
  AdamW(std::vector<ParameterGroup> groups, const AdamWOptions& options)
      : SlotOptimizer(std::move(groups), "exp_avg", "exp_avg_sq", true), options_(options) {}

  std::vector<OptimRates> advance() override {
    std::vector<OptimRates> rates;
    for (const Pass& pass : passes_) {
      for (Slot* slot : pass.slots) ++slot->step;
      const auto t = static_cast<double>(pass.slots.front()->step);
      const float rate = pass.group->learning_rate;
      rates.push_back(
          {.decay = rate * pass.group->weight_decay,
           .step_size = static_cast<float>(rate / (1 - std::pow(double{options_.beta1}, t))),
           .root_scale =
               static_cast<float>(1 / std::sqrt(1 - std::pow(double{options_.beta2}, t)))});
    }
    return rates;
  }
  void apply(const std::vector<OptimRates>& rates) override {
    const float* factor = clip();
    for (size_t i = 0; i < passes_.size(); ++i) {
      const Pass& pass = passes_[i];
      GRAFT_KERNEL(adamw_step, pass.device)
      (pass.tensors.data(), static_cast<int64_t>(pass.tensors.size()), rates[i], factor,
       options_.beta1, options_.beta2, options_.epsilon);
    }
  }

 private:
  const char* name() const override { return "adamw"; }
  void add_state(const Tensor& parameter, Slot& slot, OptimTensor& entry) override {
    if (!slot.first.defined()) {
      slot.first = zeros_like(parameter);
      slot.second = zeros_like(parameter);
    }
    entry.m = slot.first.mutable_data<float>();
    entry.v = slot.second.mutable_data<float>();
  }

  AdamWOptions options_;
};

}  // namespace

Optimizer::Optimizer(std::vector<ParameterGroup> groups) : groups_(std::move(groups)) {
  std::set<std::string> names;
  std::set<const void*> places;
  Device device;
  for (const ParameterGroup& group : groups_) {
    for (const auto& [name, tensor] : group.parameters) {
      GRAFT_CHECK(tensor.defined() && tensor.dtype() == Dtype::f32, "optimizer: expected f32 for ",
                  name, ", got ", tensor);
      GRAFT_CHECK(names.insert(name).second, "optimizer: the name ", name,
                  " is there twice; state is kept by name");
      GRAFT_CHECK(tensor.numel() == 0 || places.insert(tensor.raw()).second, "optimizer: ", name,
                  " shares its memory with another parameter and would be updated twice; list it "
                  "once");
      if (names.size() == 1) device = tensor.device();
      GRAFT_CHECK(tensor.device() == device, "optimizer: ", name, " is on ", tensor.device(),
                  ", expected ", device, " as the parameters before it");
    }
  }
}

void Optimizer::step() {
  const RunningOp running("optimizer step");
  collect();
  apply(advance());
}

void Optimizer::set_clip_norm(float max_norm) {
  GRAFT_CHECK(max_norm >= 0, "optimizer: expected a clip norm of at least 0, got ", max_norm);
  clip_norm_ = max_norm;
}

void Optimizer::zero_grad() {
  for (ParameterGroup& group : groups_) {
    for (NamedParameter& parameter : group.parameters) parameter.tensor.zero_grad();
  }
}

std::unique_ptr<Optimizer> make_sgd(std::vector<ParameterGroup> groups, const SgdOptions& options) {
  GRAFT_CHECK(options.momentum >= 0, "sgd: expected momentum of at least 0, got ",
              options.momentum);
  GRAFT_CHECK(!options.nesterov || options.momentum > 0, "sgd: nesterov needs a momentum above 0");
  return std::make_unique<Sgd>(std::move(groups), options);
}

std::unique_ptr<Optimizer> make_adamw(std::vector<ParameterGroup> groups,
                                      const AdamWOptions& options) {
  GRAFT_CHECK(options.beta1 >= 0 && options.beta1 < 1 && options.beta2 >= 0 && options.beta2 < 1,
              "adamw: expected beta1 and beta2 in 0..1 (1 excluded), got ", options.beta1, " and ",
              options.beta2);
  GRAFT_CHECK(options.epsilon >= 0, "adamw: expected epsilon of at least 0, got ", options.epsilon);
  return std::make_unique<AdamW>(std::move(groups), options);
}

float clip_grad_norm(const std::vector<NamedParameter>& parameters, float max_norm) {
  constexpr const char* kOp = "clip_grad_norm";
  const RunningOp running(kOp);
  GRAFT_CHECK(max_norm >= 0, kOp, ": expected max_norm of at least 0, got ", max_norm);
  GradientList grads;
  std::vector<Tensor> tensors;
  for (const NamedParameter& parameter : parameters) {
    const Tensor grad = parameter.tensor.grad();
    if (!grad.defined()) continue;
    check_gradient(parameter, grad, kOp);
    const int64_t before = grads.count();
    grads.add(grad.data<float>(), grad.numel());
    if (grads.count() > before) tensors.push_back(grad);
  }
  if (grads.empty()) return 0;
  double sum = 0;
  const Device device = tensors[0].device();
  GRAFT_KERNEL(gradient_square_sum, device)(&sum, grads.data(), grads.count());
  const float factor = clip_factor_of(sum, static_cast<double>(max_norm));
  if (factor < 1) {
    std::vector<OptimTensor> list(grads.data(), grads.data() + grads.count());
    for (size_t i = 0; i < list.size(); ++i) list[i].p = tensors[i].mutable_data<float>();
    GRAFT_KERNEL(scale_tensors, device)(list.data(), grads.count(), factor);
  }
  return static_cast<float>(std::sqrt(sum));
}

}  // namespace graft
