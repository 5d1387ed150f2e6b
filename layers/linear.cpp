#include "layers/linear.h"

#include "layers/init.h"

namespace graft {

Linear::Linear(int64_t in_features, int64_t out_features, std::optional<RngKey> key) {
  GRAFT_CHECK(in_features > 0 && out_features > 0, "Linear: expected positive sizes, got ",
              in_features, " -> ", out_features);
  weight = Tensor({out_features, in_features});
  bias = Tensor({out_features});
  parameter("weight", weight);
  parameter("bias", bias);
  if (key) initialise_as_pytorch(*key);
}

Tensor Linear::forward(const Tensor& x) {
  const Tensor y = linear(x, weight, bias);
  const Adapter* adapter = active_adapter();
  if (adapter == nullptr) return y;
  return add(y, linear(mul(linear(dropped(x), adapter->a), adapter->scale), adapter->b));
}

void Linear::initialise_as_pytorch(RngKey key) {
  default_uniform(weight, fan_in_of(weight), derive(key, 0));
  default_uniform(bias, fan_in_of(weight), derive(key, 1));
}

void Linear::resize(int64_t out_features) {
  GRAFT_CHECK(out_features > 0, "Linear: expected a positive size, got ", out_features);
  const Device device = weight.device();
  drop_adapter();
  weight = Tensor({out_features, weight.dim(1)}, Dtype::f32, device).set_requires_grad();
  bias = Tensor({out_features}, Dtype::f32, device).set_requires_grad();
}

}  // namespace graft
