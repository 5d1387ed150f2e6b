// Softmax and losses. Formulas: kernels/cpu/vector/softmax.cpp and cross_entropy.cpp.
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_float(const char* op, const char* what, const Tensor& x) {
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32, op, ": expected an f32 tensor as ", what,
              ", got ", x);
}

struct AxisView {
  int64_t outer = 1, axis = 1, inner = 1;
};

AxisView split_at(const char* op, const Tensor& x, int64_t axis) {
  check_float(op, "x", x);
  const int64_t index = axis < 0 ? axis + x.rank() : axis;
  GRAFT_CHECK(index >= 0 && index < x.rank(), op, ": axis ", axis, " is outside ", x);
  AxisView view;
  for (int64_t d = 0; d < x.rank(); ++d) {
    (d < index ? view.outer : d == index ? view.axis : view.inner) *= x.dim(d);
  }
  // The kernels take no work from an empty tensor.
  if (x.numel() == 0) view = {0, view.axis, 1};
  return view;
}

// Labels on the host are checked. Those on another device are not: reading them back would stop the
// host until the device is done, every step; the kernel makes their rows NaN.
void check_labels(const Tensor& labels, int64_t classes, int64_t ignore_index) {
  if (!labels.device().is_cpu()) return;
  const int64_t* values = labels.data<int64_t>();
  for (int64_t row = 0; row < labels.numel(); ++row) {
    GRAFT_CHECK(values[row] == ignore_index || (values[row] >= 0 && values[row] < classes),
                "cross_entropy: the label of row ", row, " is ", values[row], ", expected 0..",
                classes - 1, " or ignore_index (", ignore_index,
                "); check the class count of the head and the label mapping");
  }
}

Tensor pair_loss(const char* op, PairLoss kind, const Tensor& x, const Tensor& target, float delta,
                 Reduction reduction, bool target_differentiable) {
  const RunningOp running(op);
  check_float(op, "x", x);
  check_float(op, "target", target);
  GRAFT_CHECK(x.shape() == target.shape(), op, ": expected a target of the same shape as x, ",
              x.shape(), ", got ", target.shape(), "; reshape one of them");
  GRAFT_CHECK(x.device() == target.device(), op, ": x is on ", x.device(), " but target is on ",
              target.device());
  const int64_t n = x.numel();
  const bool per_element = reduction == Reduction::none;
  const float scale = reduction == Reduction::mean ? 1.0f / static_cast<float>(n) : 1.0f;
  Tensor loss;
  if (per_element) {
    loss = empty_like(x);
    GRAFT_KERNEL(pair_loss, x.device())
    (kind, loss.mutable_data<float>(), x.data<float>(), target.data<float>(), delta, n);
  } else {
    loss = Tensor({}, Dtype::f32, x.device());
    GRAFT_KERNEL(pair_loss_sum, x.device())
    (kind, loss.mutable_data<float>(), x.data<float>(), target.data<float>(), delta, scale, n);
  }
  const Tensor wanted = target_differentiable ? target : target.detach();
  if (!any_requires_grad({&x, &wanted})) return loss;
  return record(
      op, {x, wanted}, loss,
      [=, x = Saved(x), target = Saved(target)](const Tensor& g, const Needs& needs) -> Grads {
        Grads grads(2);
        // These losses depend on x - target alone: the target's gradient is the negative.
        for (size_t i = 0; i < 2; ++i) {
          if (!needs[i]) continue;
          grads[i] = empty_like(x.get(op));
          GRAFT_KERNEL(pair_loss_grad, g.device())
          (kind, grads[i].mutable_data<float>(), g.data<float>(), per_element,
           x.get(op).data<float>(), target.get(op).data<float>(), delta, i == 0 ? scale : -scale,
           n);
        }
        return grads;
      });
}

}  // namespace

Tensor softmax(const Tensor& x, int64_t axis) {
  constexpr const char* kOp = "softmax";
  const RunningOp running(kOp);
  const AxisView v = split_at(kOp, x, axis);
  Tensor y = empty_like(x);
  GRAFT_KERNEL(softmax, x.device())
  (y.mutable_data<float>(), x.data<float>(), v.outer, v.axis, v.inner);
  if (!any_requires_grad({&x})) return y;
  return record(kOp, {x}, y, [=, y = Saved(y)](const Tensor& g, const Needs&) -> Grads {
    Tensor dx = empty_like(g);
    GRAFT_KERNEL(softmax_grad, g.device())
    (dx.mutable_data<float>(), y.get(kOp).data<float>(), g.data<float>(), v.outer, v.axis, v.inner);
    return {dx};
  });
}

Tensor log_softmax(const Tensor& x, int64_t axis) {
  constexpr const char* kOp = "log_softmax";
  const RunningOp running(kOp);
  const AxisView v = split_at(kOp, x, axis);
  Tensor y = empty_like(x);
  GRAFT_KERNEL(log_softmax, x.device())
  (y.mutable_data<float>(), x.data<float>(), v.outer, v.axis, v.inner);
  if (!any_requires_grad({&x})) return y;
  return record(kOp, {x}, y, [=, y = Saved(y)](const Tensor& g, const Needs&) -> Grads {
    Tensor dx = empty_like(g);
    GRAFT_KERNEL(log_softmax_grad, g.device())
    (dx.mutable_data<float>(), y.get(kOp).data<float>(), g.data<float>(), v.outer, v.axis, v.inner);
    return {dx};
  });
}

Tensor cross_entropy(const Tensor& logits, const Tensor& given,
                     const CrossEntropyOptions& options) {
  constexpr const char* kOp = "cross_entropy";
  const RunningOp running(kOp);
  check_float(kOp, "logits", logits);
  GRAFT_CHECK(logits.rank() == 2 && logits.dim(1) > 0, kOp,
              ": expected logits of shape (n, classes), got ", logits);
  const Device device = logits.device();
  const int64_t rows = logits.dim(0), classes = logits.dim(1);
  const bool soft = given.defined() && given.dtype() == Dtype::f32;
  // Labels may stay on the host, where they can be checked.
  GRAFT_CHECK(given.defined() && (given.device() == device || (!soft && given.device().is_cpu())),
              kOp, ": logits are on ", device, ", the target is ", given, " on ", given.device());
  if (soft) {
    GRAFT_CHECK(given.shape() == logits.shape(), kOp, ": expected class probabilities of shape ",
                logits.shape(), ", got ", given, "; class indices must be i64");
  } else {
    GRAFT_CHECK(given.dtype() == Dtype::i64 && given.shape() == Shape{rows}, kOp,
                ": expected i64 labels of shape [", rows, "], one a row of logits, got ", given);
    check_labels(given, classes, options.ignore_index);
  }
  const Tensor target = given.to(device);
  const Tensor& weights = options.class_weights;
  if (weights.defined()) {
    check_float(kOp, "class_weights", weights);
    GRAFT_CHECK(weights.shape() == Shape{classes} && weights.device() == device, kOp,
                ": expected class_weights of shape [", classes, "] on ", device, ", got ", weights,
                " on ", weights.device());
  }
  GRAFT_CHECK(options.label_smoothing >= 0 && options.label_smoothing <= 1, kOp,
              ": expected label_smoothing in 0..1, got ", options.label_smoothing);

  const CrossEntropyShape shape{rows, classes, options.label_smoothing, options.ignore_index};
  const bool per_row = options.reduction == Reduction::none;
  const bool divided = options.reduction == Reduction::mean;
  Tensor row_loss({rows}, Dtype::f32, device), log_sum_exp({rows}, Dtype::f32, device);
  Tensor divisor({}, Dtype::f32, device);
  GRAFT_KERNEL(cross_entropy, device)
  (row_loss.mutable_data<float>(), log_sum_exp.mutable_data<float>(), divisor.mutable_data<float>(),
   logits.data<float>(), soft ? nullptr : target.data<int64_t>(),
   soft ? target.data<float>() : nullptr, data_or_null(weights), shape);
  Tensor loss = row_loss;
  if (!per_row) {
    loss = Tensor({}, Dtype::f32, device);
    GRAFT_KERNEL(loss_sum, device)
    (loss.mutable_data<float>(), row_loss.data<float>(), divided ? divisor.data<float>() : nullptr,
     rows);
  }
  if (!any_requires_grad({&logits})) return loss;
  return record(kOp, {logits}, loss,
                [=, logits = Saved(logits), target = Saved(target), weights = Saved(weights),
                 log_sum_exp = Saved(log_sum_exp),
                 divisor = Saved(divisor)](const Tensor& g, const Needs&) -> Grads {
                  const Tensor& labels = target.get(kOp);
                  Tensor dlogits = empty_like(logits.get(kOp));
                  GRAFT_KERNEL(cross_entropy_grad, g.device())
                  (dlogits.mutable_data<float>(), g.data<float>(), per_row,
                   divided ? divisor.get(kOp).data<float>() : nullptr,
                   logits.get(kOp).data<float>(), log_sum_exp.get(kOp).data<float>(),
                   soft ? nullptr : labels.data<int64_t>(), soft ? labels.data<float>() : nullptr,
                   data_or_null(weights.get(kOp)), shape);
                  return {dlogits};
                });
}

Tensor bce_with_logits(const Tensor& logits, const Tensor& target, Reduction reduction) {
  return pair_loss("bce_with_logits", PairLoss::bce_with_logits, logits, target, 0, reduction,
                   false);
}
Tensor mse_loss(const Tensor& x, const Tensor& target, Reduction reduction) {
  return pair_loss("mse_loss", PairLoss::mse, x, target, 0, reduction, true);
}
Tensor l1_loss(const Tensor& x, const Tensor& target, Reduction reduction) {
  return pair_loss("l1_loss", PairLoss::l1, x, target, 0, reduction, true);
}
Tensor huber_loss(const Tensor& x, const Tensor& target, float delta, Reduction reduction) {
  GRAFT_CHECK(delta > 0, "huber_loss: expected delta above 0, got ", delta);
  return pair_loss("huber_loss", PairLoss::huber, x, target, delta, reduction, true);
}

}  // namespace graft
