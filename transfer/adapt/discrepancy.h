// How unlike two batches are, as losses: what DAN, JAN, Deep CORAL, AFN, BSP, MCC, MCD and MDD
// minimise or maximise, apart from the methods so that each is tested against its formula. All
// tensors are f32 on one device; results have one element and are part of the graph.
#pragma once

#include <vector>

#include "engine/ops.h"

namespace graft {

// The Gaussian kernels of one layer: k(x, y) = sum over scales of exp(-|x - y|^2 / (2 s)) with s =
// scale times the mean squared distance between two rows of both batches, itself a constant, or,
// where `fixed` is positive, with s = fixed.
struct KernelScales {
  std::vector<float> scales;
  float fixed = 0;
};
// 2^-k ... 2^k: `count` of them (odd), around 1.
KernelScales kernel_family(int64_t count);

// What one layer makes of both domains.
struct LayerPair {
  Tensor source, target;  // (n, d) and (m, d)
  KernelScales kernels;
};

// The unbiased estimate of the squared maximum mean discrepancy (A. Gretton et al., JMLR 13, 2012)
// for the product of the layers' kernels: it may be negative. Every batch has two rows at least.
Tensor mmd(const std::vector<LayerPair>& layers);

// |C_s - C_t|_F^2 / (4 d^2) for the covariances of (n, d) and (m, d), with n - 1 and m - 1.
Tensor coral(const Tensor& source, const Tensor& target);

// mean over rows of (|x| - (|x| as a constant + step))^2: norms that grow by `step`.
Tensor norm_step(const Tensor& x, float step);

// Minimum class confusion of logits (n, classes) at a temperature: rows count by their certainty, a
// constant.
Tensor class_confusion(const Tensor& logits, float temperature);

// mean |softmax(a) - softmax(b)| over rows and classes.
Tensor classifier_discrepancy(const Tensor& a, const Tensor& b);

// -mean log(1 - p) of the class that `labels` names in each row, p = softmax(logits).
Tensor not_that_class(const Tensor& logits, const Tensor& labels);

}  // namespace graft
