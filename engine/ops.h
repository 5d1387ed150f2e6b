// Every differentiable operation, in one place. Each takes and returns tensors on one device;
// shapes are checked and named in the error. Unless a line says otherwise an op is differentiable
// in every floating-point argument, takes f32 or bf16 and gives the same (it computes in f32 and
// rounds its result), and accepts empty tensors. max and argmax, gather, softmax, the losses and
// attention take f32 alone; pooling, sums, layer_norm, group_norm, noise and its chains take bf16
// through an f32 copy; the others have kernels for both. Arguments of one op have one type, but for
// parameters (weight, bias, running statistics), which are f32 always, with gradients in f32: these
// are the master weights of a model that runs in bf16. Adding one: README.md, "Add an op in five
// steps".
#pragma once

#include <cstdint>
#include <vector>

#include "engine/rng.h"
#include "engine/tensor.h"

namespace graft {

using Axes = std::vector<int64_t>;  // negative axes count from the end; {} means all

// --- pointwise, two tensors with NumPy broadcasting
Tensor add(const Tensor& a, const Tensor& b);
Tensor sub(const Tensor& a, const Tensor& b);
Tensor mul(const Tensor& a, const Tensor& b);
Tensor div(const Tensor& a, const Tensor& b);
Tensor add(const Tensor& a, float b);
Tensor sub(const Tensor& a, float b);
Tensor mul(const Tensor& a, float b);
Tensor div(const Tensor& a, float b);

// --- pointwise, one tensor
Tensor neg(const Tensor& x);
Tensor exp(const Tensor& x);
Tensor log(const Tensor& x);
Tensor sqrt(const Tensor& x);
Tensor pow(const Tensor& x, float exponent);
Tensor abs(const Tensor& x);                           // derivative 0 at 0
Tensor clamp(const Tensor& x, float low, float high);  // derivative 1 on the closed interval
Tensor relu(const Tensor& x);                          // derivative 0 at 0
Tensor relu6(const Tensor& x);                         // derivative 0 at 0 and 6
Tensor leaky_relu(const Tensor& x, float slope = 0.01f);
Tensor gelu(const Tensor& x);       // exact: x/2 (1 + erf(x / sqrt 2))
Tensor gelu_tanh(const Tensor& x);  // the tanh approximation
Tensor silu(const Tensor& x);
Tensor sigmoid(const Tensor& x);
Tensor tanh(const Tensor& x);
Tensor hardswish(const Tensor& x);
Tensor hardsigmoid(const Tensor& x);
// Identity forward, -lambda * gradient backward (Ganin and Lempitsky 2015).
Tensor grad_reverse(const Tensor& x, float lambda = 1.0f);

// --- reductions
Tensor sum(const Tensor& x, const Axes& axes = {}, bool keep_dims = false);
Tensor mean(const Tensor& x, const Axes& axes = {}, bool keep_dims = false);
// Largest value; the gradient goes to its first position. NaN wins. Throws on an empty axis.
Tensor max(const Tensor& x, const Axes& axes = {}, bool keep_dims = false);
// Index (i64) of the first largest value along one axis; not differentiable.
Tensor argmax(const Tensor& x, int64_t axis = -1);

// --- matrix products
// (..., m, k) x (..., k, n) -> (..., m, n); leading dimensions equal, or b of rank 2 shared by all.
// transpose_a: a is (..., k, m); transpose_b: b is (..., n, k).
Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a = false, bool transpose_b = false);
// x (..., in), weight (out, in), bias (out) or undefined -> (..., out)
Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias = Tensor());
// linear(gelu(linear(x, weight1, bias1)), weight2, bias2) with GELU and its derivative taken in the
// products where the backend can: a transformer's MLP where nothing is dropped. weight1 (hidden,
// in), weight2 (out, hidden); either bias may be undefined.
Tensor feed_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                    const Tensor& weight2, const Tensor& bias2, Gelu form = Gelu::exact);
// x (m, n), f32 -> its singular values (min(m, n)), largest first, computed in double. The gradient
// is that of distinct values above 0; among equal ones it is that of one of the possible bases,
// which a function that treats them alike does not notice, and at 0 it may be 0. Not finite in, NaN
// out.
Tensor singular_values(const Tensor& x);

// --- shape
Tensor reshape(const Tensor& x, Shape shape);  // a view; one dimension may be -1
Tensor permute(const Tensor& x, const Axes& order);
Tensor concat(const std::vector<Tensor>& parts, int64_t axis = 0);
Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t count);
// out[i][j] = x[i][index[i][j]] along `axis`, as torch.gather; index is i64 with x's rank.
Tensor gather(const Tensor& x, const Tensor& index, int64_t axis);
// weight (rows, width), ids i64 (...) -> (..., width). Throws on an id outside 0..rows-1.
Tensor embedding(const Tensor& weight, const Tensor& ids);

// --- convolution and pooling, NHWC
struct Padding {
  int64_t top = 0, bottom = 0, left = 0, right = 0;
  static Padding symmetric(int64_t height, int64_t width) { return {height, height, width, width}; }
};
struct Conv2dOptions {
  int64_t stride_height = 1, stride_width = 1;
  int64_t dilation_height = 1, dilation_width = 1;
  Padding padding;
  int64_t groups = 1;
};
// TensorFlow's "SAME": output = ceil(input / stride), the odd pixel goes to the bottom and right.
Padding same_padding(int64_t in_height, int64_t in_width, int64_t kernel_height,
                     int64_t kernel_width, int64_t stride_height, int64_t stride_width,
                     int64_t dilation_height = 1, int64_t dilation_width = 1);
// x (n, h, w, c), weight (out, kh, kw, c / groups), bias (out) or undefined -> (n, oh, ow, out)
Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias = Tensor(),
              const Conv2dOptions& options = {});
// conv2d with the bias, an activation and a residual (shape of the result, or undefined) fused into
// one kernel: act(conv + bias + residual). Inference only: throws when a gradient is wanted.
Tensor conv2d_fused(const Tensor& x, const Tensor& weight, const Tensor& bias,
                    const Conv2dOptions& options, Activation activation,
                    const Tensor& residual = Tensor());
struct Pool2dOptions {
  int64_t kernel_height = 2, kernel_width = 2;
  int64_t stride_height = 2, stride_width = 2;
  Padding padding;
  bool count_include_pad = true;  // average pooling only
};
Tensor max_pool2d(const Tensor& x, const Pool2dOptions& options);  // gradient to the first maximum
Tensor avg_pool2d(const Tensor& x, const Pool2dOptions& options);
// (n, h, w, c) -> (n, out_height, out_width, c), PyTorch's window bounds.
Tensor adaptive_avg_pool2d(const Tensor& x, int64_t out_height, int64_t out_width);

// --- normalisation
struct BatchNormOptions {
  bool training = true;  // batch statistics, and moves the running ones; else uses the running ones
  float momentum = 0.1f;  // running = (1 - momentum) running + momentum batch
  float epsilon = 1e-5f;
  Activation activation = Activation::none;  // applied to the result, fused
};
// x (..., c); weight, bias, running_mean, running_var (c). Result: act(norm(x) + residual), where
// residual has x's shape or is undefined. The running variance takes the unbiased batch variance.
// Running statistics are changed in place when training and are not differentiable.
Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                  Tensor& running_var, const BatchNormOptions& options,
                  const Tensor& residual = Tensor());
// Over the last dimension; weight and bias (c) or undefined.
Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon = 1e-5f);
// x (n, ..., c), statistics over everything but n within each of `groups` channel groups.
Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  float epsilon = 1e-5f);

// --- noise
// Zeroes elements with the given probability and scales the rest by 1 / (1 - probability).
Tensor dropout(const Tensor& x, float probability, bool training, RngKey key);
// Zeroes whole samples (dimension 0) of a residual branch; rescaled likewise.
Tensor drop_path(const Tensor& x, float probability, bool training, RngKey key);

// --- chains of a transformer block, one pass each way; what is dropped is dropout()'s of the key
// dropout(gelu(x + bias)). x (..., c); bias (c) or undefined.
Tensor bias_gelu_dropout(const Tensor& x, const Tensor& bias, float probability, bool training,
                         RngKey key);
// layer_norm(residual + dropout(x + bias)). x, residual (..., c); bias, and the norm's weight and
// shift (c) or undefined.
Tensor dropout_add_layer_norm(const Tensor& x, const Tensor& bias, const Tensor& residual,
                              const Tensor& weight, const Tensor& shift, float probability,
                              bool training, RngKey key, float epsilon = 1e-5f);

// --- softmax and losses
Tensor softmax(const Tensor& x, int64_t axis = -1);
Tensor log_softmax(const Tensor& x, int64_t axis = -1);
enum class Reduction : uint8_t { none, mean, sum };
struct CrossEntropyOptions {
  Tensor class_weights;  // (classes), or undefined; not differentiable
  float label_smoothing = 0.0f;
  int64_t ignore_index = -100;
  Reduction reduction = Reduction::mean;  // mean: divided by the sum of the targets' weights
};
// logits (n, classes); target i64 (n), or f32 (n, classes) of class probabilities. As PyTorch's.
// Throws when a label that is on the host, with the logits or not, is outside the classes; on
// another device labels are not checked and such a row's loss is NaN. Not differentiable in the
// target.
Tensor cross_entropy(const Tensor& logits, const Tensor& target,
                     const CrossEntropyOptions& options = {});
// Stable for large logits; target of the same shape in [0, 1], not differentiable.
Tensor bce_with_logits(const Tensor& logits, const Tensor& target,
                       Reduction reduction = Reduction::mean);
Tensor mse_loss(const Tensor& x, const Tensor& target, Reduction reduction = Reduction::mean);
Tensor l1_loss(const Tensor& x, const Tensor& target, Reduction reduction = Reduction::mean);
Tensor huber_loss(const Tensor& x, const Tensor& target, float delta = 1.0f,
                  Reduction reduction = Reduction::mean);

// --- attention
// q (b, heads, n, d), k and v (b, heads, m, d), mask added to the scores: broadcastable to (b,
// heads, n, m), or undefined. scale 0 means 1 / sqrt(d).
Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& mask = Tensor(), float scale = 0.0f);
// The same for sequences of different lengths without padding: q (tokens, heads, d), k and v
// (tokens, heads, d) hold them one after the other. Sequence i is the tokens offsets[i] ..
// offsets[i + 1] - 1; offsets (sequences + 1) are i64 or i32 and ascend from 0 to the number of
// tokens (checked on the CPU; on a CUDA device that would make the host wait). A query of a
// sequence without keys gets 0. Rows of at most 256 elements.
Tensor scaled_dot_product_attention_varlen(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& query_offsets, const Tensor& key_offsets,
                                           float scale = 0.0f);

// --- element types
// Between any two element types, round to nearest even; x itself when it has the type. The gradient
// passes between f32 and bf16, and ends at the others.
Tensor cast(const Tensor& x, Dtype dtype);

}  // namespace graft
