// A stage: one link of the chain that a network's features are.
#pragma once

#include <functional>
#include <string>
#include <utility>
#include <vector>

#include "engine/running.h"
#include "layers/module.h"

namespace graft {

class Stage : public Tappable {
 public:
  using Run = std::function<Tensor(const Tensor&)>;
  Stage(std::string name, std::vector<Module*> modules, Run run)
      : name_(std::move(name)), modules_(std::move(modules)), run_(std::move(run)) {}

  Tensor operator()(const Tensor& x) const {
    const RunningOp running(name_.c_str());
    return shown(run_(x));
  }
  // PyTorch's name of the module whose output it gives ("layer1.0", "features.3"), or, where the
  // family has no such module, a word of its own ("stem", "avgpool").
  const std::string& name() const { return name_; }
  // The modules, with all below them, that its output depends on; none for a pooling.
  const std::vector<Module*>& modules() const { return modules_; }

 private:
  std::string name_;
  std::vector<Module*> modules_;
  Run run_;
};

}  // namespace graft
