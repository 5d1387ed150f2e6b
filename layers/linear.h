// Fully connected layer.
#pragma once

#include <optional>

#include "layers/module.h"

namespace graft {

// x (..., in) -> (..., out): x weight^T + bias.
class Linear : public Module {
 public:
  // Without a key the weights are left unset, for a caller who fills them; with one they are drawn
  // as nn.Linear draws them.
  Linear(int64_t in_features, int64_t out_features, std::optional<RngKey> key = std::nullopt);

  Tensor forward(const Tensor& x) override { return linear(x, weight, bias); }
  void initialise_as_pytorch(RngKey key);
  // Another number of outputs, on the same device; the new weights are unset.
  void resize(int64_t out_features);

  Tensor weight;  // (out, in)
  Tensor bias;    // (out)
};

}  // namespace graft
