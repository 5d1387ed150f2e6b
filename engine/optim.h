// Optimizers with parameter groups. One fused kernel pass updates all parameters of a group.
// State and formulas are PyTorch's (SGD with momentum, Nesterov and weight decay; AdamW, Loshchilov
// and Hutter 2019).
#pragma once

#include <map>
#include <memory>
#include <string>
#include <vector>

#include "engine/tensor.h"

namespace graft {

struct NamedParameter {
  std::string name;
  Tensor tensor;  // shares storage and gradient with the module's own
};

struct ParameterGroup {
  std::string name;
  std::vector<NamedParameter> parameters;
  float learning_rate = 1e-3f;
  float weight_decay = 0;
};

class Optimizer {
 public:
  explicit Optimizer(std::vector<ParameterGroup> groups);
  virtual ~Optimizer() = default;
  std::vector<ParameterGroup>& groups() { return groups_; }
  // Updates every parameter that has a gradient. A parameter without one is left alone.
  void step();
  void zero_grad();
  // From now on every step scales the gradients as clip_grad_norm() over all parameters would, on
  // the way: without another pass over them, and without asking the device for the norm. grad()
  // itself stays unscaled. 0: no clipping.
  void set_clip_norm(float max_norm);

  // A step in three parts, for steps that are recorded once and run many times (step_graph.h):
  // collect() once, then advance() and apply() for each. step() does all three.
  //
  // Notes which parameters have a gradient, and where.
  virtual void collect() = 0;
  // Counts a step of what was collected and gives its numbers, one for each pass over parameters.
  virtual std::vector<OptimRates> advance() = 0;
  // Updates what was collected with these numbers.
  virtual void apply(const std::vector<OptimRates>& rates) = 0;

  // Everything but the parameters themselves: "fc.weight/momentum" -> tensor. Names are stable.
  virtual std::map<std::string, Tensor> state() = 0;
  // Throws naming what is missing, left over or of another shape.
  virtual void load_state(const std::map<std::string, Tensor>& state) = 0;

 protected:
  std::vector<ParameterGroup> groups_;
  float clip_norm_ = 0;
};

struct SgdOptions {
  float momentum = 0.9f;
  bool nesterov = false;
};
struct AdamWOptions {
  float beta1 = 0.9f, beta2 = 0.999f, epsilon = 1e-8f;
};
std::unique_ptr<Optimizer> make_sgd(std::vector<ParameterGroup> groups, const SgdOptions& options);
std::unique_ptr<Optimizer> make_adamw(std::vector<ParameterGroup> groups,
                                      const AdamWOptions& options);

// Scales all gradients so that their joint 2-norm is at most max_norm; returns the norm before. A
// norm that is not finite leaves the gradients alone.
float clip_grad_norm(const std::vector<NamedParameter>& parameters, float max_norm);

}  // namespace graft
