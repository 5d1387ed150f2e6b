// Fully connected layer.
#pragma once

#include <optional>

#include "layers/adapted.h"

namespace graft {

// x (..., in) -> (..., out): x weight^T + bias.
class Linear : public AdaptedLayer {
 public:
  // Without a key the weights are left unset, for a caller who fills them; with one they are drawn
  // as nn.Linear draws them.
  Linear(int64_t in_features, int64_t out_features, std::optional<RngKey> key = std::nullopt);

  Tensor forward(const Tensor& x) override;
  void initialise_as_pytorch(RngKey key);
  // Another number of outputs, on the same device; the new weights are unset. Drops an adapter.
  void resize(int64_t out_features);
  // weight is (out, in), bias (out)
};

}  // namespace graft
