// Taps: the output of any layer inside a model, as a forward hook of PyTorch sees it.
//
//   Tap tap(model, "layer2.1.bn2");
//   const Tensor logits = model.forward(x);
//   const Tensor loss = add(cross_entropy(logits, y), penalty(tap.output()));
#pragma once

#include <string>
#include <vector>

#include "layers/models/zoo.h"

namespace graft {

class Tap {
 public:
  // layer: one of layer_names(). The output of a Sequential is that of its last part; a
  // convolution's is before its batch norm, a batch norm's before activation and residual, also
  // where the model fuses them (it stops fusing what is tapped). The model must outlive the tap.
  // Throws with near names when there is no such layer.
  Tap(ImageModel& model, const std::string& layer);
  ~Tap();
  Tap(const Tap&) = delete;
  Tap& operator=(const Tap&) = delete;

  bool has_output() const { return output_.defined(); }
  // What the layer gave when it ran last: on the model's device, in its precision, images NHWC;
  // part of the graph where one was recorded. Throws when it has not run since clear().
  const Tensor& output() const;
  // Lets go of the output, and of the graph behind it.
  void clear() { output_ = Tensor(); }

 private:
  friend class Tappable;
  std::string layer_;
  const Tappable* source_ = nullptr;
  Tensor output_;
};

// Every layer that can be tapped: the stages that are no modules ("stem", "avgpool"), and the
// modules, in the model's order.
std::vector<std::string> layer_names(ImageModel& model);

}  // namespace graft
