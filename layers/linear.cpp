#include "layers/linear.h"

#include "layers/init.h"

namespace graft {

Linear::Linear(int64_t in_features, int64_t out_features, std::optional<RngKey> key)
    : weight({out_features, in_features}), bias({out_features}) {
  GRAFT_CHECK(in_features > 0 && out_features > 0, "Linear: expected positive sizes, got ",
              in_features, " -> ", out_features);
  parameter("weight", weight);
  parameter("bias", bias);
  if (key) initialise_as_pytorch(*key);
}

void Linear::initialise_as_pytorch(RngKey key) {
  default_uniform(weight, fan_in_of(weight), derive(key, 0));
  default_uniform(bias, fan_in_of(weight), derive(key, 1));
}

void Linear::resize(int64_t out_features) {
  GRAFT_CHECK(out_features > 0, "Linear: expected a positive size, got ", out_features);
  const Device device = weight.device();
  weight = Tensor({out_features, weight.dim(1)}, Dtype::f32, device).set_requires_grad();
  bias = Tensor({out_features}, Dtype::f32, device).set_requires_grad();
}

}  // namespace graft
