#include "layers/init.h"

#include <cmath>

#include "kernels/philox.h"

namespace graft {

RngKey derive(RngKey key, uint64_t index) {
  const Philox4 words = philox(key, index);
  return {(uint64_t{words.v[0]} << 32) | words.v[1], key.step, words.v[2]};
}

int64_t fan_in_of(const Tensor& weight) {
  return weight.dim(0) == 0 ? 0 : weight.numel() / weight.dim(0);
}

void kaiming_normal_fan_out(Tensor& weight, RngKey key) {
  // Memory is OHWI, so the last dimension is the input's; the rest of fan_out is out * height *
  // width.
  const int64_t fan_out = weight.numel() / weight.dim(-1);
  const float stddev = std::sqrt(2.0f / static_cast<float>(fan_out));
  weight.copy_from(normal(weight.shape(), 0.0f, stddev, key));
}

void default_uniform(Tensor& weight, int64_t fan_in, RngKey key) {
  const float bound = 1.0f / std::sqrt(static_cast<float>(fan_in));
  weight.copy_from(uniform(weight.shape(), -bound, bound, key));
}

void xavier_uniform(Tensor& weight, int64_t fan_in, int64_t fan_out, RngKey key) {
  const float bound = std::sqrt(6.0f / static_cast<float>(fan_in + fan_out));
  weight.copy_from(uniform(weight.shape(), -bound, bound, key));
}

}  // namespace graft
