// Normalisation ops. Formulas and what they keep for the backward pass:
// kernels/cpu/vector/*_norm.cpp.
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

Tensor zeros_of(bool needed, const Tensor& like) { return needed ? zeros_like(like) : Tensor(); }

}  // namespace

Tensor batch_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, Tensor& running_mean,
                  Tensor& running_var, const BatchNormOptions& options, const Tensor& residual) {
  constexpr const char* kOp = "batch_norm";
  const RunningOp running(kOp);
  check_real(kOp, "x", x);
  GRAFT_CHECK(x.rank() >= 2, kOp, ": expected x with at least 2 dimensions (rows, channels), got ",
              x);
  const Device device = x.device();
  const int64_t channels = x.dim(-1), rows = channels == 0 ? 0 : x.numel() / channels;
  check_channels_or_none(kOp, "weight", weight, channels, device);
  check_channels_or_none(kOp, "bias", bias, channels, device);
  check_channels(kOp, "running_mean", running_mean, channels, device);
  check_channels(kOp, "running_var", running_var, channels, device);
  if (residual.defined()) {
    check_like(kOp, "residual", residual, x);
    GRAFT_CHECK(residual.shape() == x.shape(), kOp, ": expected a residual like x, ", x, ", got ",
                residual);
  }
  const bool training = options.training;
  GRAFT_CHECK(!training || rows != 1, kOp,
              ": expected more than 1 value per channel when training, got ", x,
              "; use a larger batch, drop the last incomplete one, or normalise with the running "
              "statistics (eval)");

  Tensor y = empty_like(x);
  if (rows > 0) {
    Tensor stats({3, channels}, Dtype::f32, device);
    if (training) {
      GRAFT_KERNEL(batch_norm_statistics, device)
      (stats.mutable_data<float>(), running_mean.mutable_data<float>(),
       running_var.mutable_data<float>(), x.reals(), rows, channels, options.momentum,
       options.epsilon);
    } else {
      GRAFT_KERNEL(batch_norm_frozen_statistics, device)
      (stats.mutable_data<float>(), running_mean.data<float>(), running_var.data<float>(), channels,
       options.epsilon);
    }
    GRAFT_KERNEL(batch_norm_apply, device)
    (y.mutable_reals(), x.reals(), residual.reals(), stats.data<float>(), data_or_null(weight),
     data_or_null(bias), options.activation, rows, channels);

    if (!any_requires_grad({&x, &weight, &bias, &residual})) return y;
    const bool active = options.activation != Activation::none;
    // A frozen layer needs x only for its weight and bias; the mask then comes from y.
    const bool keeps_x =
        weight.requires_grad() || bias.requires_grad() || (training && x.requires_grad());
    const bool keeps_y = active && (residual.defined() || !keeps_x);
    return record(kOp, {x, weight, bias, residual}, y,
                  [=, activation = options.activation, x = keeps_x ? Saved(x) : Saved(),
                   y = keeps_y ? Saved(y) : Saved(), stats = Saved(stats), weight = Saved(weight),
                   bias = Saved(bias)](const Tensor& g, const Needs& needs) -> Grads {
                    Tensor dx = needs[0] ? empty_like(g) : Tensor();
                    Tensor dweight = grad_vector(needs[1], channels, g.device());
                    Tensor dbias = grad_vector(needs[2], channels, g.device());
                    // Without an activation the residual's gradient is g itself.
                    Tensor dz = needs[3] && active ? empty_like(g) : Tensor();
                    if (needs[0] || needs[1] || needs[2] || dz.defined()) {
                      BatchNormGrad args;
                      args.rows = rows;
                      args.channels = channels;
                      args.batch_statistics = training;
                      args.activation = activation;
                      args.g = g.reals();
                      args.x = x.get(kOp).reals();
                      args.y = y.get(kOp).reals();
                      args.stats = stats.get(kOp).data<float>();
                      args.weight = data_or_null(weight.get(kOp));
                      args.bias = data_or_null(bias.get(kOp));
                      args.dx = dx.mutable_reals();
                      args.dz = dz.mutable_reals();
                      args.dweight = out_or_null(dweight);
                      args.dbias = out_or_null(dbias);
                      GRAFT_KERNEL(batch_norm_grad, g.device())(args);
                    }
                    return {dx, dweight, dbias, needs[3] && !active ? g : dz};
                  });
  }
  return record(kOp, {x, weight, bias, residual}, y,
                [x = Saved(x), weight = Saved(weight), bias = Saved(bias)](
                    const Tensor& g, const Needs& needs) -> Grads {
                  return {needs[0] ? g : Tensor(), zeros_of(needs[1], weight.get(kOp)),
                          zeros_of(needs[2], bias.get(kOp)), needs[3] ? g : Tensor()};
                });
}

Tensor layer_norm(const Tensor& x, const Tensor& weight, const Tensor& bias, float epsilon) {
  constexpr const char* kOp = "layer_norm";
  const RunningOp running(kOp);
  check_real(kOp, "x", x);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x,
                       [&](const Tensor& wide) { return layer_norm(wide, weight, bias, epsilon); });
  }
  GRAFT_CHECK(x.rank() >= 1, kOp, ": expected x with at least 1 dimension, got ", x);
  const Device device = x.device();
  const int64_t c = x.dim(-1), rows = c == 0 ? 0 : x.numel() / c;
  check_channels_or_none(kOp, "weight", weight, c, device);
  check_channels_or_none(kOp, "bias", bias, c, device);
  Tensor y = empty_like(x), stats({rows, 3}, Dtype::f32, device);
  GRAFT_KERNEL(layer_norm, device)
  (y.mutable_data<float>(), stats.mutable_data<float>(), x.data<float>(), data_or_null(weight),
   data_or_null(bias), rows, c, epsilon);
  if (!any_requires_grad({&x, &weight, &bias})) return y;
  return record(kOp, {x, weight, bias}, y,
                [=, x = Saved(x), stats = Saved(stats), weight = Saved(weight)](
                    const Tensor& g, const Needs& needs) -> Grads {
                  Tensor dx = needs[0] ? empty_like(g) : Tensor();
                  Tensor dweight = grad_vector(needs[1], c, g.device());
                  Tensor dbias = grad_vector(needs[2], c, g.device());
                  GRAFT_KERNEL(layer_norm_grad, g.device())
                  (out_or_null(dx), out_or_null(dweight), out_or_null(dbias), g.data<float>(),
                   x.get(kOp).data<float>(), stats.get(kOp).data<float>(),
                   data_or_null(weight.get(kOp)), rows, c);
                  return {dx, dweight, dbias};
                });
}

Tensor group_norm(const Tensor& x, int64_t groups, const Tensor& weight, const Tensor& bias,
                  float epsilon) {
  constexpr const char* kOp = "group_norm";
  const RunningOp running(kOp);
  check_real(kOp, "x", x);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(
        x, [&](const Tensor& wide) { return group_norm(wide, groups, weight, bias, epsilon); });
  }
  GRAFT_CHECK(x.rank() >= 2, kOp, ": expected x of shape (n, ..., c), got ", x);
  const Device device = x.device();
  const int64_t samples = x.dim(0), c = x.dim(-1);
  GRAFT_CHECK(groups > 0 && c % groups == 0, kOp, ": expected groups that divide the ", c,
              " channels, got ", groups);
  check_channels_or_none(kOp, "weight", weight, c, device);
  check_channels_or_none(kOp, "bias", bias, c, device);
  const int64_t spatial = x.numel() == 0 ? 0 : x.numel() / samples / c;
  // With no element there is nothing to normalise, and the gradients below are zeros.
  const int64_t work = spatial == 0 ? 0 : samples;
  Tensor y = empty_like(x), stats({samples, groups, 3}, Dtype::f32, device);
  if (work > 0) {
    GRAFT_KERNEL(group_norm, device)
    (y.mutable_data<float>(), stats.mutable_data<float>(), x.data<float>(), data_or_null(weight),
     data_or_null(bias), samples, spatial, c, groups, epsilon);
  }
  if (!any_requires_grad({&x, &weight, &bias})) return y;
  return record(kOp, {x, weight, bias}, y,
                [=, x = Saved(x), stats = Saved(stats), weight = Saved(weight), bias = Saved(bias)](
                    const Tensor& g, const Needs& needs) -> Grads {
                  if (work == 0) {
                    return {needs[0] ? g : Tensor(), zeros_of(needs[1], weight.get(kOp)),
                            zeros_of(needs[2], bias.get(kOp))};
                  }
                  Tensor dx = needs[0] ? empty_like(g) : Tensor();
                  Tensor dweight = grad_vector(needs[1], c, g.device());
                  Tensor dbias = grad_vector(needs[2], c, g.device());
                  GRAFT_KERNEL(group_norm_grad, g.device())
                  (out_or_null(dx), out_or_null(dweight), out_or_null(dbias), g.data<float>(),
                   x.get(kOp).data<float>(), stats.get(kOp).data<float>(),
                   data_or_null(weight.get(kOp)), samples, spatial, c, groups);
                  return {dx, dweight, dbias};
                });
}

}  // namespace graft
