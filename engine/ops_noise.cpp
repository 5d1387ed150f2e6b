// Random masks. A key gives the same mask on every call, so the backward pass makes it again.
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_noise(const char* op, const Tensor& x, float probability) {
  check_real(op, "x", x);
  check_probability(op, probability);
}

// Identity: shares storage with x, and passes the gradient on as it is.
Tensor pass_through(const char* op, const Tensor& x) {
  return record(op, {x}, view_as(x, x.shape()),
                [](const Tensor& g, const Needs&) -> Grads { return {g}; });
}

}  // namespace

Tensor dropout(const Tensor& x, float probability, bool training, RngKey key) {
  constexpr const char* kOp = "dropout";
  const RunningOp running(kOp);
  check_noise(kOp, x, probability);
  if (!training || probability == 0) return pass_through(kOp, x);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x,
                       [&](const Tensor& wide) { return dropout(wide, probability, true, key); });
  }
  const auto mask = [=](const Tensor& in) {
    Tensor out = empty_like(in);
    GRAFT_KERNEL(dropout, in.device())
    (out.mutable_data<float>(), in.data<float>(), probability, key, in.numel());
    return out;
  };
  return record(kOp, {x}, mask(x),
                [mask](const Tensor& g, const Needs&) -> Grads { return {mask(g)}; });
}

Tensor drop_path(const Tensor& x, float probability, bool training, RngKey key) {
  constexpr const char* kOp = "drop_path";
  const RunningOp running(kOp);
  check_noise(kOp, x, probability);
  GRAFT_CHECK(x.rank() >= 1, kOp, ": expected samples along dimension 0, got ", x);
  if (!training || probability == 0) return pass_through(kOp, x);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x,
                       [&](const Tensor& wide) { return drop_path(wide, probability, true, key); });
  }
  const auto mask = [=](const Tensor& in) {
    Tensor out = empty_like(in);
    const int64_t rows = in.dim(0), width = rows == 0 ? 0 : in.numel() / rows;
    GRAFT_KERNEL(drop_path, in.device())
    (out.mutable_data<float>(), in.data<float>(), probability, key, rows, width);
    return out;
  };
  return record(kOp, {x}, mask(x),
                [mask](const Tensor& g, const Needs&) -> Grads { return {mask(g)}; });
}

}  // namespace graft
