// Chains of a transformer block as single ops. Formulas: kernels/cpu/vector/fused.cpp. Without
// training, or with a probability of 0, nothing is dropped and the rest of the chain stays.
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

// Sums of the columns of x (rows, c): a bias's gradient.
Tensor column_sums(const Tensor& x, int64_t rows, int64_t c) {
  const ReduceShape shape{1, rows, c};
  Tensor y({c}, Dtype::f32, x.device()), partial({shape.partials()}, Dtype::f64, x.device());
  GRAFT_KERNEL(reduce_sum, x.device())
  (y.mutable_data<float>(), x.data<float>(), shape, 1, partial.mutable_data<double>());
  return y;
}

int64_t check_rows(const char* op, const Tensor& x, float probability) {
  check_real(op, "x", x);
  check_probability(op, probability);
  GRAFT_CHECK(x.rank() >= 1, op, ": expected x with at least 1 dimension, got ", x);
  return x.dim(-1) == 0 ? 0 : x.numel() / x.dim(-1);
}

}  // namespace

Tensor bias_gelu_dropout(const Tensor& x, const Tensor& bias, float probability, bool training,
                         RngKey key) {
  constexpr const char* kOp = "bias_gelu_dropout";
  const RunningOp running(kOp);
  const int64_t rows = check_rows(kOp, x, probability), c = x.dim(-1);
  check_channels_or_none(kOp, "bias", bias, c, x.device());
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x, [&](const Tensor& wide) {
      return bias_gelu_dropout(wide, bias, probability, training, key);
    });
  }
  const float dropped = training ? probability : 0.0f;
  Tensor y = empty_like(x);
  GRAFT_KERNEL(bias_gelu_dropout, x.device())
  (y.mutable_data<float>(), x.data<float>(), data_or_null(bias), dropped, key, rows, c);
  if (!any_requires_grad({&x, &bias})) return y;
  return record(
      kOp, {x, bias}, y,
      [=, x = Saved(x), bias = Saved(bias)](const Tensor& g, const Needs& needs) -> Grads {
        Tensor dx = empty_like(g);
        GRAFT_KERNEL(bias_gelu_dropout_grad, g.device())
        (dx.mutable_data<float>(), g.data<float>(), x.get(kOp).data<float>(),
         data_or_null(bias.get(kOp)), dropped, key, rows, c);
        return {needs[0] ? dx : Tensor(), needs[1] ? column_sums(dx, rows, c) : Tensor()};
      });
}

Tensor dropout_add_layer_norm(const Tensor& x, const Tensor& bias, const Tensor& residual,
                              const Tensor& weight, const Tensor& shift, float probability,
                              bool training, RngKey key, float epsilon) {
  constexpr const char* kOp = "dropout_add_layer_norm";
  const RunningOp running(kOp);
  const int64_t rows = check_rows(kOp, x, probability), c = x.dim(-1);
  const Device device = x.device();
  check_like(kOp, "residual", residual, x);
  GRAFT_CHECK(residual.shape() == x.shape(), kOp, ": expected a residual like x, ", x, ", got ",
              residual);
  check_channels_or_none(kOp, "bias", bias, c, device);
  check_channels_or_none(kOp, "weight", weight, c, device);
  check_channels_or_none(kOp, "shift", shift, c, device);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x, [&](const Tensor& wide) {
      return dropout_add_layer_norm(wide, bias, cast(residual, Dtype::f32), weight, shift,
                                    probability, training, key, epsilon);
    });
  }
  const float dropped = training ? probability : 0.0f;
  Tensor y = empty_like(x), sum = empty_like(x), stats({rows, 3}, Dtype::f32, device);
  GRAFT_KERNEL(dropout_add_layer_norm, device)
  (y.mutable_data<float>(), sum.mutable_data<float>(), stats.mutable_data<float>(), x.data<float>(),
   data_or_null(bias), residual.data<float>(), data_or_null(weight), data_or_null(shift), dropped,
   key, rows, c, epsilon);
  if (!any_requires_grad({&x, &bias, &residual, &weight, &shift})) return y;
  return record(kOp, {x, bias, residual, weight, shift}, y,
                [=, sum = Saved(sum), stats = Saved(stats), weight = Saved(weight)](
                    const Tensor& g, const Needs& needs) -> Grads {
                  const bool branch = needs[0] || needs[1];
                  Tensor dsum = branch || needs[2] ? empty_like(g) : Tensor();
                  Tensor dx = branch ? empty_like(g) : Tensor();
                  Tensor dweight = grad_vector(needs[3], c, g.device());
                  Tensor dshift = grad_vector(needs[4], c, g.device());
                  GRAFT_KERNEL(dropout_add_layer_norm_grad, g.device())
                  (out_or_null(dx), out_or_null(dsum), out_or_null(dweight), out_or_null(dshift),
                   g.data<float>(), sum.get(kOp).data<float>(), stats.get(kOp).data<float>(),
                   data_or_null(weight.get(kOp)), dropped, key, rows, c);
                  return {needs[0] ? dx : Tensor(), needs[1] ? column_sums(dx, rows, c) : Tensor(),
                          needs[2] ? dsum : Tensor(), dweight, dshift};
                });
}

}  // namespace graft
