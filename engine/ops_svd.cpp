// Singular values, x = U diag(s) V^T, and their gradient: ds_k / dx = u_k v_k^T (Wedin 1972;
// Papadopoulo and Lourakis 2000).
#include <algorithm>

#include "engine/autograd.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"
#include "kernels/error.h"

namespace graft {

Tensor singular_values(const Tensor& x) {
  constexpr const char* kOp = "singular_values";
  const RunningOp running(kOp);
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32, kOp, ": expected an f32 tensor, got ", x,
              "; cast() converts");
  GRAFT_CHECK(x.rank() == 2, kOp, ": expected a matrix, got ", x);
  const int64_t rows = x.dim(0), columns = x.dim(1), count = std::min(rows, columns);
  const Device device = x.device();
  Tensor values({count}, Dtype::f32, device), u, vt;
  if (any_requires_grad({&x})) {
    u = Tensor({rows, count}, Dtype::f32, device);
    vt = Tensor({count, columns}, Dtype::f32, device);
  }
  const auto out = [](Tensor& y) { return y.defined() ? y.mutable_data<float>() : nullptr; };
  GRAFT_KERNEL(singular_values, device)
  (out(values), out(u), out(vt), x.data<float>(), rows, columns);
  if (!u.defined()) return values;
  return record(kOp, {x}, values, [=](const Tensor& g, const Needs&) -> Grads {
    Tensor dx({rows, columns}, Dtype::f32, device);
    GRAFT_KERNEL(singular_values_grad, device)
    (dx.mutable_data<float>(), g.data<float>(), u.data<float>(), vt.data<float>(), rows, columns);
    return {dx};
  });
}

}  // namespace graft
