// Matrix products. In bf16 the sums are f32 and a result is rounded once; a weight and its gradient
// are f32, the weight is cast where it is used (and kept cast where it is frozen).
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/derived.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_matrix(const char* op, const char* what, const Tensor& x, int64_t least_rank) {
  check_real(op, what, x);
  GRAFT_CHECK(x.rank() >= least_rank, op, ": expected ", what, " of rank ", least_rank,
              " or more, got ", x);
}

// What a product reads and writes besides its factors and its result (MatmulArrays).
struct Others {
  Tensor bias, pre, sums;
};

// result = a b, and what the shape says beyond that. With packed_b the packed form is kept beside
// b.
Tensor product(const MatmulShape& s, const Tensor& a, const Tensor& b, Shape result_shape,
               Others others = {}) {
  if (s.k == 0 || numel_of(result_shape) == 0) {
    if (others.sums.defined()) others.sums.fill(0);
    return Tensor::zeros(std::move(result_shape), s.y_dtype, a.device());
  }
  Tensor y(std::move(result_shape), s.y_dtype, a.device());
  const LibraryPlan plan = GRAFT_KERNEL(matmul_plan, a.device())(s);
  const LibraryWeight second = library_weight(b, plan, s.packed_b);
  const Storage scratch(plan.scratch_bytes, a.device());
  GRAFT_KERNEL(matmul, a.device())
  (plan, y.mutable_reals(), a.reals(), second.data,
   {.bias = data_or_null(others.bias),
    .pre = others.pre.defined() ? others.pre.raw() : nullptr,
    .sums = out_or_null(others.sums)},
   scratch.data());
  return y;
}

// A linear layer: x (rows, in), weight (out, in).
struct LinearSizes {
  int64_t rows, in, out;
  bool kept;  // the weight's packed form: one that is being trained changes before it is used again
};

LinearSizes check_linear(const char* op, const Tensor& x, const char* weight_name,
                         const Tensor& weight, const char* bias_name, const Tensor& bias) {
  GRAFT_CHECK(weight.defined() && weight.dtype() == Dtype::f32 && weight.rank() == 2, op,
              ": expected an f32 ", weight_name, " (out, in), got ", weight);
  check_parameter(op, weight_name, weight, x);
  const int64_t in = weight.dim(1), out = weight.dim(0);
  if (bias.defined()) {
    GRAFT_CHECK(bias.dtype() == Dtype::f32 && bias.shape() == Shape{out}, op, ": expected an f32 ",
                bias_name, " [", out, "], got ", bias);
    check_parameter(op, bias_name, bias, x);
  }
  return {.rows = 0, .in = in, .out = out, .kept = !(grad_enabled() && weight.requires_grad())};
}

Shape with_last(Shape shape, int64_t size) {
  shape.back() = size;
  return shape;
}

// The layer's product and its gradient to x, of (..., in) and (..., out).
MatmulShape forward_shape(const LinearSizes& s, Dtype dtype, bool bias) {
  return {.batch = 1,
          .m = s.rows,
          .n = s.out,
          .k = s.in,
          .transpose_b = true,
          .bias = bias,
          .packed_b = s.kept,
          .weight_b = true,
          .dtype = dtype,
          .y_dtype = dtype};
}
MatmulShape backward_shape(const LinearSizes& s, Dtype dtype) {
  return {.batch = 1,
          .m = s.rows,
          .n = s.in,
          .k = s.out,
          .packed_b = s.kept,
          .weight_b = true,
          .dtype = dtype,
          .y_dtype = dtype};
}

// The gradients of weight and bias, inputs `at` and at + 1, where they are needed: f32 sums over
// the rows of g (..., out) and x (..., in).
void parameter_gradients(const char* op, const LinearSizes& s, const Tensor& g, const Saved& x,
                         const Needs& needs, size_t at, Grads& grads) {
  if (needs[at]) {
    grads[at + 1] = grad_vector(needs[at + 1], s.out, g.device());
    grads[at] = product({.batch = 1,
                         .m = s.out,
                         .n = s.in,
                         .k = s.rows,
                         .transpose_a = true,
                         .sums_a = needs[at + 1],
                         .dtype = g.dtype()},
                        g, x.get(op), {s.out, s.in}, {.sums = grads[at + 1]});
  } else if (needs[at + 1]) {
    grads[at + 1] = sum(cast(view_as(g, {s.rows, s.out}), Dtype::f32), {0});
  }
}

}  // namespace

Tensor matmul(const Tensor& a, const Tensor& b, bool transpose_a, bool transpose_b) {
  const RunningOp running("matmul");
  check_matrix("matmul", "a", a, 2);
  check_matrix("matmul", "b", b, 2);
  check_like("matmul", "b", b, a);
  const Shape leading(a.shape().begin(), a.shape().end() - 2);
  const Shape leading_b(b.shape().begin(), b.shape().end() - 2);
  GRAFT_CHECK(leading == leading_b || b.rank() == 2,
              "matmul: expected equal leading dimensions or b of rank 2, got a ", a, " and b ", b);
  const int64_t m = a.dim(transpose_a ? -1 : -2), k = a.dim(transpose_a ? -2 : -1);
  const int64_t n = b.dim(transpose_b ? -2 : -1), k_b = b.dim(transpose_b ? -1 : -2);
  GRAFT_CHECK(k == k_b, "matmul: inner sizes differ: a ", a, transpose_a ? " transposed" : "",
              " has ", k, ", b ", b, transpose_b ? " transposed" : "", " has ", k_b);
  Shape result = leading;
  result.insert(result.end(), {m, n});

  const bool shared = b.rank() == 2 && a.rank() > 2;
  // The rows of all the matrices of a against one b: a single product.
  const bool flat = shared && !transpose_a;
  const int64_t matrices = numel_of(leading);
  const int64_t batch = flat ? 1 : matrices, rows = flat ? matrices * m : m;
  Tensor y = product({.batch = batch,
                      .m = rows,
                      .n = n,
                      .k = k,
                      .transpose_a = transpose_a,
                      .transpose_b = transpose_b,
                      .shared_b = shared,
                      .dtype = a.dtype(),
                      .y_dtype = a.dtype()},
                     a, b, std::move(result));
  if (!any_requires_grad({&a, &b})) return y;
  return record(
      "matmul", {a, b}, y,
      [=, shape_a = a.shape(), shape_b = b.shape(), a = Saved(b.requires_grad() ? a : Tensor()),
       b = Saved(a.requires_grad() ? b : Tensor())](const Tensor& g, const Needs& needs) -> Grads {
        Grads grads(2);
        if (needs[0]) {
          // da = g b^T, or its transpose b g^T.
          const Tensor& second = b.get("matmul");
          grads[0] = transpose_a ? product({.batch = batch,
                                            .m = k,
                                            .n = rows,
                                            .k = n,
                                            .transpose_a = transpose_b,
                                            .transpose_b = true,
                                            .shared_a = shared,
                                            .dtype = g.dtype(),
                                            .y_dtype = g.dtype()},
                                           second, g, shape_a)
                                 : product({.batch = batch,
                                            .m = rows,
                                            .n = k,
                                            .k = n,
                                            .transpose_b = !transpose_b,
                                            .shared_b = shared,
                                            .dtype = g.dtype(),
                                            .y_dtype = g.dtype()},
                                           g, second, shape_a);
        }
        if (needs[1]) {
          // db = a^T g, or its transpose g^T a; summed over the batch where b is shared.
          const Tensor& first = a.get("matmul");
          const bool sums = shared && !flat;
          Shape shape = shape_b;
          if (sums) shape.insert(shape.begin(), batch);
          Tensor db = transpose_b ? product({.batch = batch,
                                             .m = n,
                                             .n = k,
                                             .k = rows,
                                             .transpose_a = true,
                                             .transpose_b = transpose_a,
                                             .dtype = g.dtype(),
                                             .y_dtype = g.dtype()},
                                            g, first, shape)
                                  : product({.batch = batch,
                                             .m = k,
                                             .n = n,
                                             .k = rows,
                                             .transpose_a = !transpose_a,
                                             .dtype = g.dtype(),
                                             .y_dtype = g.dtype()},
                                            first, g, shape);
          grads[1] = sums ? sum(db, {0}) : db;
        }
        return grads;
      });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  constexpr const char* kOp = "linear";
  const RunningOp running(kOp);
  check_matrix(kOp, "x", x, 1);
  LinearSizes s = check_linear(kOp, x, "weight", weight, "bias", bias);
  GRAFT_CHECK(s.in > 0 && x.dim(-1) == s.in, "linear: expected x (..., ", s.in, ") for weight ",
              weight, ", got ", x);
  s.rows = x.numel() / s.in;
  Tensor y = product(forward_shape(s, x.dtype(), bias.defined()), x, weight,
                     with_last(x.shape(), s.out), {.bias = bias});
  if (!any_requires_grad({&x, &weight, &bias})) return y;
  return record(kOp, {x, weight, bias}, y,
                [=, shape = x.shape(), x = Saved(weight.requires_grad() ? x : Tensor()),
                 weight = Saved(x.requires_grad() ? weight : Tensor())](
                    const Tensor& g, const Needs& needs) -> Grads {
                  Grads grads(3);
                  if (needs[0]) {
                    grads[0] = product(backward_shape(s, g.dtype()), g, weight.get(kOp), shape);
                  }
                  parameter_gradients(kOp, s, g, x, needs, 1, grads);
                  return grads;
                });
}

Tensor feed_forward(const Tensor& x, const Tensor& weight1, const Tensor& bias1,
                    const Tensor& weight2, const Tensor& bias2, Gelu form) {
  constexpr const char* kOp = "feed_forward";
  const RunningOp running(kOp);
  check_matrix(kOp, "x", x, 1);
  LinearSizes first = check_linear(kOp, x, "weight1", weight1, "bias1", bias1);
  LinearSizes second = check_linear(kOp, x, "weight2", weight2, "bias2", bias2);
  GRAFT_CHECK(first.in > 0 && x.dim(-1) == first.in, kOp, ": expected x (..., ", first.in,
              ") for weight1 ", weight1, ", got ", x);
  GRAFT_CHECK(second.in > 0 && second.in == first.out, kOp, ": expected weight2 (out, ", first.out,
              ") behind weight1 ", weight1, ", got ", weight2);
  first.rows = second.rows = x.numel() / first.in;
  const Shape inner = with_last(x.shape(), first.out);

  const bool upstream = any_requires_grad({&x, &weight1, &bias1});
  const Tensor pre = upstream ? Tensor(inner, x.dtype(), x.device()) : Tensor();
  MatmulShape forward = forward_shape(first, x.dtype(), bias1.defined());
  forward.end = MatmulEnd::gelu;
  forward.gelu = form;
  const Tensor hidden = product(forward, x, weight1, inner, {.bias = bias1, .pre = pre});
  Tensor y = product(forward_shape(second, x.dtype(), bias2.defined()), hidden, weight2,
                     with_last(x.shape(), second.out), {.bias = bias2});
  if (!upstream && !any_requires_grad({&weight2, &bias2})) return y;
  return record(
      kOp, {x, weight1, bias1, weight2, bias2}, y,
      [=, shape = x.shape(), x = Saved(weight1.requires_grad() ? x : Tensor()),
       weight1 = Saved(x.requires_grad() ? weight1 : Tensor()),
       weight2 = Saved(upstream ? weight2 : Tensor()), pre = Saved(pre),
       hidden = Saved(weight2.requires_grad() ? hidden : Tensor())](const Tensor& g,
                                                                    const Needs& needs) -> Grads {
        Grads grads(5);
        parameter_gradients(kOp, second, g, hidden, needs, 3, grads);
        if (!needs[0] && !needs[1] && !needs[2]) return grads;
        MatmulShape backward = backward_shape(second, g.dtype());
        backward.end = MatmulEnd::gelu_grad;
        backward.gelu = form;
        const Tensor dpre = product(backward, g, weight2.get(kOp), inner, {.pre = pre.get(kOp)});
        parameter_gradients(kOp, first, dpre, x, needs, 1, grads);
        if (needs[0]) {
          grads[0] = product(backward_shape(first, g.dtype()), dpre, weight1.get(kOp), shape);
        }
        return grads;
      });
}

}  // namespace graft
