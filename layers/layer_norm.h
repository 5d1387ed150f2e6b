// Layer normalisation as a layer.
#pragma once

#include "engine/rng.h"
#include "layers/module.h"

namespace graft {

// x (..., width), over the last dimension; names are nn.LayerNorm's.
class LayerNorm : public Module {
 public:
  explicit LayerNorm(int64_t width, float epsilon = 1e-5f)
      : weight(Tensor::full({width}, 1.0f)), bias(Tensor::zeros({width})), epsilon_(epsilon) {
    parameter("weight", weight);
    parameter("bias", bias);
  }

  Tensor forward(const Tensor& x) override { return layer_norm(x, weight, bias, epsilon_); }
  // norm(residual + dropout(x)), one kernel, and seen by taps. Drops with this probability whether
  // the layer trains or not: the branch is not its own.
  Tensor of_sum(const Tensor& residual, const Tensor& x, float probability, RngKey key) {
    return shown(dropout_add_layer_norm(x, Tensor(), residual, weight, bias, probability, true, key,
                                        epsilon_));
  }

  Tensor weight, bias;  // (width)

 private:
  float epsilon_;
};

}  // namespace graft
