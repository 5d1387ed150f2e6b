// Modules applied one after another, named "0", "1", ... as in nn.Sequential.
#pragma once

#include <memory>
#include <vector>

#include "layers/module.h"

namespace graft {

class Sequential : public Module {
 public:
  // Adds a module and returns it.
  template <class M>
  std::shared_ptr<M> add(std::shared_ptr<M> module) {
    child(std::to_string(parts_.size()), std::static_pointer_cast<Module>(module));
    parts_.push_back(module.get());
    return module;
  }
  // Null when there is none.
  Module* last() const { return parts_.empty() ? nullptr : parts_.back(); }
  Tensor forward(const Tensor& x) override {
    Tensor y = x;
    for (Module* part : parts_) y = (*part)(y);
    return y;
  }

 private:
  std::vector<Module*> parts_;  // owned as children
};

}  // namespace graft
