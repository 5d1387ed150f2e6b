// What every op asks of its arguments, in one wording.
#pragma once

#include "engine/ops.h"
#include "engine/tensor.h"
#include "kernels/error.h"

namespace graft {

// x is f32 or bf16.
inline void check_real(const char* op, const char* what, const Tensor& x) {
  GRAFT_CHECK(x.defined() && is_real(x.dtype()), op, ": expected ", what,
              " to be an f32 or bf16 tensor, got ", x, "; cast() converts");
}
// x has the type and the device of `like`, which was checked.
inline void check_like(const char* op, const char* what, const Tensor& x, const Tensor& like) {
  check_real(op, what, x);
  GRAFT_CHECK(x.dtype() == like.dtype(), op, ": expected ", what, " to be ", like.dtype(),
              " as the first argument, got ", x, "; cast() converts");
  GRAFT_CHECK(x.device() == like.device(), op, ": ", what, " is on ", x.device(),
              " but the first argument is on ", like.device(), "; move one with to()");
}
// x is a parameter of an op whose first argument is `like`: f32 on the same device.
inline void check_parameter(const char* op, const char* what, const Tensor& x, const Tensor& like) {
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32, op, ": expected ", what,
              " to be an f32 tensor, got ", x, "; cast() converts");
  GRAFT_CHECK(x.device() == like.device(), op, ": ", what, " is on ", x.device(),
              " but the first argument is on ", like.device(), "; move one with to()");
}

// v is an f32 vector with one number a channel, on the device of x; or undefined where that is
// allowed.
inline void check_channels(const char* op, const char* what, const Tensor& v, int64_t channels,
                           Device device) {
  GRAFT_CHECK(v.defined() && v.dtype() == Dtype::f32, op, ": expected an f32 tensor as ", what,
              ", got ", v);
  GRAFT_CHECK(v.shape() == Shape{channels}, op, ": expected ", what, " of shape [", channels,
              "], one number a channel, got ", v);
  GRAFT_CHECK(v.device() == device, op, ": x is on ", device, " but ", what, " is on ", v.device(),
              "; move them together with to()");
}
inline void check_channels_or_none(const char* op, const char* what, const Tensor& v,
                                   int64_t channels, Device device) {
  if (v.defined()) check_channels(op, what, v, channels, device);
}
inline void check_probability(const char* op, float probability) {
  GRAFT_CHECK(probability >= 0 && probability <= 1, op, ": expected a probability in 0..1, got ",
              probability);
}

// Tensors that may be undefined, as kernels take them: null.
inline const float* data_or_null(const Tensor& x) {
  return x.defined() ? x.data<float>() : nullptr;
}
inline float* out_or_null(Tensor& x) { return x.defined() ? x.mutable_data<float>() : nullptr; }
// A fresh vector for a gradient, if it is needed.
inline Tensor grad_vector(bool needed, int64_t size, Device device) {
  return needed ? Tensor({size}, Dtype::f32, device) : Tensor();
}

// op(x) for a bf16 x of an op whose kernels take f32 alone: through an f32 copy, rounded once.
template <class Op>
Tensor through_f32(const Tensor& x, const Op& op) {
  return cast(op(cast(x, Dtype::f32)), Dtype::bf16);
}

}  // namespace graft
