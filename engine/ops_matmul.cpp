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

// result = a b (+ bias). With packed_b the packed form is kept beside b.
Tensor product(const MatmulShape& s, const Tensor& a, const Tensor& b, const Tensor& bias,
               Shape result_shape) {
  if (s.k == 0) return Tensor::zeros(std::move(result_shape), s.y_dtype, a.device());
  Tensor y(std::move(result_shape), s.y_dtype, a.device());
  if (y.numel() == 0) return y;
  const LibraryPlan plan = GRAFT_KERNEL(matmul_plan, a.device())(s);
  const LibraryWeight second = library_weight(b, plan, s.packed_b);
  const Storage scratch(plan.scratch_bytes, a.device());
  GRAFT_KERNEL(matmul, a.device())
  (plan, y.mutable_reals(), a.reals(), second.data, bias.defined() ? bias.data<float>() : nullptr,
   scratch.data());
  return y;
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
                     a, b, Tensor(), std::move(result));
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
                                           second, g, Tensor(), shape_a)
                                 : product({.batch = batch,
                                            .m = rows,
                                            .n = k,
                                            .k = n,
                                            .transpose_b = !transpose_b,
                                            .shared_b = shared,
                                            .dtype = g.dtype(),
                                            .y_dtype = g.dtype()},
                                           g, second, Tensor(), shape_a);
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
                                            g, first, Tensor(), shape)
                                  : product({.batch = batch,
                                             .m = k,
                                             .n = n,
                                             .k = rows,
                                             .transpose_a = !transpose_a,
                                             .dtype = g.dtype(),
                                             .y_dtype = g.dtype()},
                                            first, g, Tensor(), shape);
          grads[1] = sums ? sum(db, {0}) : db;
        }
        return grads;
      });
}

Tensor linear(const Tensor& x, const Tensor& weight, const Tensor& bias) {
  const RunningOp running("linear");
  check_matrix("linear", "x", x, 1);
  GRAFT_CHECK(weight.defined() && weight.dtype() == Dtype::f32 && weight.rank() == 2,
              "linear: expected an f32 weight (out, in), got ", weight);
  check_parameter("linear", "weight", weight, x);
  const int64_t in = weight.dim(1), out = weight.dim(0);
  GRAFT_CHECK(in > 0 && x.dim(-1) == in, "linear: expected x (..., ", in, ") for weight ", weight,
              ", got ", x);
  if (bias.defined()) {
    GRAFT_CHECK(bias.dtype() == Dtype::f32 && bias.shape() == Shape{out},
                "linear: expected an f32 bias [", out, "], got ", bias);
    check_parameter("linear", "bias", bias, x);
  }
  const int64_t rows = x.numel() / in;
  Shape result = x.shape();
  result.back() = out;
  // A weight that is being trained changes before a packed form could be used again.
  const bool kept = !(grad_enabled() && weight.requires_grad());
  Tensor y = product({.batch = 1,
                      .m = rows,
                      .n = out,
                      .k = in,
                      .transpose_b = true,
                      .bias = bias.defined(),
                      .packed_b = kept,
                      .weight_b = true,
                      .dtype = x.dtype(),
                      .y_dtype = x.dtype()},
                     x, weight, bias, std::move(result));
  if (!any_requires_grad({&x, &weight, &bias})) return y;
  return record(
      "linear", {x, weight, bias}, y,
      [=, shape = x.shape(), x = Saved(weight.requires_grad() ? x : Tensor()),
       weight = Saved(x.requires_grad() ? weight : Tensor())](const Tensor& g,
                                                              const Needs& needs) -> Grads {
        Grads grads(3);
        if (needs[0]) {
          grads[0] = product({.batch = 1,
                              .m = rows,
                              .n = in,
                              .k = out,
                              .packed_b = kept,
                              .weight_b = true,
                              .dtype = g.dtype(),
                              .y_dtype = g.dtype()},
                             g, weight.get("linear"), Tensor(), shape);
        }
        if (needs[1]) {
          grads[1] = product(
              {.batch = 1, .m = out, .n = in, .k = rows, .transpose_a = true, .dtype = g.dtype()},
              g, x.get("linear"), Tensor(), {out, in});
        }
        if (needs[2]) {
          grads[2] = sum(cast(view_as(g, {rows, out}), Dtype::f32), {0});
        }
        return grads;
      });
}

}  // namespace graft
