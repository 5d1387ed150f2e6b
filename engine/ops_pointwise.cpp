// Pointwise ops: formulas in kernels/functors.h.
#include "engine/autograd.h"
#include "engine/broadcast.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

Tensor unary(const char* name, Unary op, const Tensor& x, UnaryParams params = {}) {
  const RunningOp running(name);
  check_real(name, "x", x);
  Tensor y = empty_like(x);
  GRAFT_KERNEL(unary, x.device())
  (op, params, y.mutable_reals(), x.reals(), x.numel());
  if (!any_requires_grad({&x})) return y;
  // Only what the derivative reads is kept.
  const Reads reads = reads_of(op);
  const Saved kept = reads == Reads::none ? Saved() : Saved(reads == Reads::x ? x : y);
  return record(name, {x}, y, [=](const Tensor& g, const Needs&) -> Grads {
    const ConstReals values = kept.get(name).reals();
    Tensor dx = empty_like(g);
    GRAFT_KERNEL(unary_grad, g.device())
    (op, params, dx.mutable_reals(), reads == Reads::x ? values : ConstReals(),
     reads == Reads::y ? values : ConstReals(), g.reals(), g.numel());
    return {dx};
  });
}

// The gradients of a product or a quotient. Sums and differences need no values.
Grads product_grads(const char* name, Binary op, const Tensor& a, const Tensor& b,
                    const Shape& a_shape, const Shape& b_shape, const Tensor& g,
                    const Needs& needs) {
  const BroadcastShape plan = broadcast_plan(name, g.shape(), a_shape, b_shape);
  Tensor da = needs[0] ? empty_like(g) : Tensor(), db = needs[1] ? empty_like(g) : Tensor();
  // An operand that was not kept is not read either; any readable address of its size will do.
  const Tensor& a_or_b = a.defined() ? a : b;
  const Tensor& b_or_a = b.defined() ? b : a;
  BroadcastShape used = plan;
  for (int d = 0; d < plan.rank; ++d) {
    if (!a.defined()) used.a_strides[d] = plan.b_strides[d];
    if (!b.defined()) used.b_strides[d] = plan.a_strides[d];
  }
  GRAFT_KERNEL(binary_grad, g.device())
  (op, da.mutable_reals(), db.mutable_reals(), a_or_b.reals(), b_or_a.reals(), g.reals(), used);
  return {needs[0] ? sum_to(da, a_shape) : Tensor(), needs[1] ? sum_to(db, b_shape) : Tensor()};
}

Tensor binary(const char* name, Binary op, const Tensor& a, const Tensor& b) {
  const RunningOp running(name);
  check_real(name, "a", a);
  check_like(name, "b", b, a);
  Tensor y(broadcast_shape(name, a.shape(), b.shape()), a.dtype(), a.device());
  const Reals out = y.mutable_reals();
  if (a.shape() == b.shape()) {
    GRAFT_KERNEL(binary, a.device())(op, out, a.reals(), b.reals(), y.numel());
  } else {
    GRAFT_KERNEL(binary_broadcast, a.device())
    (op, out, a.reals(), b.reals(), broadcast_plan(name, y.shape(), a.shape(), b.shape()));
  }
  if (!any_requires_grad({&a, &b})) return y;
  if (op == Binary::add || op == Binary::sub) {
    return record(name, {a, b}, y,
                  [=, a_shape = a.shape(), b_shape = b.shape()](const Tensor& g,
                                                                const Needs& needs) -> Grads {
                    Grads grads{needs[0] ? sum_to(g, a_shape) : Tensor(), Tensor()};
                    if (needs[1]) grads[1] = sum_to(g, b_shape);
                    if (needs[1] && op == Binary::sub) grads[1] = neg(grads[1]);
                    return grads;
                  });
  }
  const bool reads_a = b.requires_grad();
  const bool reads_b = a.requires_grad() || op == Binary::div;
  return record(name, {a, b}, y,
                [=, a_shape = a.shape(), b_shape = b.shape(), a = reads_a ? Saved(a) : Saved(),
                 b = reads_b ? Saved(b) : Saved()](const Tensor& g, const Needs& needs) -> Grads {
                  return product_grads(name, op, a.get(name), b.get(name), a_shape, b_shape, g,
                                       needs);
                });
}

}  // namespace

Tensor add(const Tensor& a, const Tensor& b) { return binary("add", Binary::add, a, b); }
Tensor sub(const Tensor& a, const Tensor& b) { return binary("sub", Binary::sub, a, b); }
Tensor mul(const Tensor& a, const Tensor& b) { return binary("mul", Binary::mul, a, b); }
Tensor div(const Tensor& a, const Tensor& b) { return binary("div", Binary::div, a, b); }
Tensor add(const Tensor& a, float b) { return unary("add", Unary::shift, a, {b, 0}); }
Tensor sub(const Tensor& a, float b) { return unary("sub", Unary::shift, a, {-b, 0}); }
Tensor mul(const Tensor& a, float b) { return unary("mul", Unary::scale, a, {b, 0}); }
Tensor div(const Tensor& a, float b) { return unary("div", Unary::divide, a, {b, 0}); }

Tensor neg(const Tensor& x) { return unary("neg", Unary::neg, x); }
Tensor exp(const Tensor& x) { return unary("exp", Unary::exp, x); }
Tensor log(const Tensor& x) { return unary("log", Unary::log, x); }
Tensor sqrt(const Tensor& x) { return unary("sqrt", Unary::sqrt, x); }
Tensor pow(const Tensor& x, float exponent) { return unary("pow", Unary::pow, x, {exponent, 0}); }
Tensor abs(const Tensor& x) { return unary("abs", Unary::abs, x); }
Tensor clamp(const Tensor& x, float low, float high) {
  GRAFT_CHECK(low <= high, "clamp: expected low <= high, got ", low, " and ", high);
  return unary("clamp", Unary::clamp, x, {low, high});
}
Tensor relu(const Tensor& x) { return unary("relu", Unary::relu, x); }
Tensor relu6(const Tensor& x) { return unary("relu6", Unary::relu6, x); }
Tensor leaky_relu(const Tensor& x, float slope) {
  return unary("leaky_relu", Unary::leaky_relu, x, {slope, 0});
}
Tensor gelu(const Tensor& x) { return unary("gelu", Unary::gelu, x); }
Tensor gelu_tanh(const Tensor& x) { return unary("gelu_tanh", Unary::gelu_tanh, x); }
Tensor silu(const Tensor& x) { return unary("silu", Unary::silu, x); }
Tensor sigmoid(const Tensor& x) { return unary("sigmoid", Unary::sigmoid, x); }
Tensor tanh(const Tensor& x) { return unary("tanh", Unary::tanh, x); }
Tensor hardswish(const Tensor& x) { return unary("hardswish", Unary::hardswish, x); }
Tensor hardsigmoid(const Tensor& x) { return unary("hardsigmoid", Unary::hardsigmoid, x); }

Tensor grad_reverse(const Tensor& x, float lambda) {
  check_real("grad_reverse", "x", x);
  return record("grad_reverse", {x}, view_as(x, x.shape()),
                [lambda](const Tensor& g, const Needs&) -> Grads {
                  Tensor dx = empty_like(g);
                  GRAFT_KERNEL(unary_grad, g.device())
                  (Unary::grad_reverse, {lambda, 0}, dx.mutable_reals(), nullptr, nullptr,
                   g.reals(), g.numel());
                  return {dx};
                });
}

}  // namespace graft
