// Attention (Vaswani et al. 2017): softmax(q k^T scale + mask) v, composed of the ops it names.
#include <algorithm>
#include <cmath>

#include "engine/ops.h"

namespace graft {

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& mask, float scale) {
  constexpr const char* kOp = "scaled_dot_product_attention";
  for (const Tensor* x : {&q, &k, &v}) {
    GRAFT_CHECK(x->defined() && x->dtype() == Dtype::f32 && x->rank() == 4, kOp,
                ": expected f32 tensors of shape (b, heads, n, d), got ", *x);
  }
  GRAFT_CHECK(k.dim(0) == q.dim(0) && k.dim(1) == q.dim(1) && k.dim(3) == q.dim(3), kOp,
              ": q and k differ in batch, heads or depth: ", q, " and ", k);
  GRAFT_CHECK(v.dim(0) == k.dim(0) && v.dim(1) == k.dim(1) && v.dim(2) == k.dim(2), kOp,
              ": k and v differ in batch, heads or length: ", k, " and ", v);
  const float factor =
      scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(1, q.dim(3))));
  Tensor scores = matmul(mul(q, factor), k, false, true);
  if (mask.defined()) {
    bool fits = mask.dtype() == Dtype::f32 && mask.rank() <= 4;
    for (int64_t d = 1; fits && d <= mask.rank(); ++d) {
      fits = mask.dim(-d) == 1 || mask.dim(-d) == scores.dim(-d);
    }
    GRAFT_CHECK(fits, kOp, ": expected an f32 mask that broadcasts to ", scores.shape(), ", got ",
                mask);
    scores = add(scores, mask);
  }
  return matmul(softmax(scores), v);
}

}  // namespace graft
