// Attention. Formulas: kernels/cpu/vector/attention.cpp and kernels/cuda/attention_forward.cu.
#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "engine/broadcast.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_device(const char* op, const Tensor& x, const Tensor& q) {
  GRAFT_CHECK(x.device() == q.device(), op, ": arguments are on ", q.device(), " and on ",
              x.device(), "; move them with to()");
}

void check_rows(const char* op, const Tensor& x, const Tensor& q, const char* shape, int64_t rank) {
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32 && x.rank() == rank, op,
              ": expected f32 tensors of shape ", shape, ", got ", x);
  check_device(op, x, q);
}

float scale_or_default(float scale, int64_t depth) {
  return scale != 0 ? scale : 1.0f / std::sqrt(static_cast<float>(std::max<int64_t>(1, depth)));
}

// The ops that the formula names: where the fused kernels do not take the rows or are slower.
Tensor composed(const Tensor& q, const Tensor& k, const Tensor& v, const Tensor& mask,
                float scale) {
  Tensor scores = matmul(mul(q, scale), k, false, true);
  if (mask.defined()) scores = add(scores, mask);
  return matmul(softmax(scores), v);
}

// Sizes, scale and mask strides are given, the pointers are of these tensors.
struct Operands {
  Tensor q, k, v, mask, query_offsets, key_offsets;
};
AttentionInputs<float> with_pointers(AttentionInputs<float> in, const Operands& from) {
  in.q = from.q.data<float>();
  in.k = from.k.data<float>();
  in.v = from.v.data<float>();
  if (from.mask.defined()) in.mask = from.mask.data<float>();
  if (from.query_offsets.defined()) {
    in.query_offsets = from.query_offsets.data<int64_t>();
    in.key_offsets = from.key_offsets.data<int64_t>();
  }
  return in;
}

// Needs q, k, v and the result to be not empty, or the kernels to have nothing to do.
Tensor fused(const char* op, const AttentionInputs<float>& sizes, const Operands& x) {
  const Device device = x.q.device();
  Shape shape = x.q.shape();
  shape.back() = sizes.width;
  Tensor y(shape, Dtype::f32, device);
  const bool recorded = any_requires_grad({&x.q, &x.k, &x.v, &x.mask});
  Shape rows{sizes.queries * sizes.heads};
  if (!x.query_offsets.defined()) rows[0] *= sizes.batch;
  Tensor log_sum_exp = recorded ? Tensor(rows, Dtype::f32, device) : Tensor();
  GRAFT_KERNEL(attention_forward, device)
  (y.mutable_data<float>(), recorded ? log_sum_exp.mutable_data<float>() : nullptr,
   with_pointers(sizes, x));
  if (!recorded) return y;
  return record(
      op, {x.q, x.k, x.v, x.mask}, y,
      [=, q = Saved(x.q), k = Saved(x.k), v = Saved(x.v), mask = Saved(x.mask),
       query_offsets = Saved(x.query_offsets), key_offsets = Saved(x.key_offsets), y = Saved(y),
       log_sum_exp = Saved(log_sum_exp)](const Tensor& g, const Needs& needs) -> Grads {
        const Operands saved{
            q.get(op),          k.get(op), v.get(op), mask.get(op), query_offsets.get(op),
            key_offsets.get(op)};
        Grads grads(4);
        Tensor row_dots(rows, Dtype::f32, device), dscores;
        AttentionGrad<float> grad;
        grad.g = g.data<float>();
        grad.y = y.get(op).data<float>();
        grad.log_sum_exp = log_sum_exp.get(op).data<float>();
        grad.row_dots = row_dots.mutable_data<float>();
        const auto wanted = [&](size_t i, const Tensor& like) -> float* {
          if (!needs[i]) return nullptr;
          grads[i] = empty_like(like);
          return grads[i].mutable_data<float>();
        };
        grad.dq = wanted(0, saved.q);
        grad.dk = wanted(1, saved.k);
        grad.dv = wanted(2, saved.v);
        if (needs[3]) {
          dscores =
              Tensor({sizes.batch, sizes.heads, sizes.queries, sizes.keys}, Dtype::f32, device);
          grad.dscores = dscores.mutable_data<float>();
        }
        GRAFT_KERNEL(attention_backward, device)(grad, with_pointers(sizes, saved));
        if (needs[3]) grads[3] = sum_to(dscores, saved.mask.shape());
        return grads;
      });
}

// Checks the offsets of packed sequences where the host can read them, and makes them i64.
Tensor checked_offsets(const char* op, const char* what, const Tensor& offsets, const Tensor& x) {
  GRAFT_CHECK(offsets.defined() &&
                  (offsets.dtype() == Dtype::i64 || offsets.dtype() == Dtype::i32) &&
                  offsets.rank() == 1 && offsets.dim(0) >= 2,
              op, ": expected ", what, " to be i64 or i32 of shape [sequences + 1], got ", offsets);
  check_device(op, offsets, x);
  const Tensor wide = offsets.dtype() == Dtype::i64 ? offsets : cast(offsets, Dtype::i64);
  if (!wide.device().is_cpu()) return wide;
  const int64_t* values = wide.data<int64_t>();
  const int64_t last = wide.dim(0) - 1;
  bool ascending = values[0] == 0 && values[last] == x.dim(0);
  for (int64_t i = 0; i < last; ++i) ascending = ascending && values[i] <= values[i + 1];
  GRAFT_CHECK(ascending, op, ": expected ", what, " to ascend from 0 to ", x.dim(0),
              " tokens, got ", values[0], " to ", values[last]);
  return wide;
}

}  // namespace

Tensor scaled_dot_product_attention(const Tensor& q, const Tensor& k, const Tensor& v,
                                    const Tensor& mask, float scale) {
  constexpr const char* kOp = "scaled_dot_product_attention";
  const RunningOp running(kOp);
  for (const Tensor* x : {&q, &k, &v}) check_rows(kOp, *x, q, "(b, heads, n, d)", 4);
  GRAFT_CHECK(k.dim(0) == q.dim(0) && k.dim(1) == q.dim(1) && k.dim(3) == q.dim(3), kOp,
              ": q and k differ in batch, heads or depth: ", q, " and ", k);
  GRAFT_CHECK(v.dim(0) == k.dim(0) && v.dim(1) == k.dim(1) && v.dim(2) == k.dim(2), kOp,
              ": k and v differ in batch, heads or length: ", k, " and ", v);
  AttentionInputs<float> sizes;
  sizes.batch = q.dim(0);
  sizes.heads = q.dim(1);
  sizes.queries = q.dim(2);
  sizes.keys = k.dim(2);
  sizes.depth = q.dim(3);
  sizes.width = v.dim(3);
  sizes.scale = scale_or_default(scale, sizes.depth);
  if (mask.defined()) {
    const Shape scores{sizes.batch, sizes.heads, sizes.queries, sizes.keys};
    bool fits = mask.dtype() == Dtype::f32 && mask.rank() <= 4;
    int64_t stride = 1;
    for (int64_t d = 1; fits && d <= mask.rank(); ++d) {
      const int64_t size = mask.dim(-d);
      fits = size == 1 || size == scores[static_cast<size_t>(4 - d)];
      sizes.mask_strides[4 - d] = size == 1 ? 0 : stride;
      stride *= size;
    }
    GRAFT_CHECK(fits, kOp, ": expected an f32 mask that broadcasts to ", scores, ", got ", mask);
    check_device(kOp, mask, q);
  }
  // On a CPU the library's products are faster over few keys (measured: up to 1.3 times at 64, even
  // at 100, 0.8 at 512).
  constexpr int64_t kFewKeys = 96;
  if (std::max(sizes.depth, sizes.width) > kMostAttentionDepth ||
      (q.device().is_cpu() && sizes.keys <= kFewKeys)) {
    return composed(q, k, v, mask, sizes.scale);
  }
  return fused(kOp, sizes, {q, k, v, mask, {}, {}});
}

Tensor scaled_dot_product_attention_varlen(const Tensor& q, const Tensor& k, const Tensor& v,
                                           const Tensor& query_offsets, const Tensor& key_offsets,
                                           float scale) {
  constexpr const char* kOp = "scaled_dot_product_attention_varlen";
  const RunningOp running(kOp);
  for (const Tensor* x : {&q, &k, &v}) check_rows(kOp, *x, q, "(tokens, heads, d)", 3);
  GRAFT_CHECK(k.dim(1) == q.dim(1) && k.dim(2) == q.dim(2), kOp,
              ": q and k differ in heads or depth: ", q, " and ", k);
  GRAFT_CHECK(v.dim(0) == k.dim(0) && v.dim(1) == k.dim(1), kOp,
              ": k and v differ in length or heads: ", k, " and ", v);
  GRAFT_CHECK(std::max(q.dim(2), v.dim(2)) <= kMostAttentionDepth, kOp,
              ": expected rows of at most ", kMostAttentionDepth, " elements, got ", q, " and ", v);
  Operands x{q,
             k,
             v,
             {},
             checked_offsets(kOp, "query_offsets", query_offsets, q),
             checked_offsets(kOp, "key_offsets", key_offsets, k)};
  GRAFT_CHECK(x.query_offsets.dim(0) == x.key_offsets.dim(0), kOp,
              ": expected as many query_offsets as key_offsets, got ", query_offsets, " and ",
              key_offsets);
  AttentionInputs<float> sizes;
  sizes.batch = x.query_offsets.dim(0) - 1;
  sizes.heads = q.dim(1);
  sizes.queries = q.dim(0);
  sizes.keys = k.dim(0);
  sizes.depth = q.dim(2);
  sizes.width = v.dim(2);
  sizes.scale = scale_or_default(scale, sizes.depth);
  return fused(kOp, sizes, x);
}

}  // namespace graft
