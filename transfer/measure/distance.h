// How far apart two domains lie, from features of their images.
#pragma once

#include "engine/tensor.h"
#include "kernels/types.h"

namespace graft {

// The proxy A-distance (Ben-David et al. 2007): 2 (1 - 2 e), where e is the error of a linear
// classifier (logistic regression, the best of several penalties) that tells the domains apart, on
// held-out halves of both. 0: they look alike; 2: a line separates them. a (n, d), b (m, d), f32,
// at least 4 rows each. Rows beyond `most` of a domain are left out (a random choice).
double proxy_a_distance(const Tensor& a, const Tensor& b, RngKey key, int64_t most = 2000);

// The squared maximum mean discrepancy, unbiased (Gretton et al. 2012), of a sum of Gaussian
// kernels exp(-|x - y|^2 / (2 s^2)) with s^2 a quarter, half, one, two and four times the median
// squared distance. About 0 (it may be below) for equal domains. At least 2 rows each.
double mmd_squared(const Tensor& a, const Tensor& b);
// The probability of a value as large if the domains were equal, by `permutations` reshufflings.
double mmd_p_value(const Tensor& a, const Tensor& b, RngKey key, int64_t permutations = 200);

// |Cov(a) - Cov(b)|_F^2 / (4 d^2) (Sun and Saenko 2016). At least 2 rows each.
double coral_distance(const Tensor& a, const Tensor& b);

}  // namespace graft
