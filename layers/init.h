// Initial weights, with PyTorch's distributions (torch.nn.init). `weight` is (out, ...): the fans
// are counted over all other dimensions, as PyTorch counts them for OIHW filters and linear layers.
#pragma once

#include "engine/rng.h"
#include "engine/tensor.h"

namespace graft {

// An independent key for part `index` of whatever `key` stands for.
RngKey derive(RngKey key, uint64_t index);

// normal(0, 2 / fan_out): He et al. 2015 with ReLU, mode fan_out = out * kernel area.
void kaiming_normal_fan_out(Tensor& weight, RngKey key);
// uniform(+-1 / sqrt(fan_in)): what nn.Conv2d and nn.Linear do by default (kaiming_uniform, a =
// sqrt 5).
void default_uniform(Tensor& weight, int64_t fan_in, RngKey key);
// uniform(+-sqrt(6 / (fan_in + fan_out))): Glorot and Bengio 2010.
void xavier_uniform(Tensor& weight, int64_t fan_in, int64_t fan_out, RngKey key);
int64_t fan_in_of(const Tensor& weight);

}  // namespace graft
