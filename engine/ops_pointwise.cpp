// Pointwise ops: formulas in kernels/functors.h.
#include "engine/autograd.h"
#include "engine/dispatch.h"
#include "engine/ops.h"

namespace graft {
namespace {

void check_float(const char* op, const Tensor& x) {
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32, op, ": expected an f32 tensor, got ", x);
}

Tensor unary(const char* name, Unary op, const Tensor& x, UnaryParams params = {}) {
  check_float(name, x);
  Tensor y = empty_like(x);
  GRAFT_KERNEL(unary, x.device(), name)
  (op, params, y.mutable_data<float>(), x.data<float>(), x.numel());
  if (!any_requires_grad({&x})) return y;
  return record(name, {x}, y,
                [=, x = Saved(x), y = Saved(y)](const Tensor& g, const Needs&) -> Grads {
                  Tensor dx = empty_like(g);
                  GRAFT_KERNEL(unary_grad, g.device(), name)
                  (op, params, dx.mutable_data<float>(), x.get(name).data<float>(),
                   y.get(name).data<float>(), g.data<float>(), g.numel());
                  return {dx};
                });
}

}  // namespace

Tensor grad_reverse(const Tensor& x, float lambda) {
  check_float("grad_reverse", x);
  return record("grad_reverse", {x}, view_as(x, x.shape()),
                [lambda](const Tensor& g, const Needs&) -> Grads { return {mul(g, -lambda)}; });
}

}  // namespace graft
