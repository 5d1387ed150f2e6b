#include "engine/broadcast.h"

#include <algorithm>

namespace graft {
namespace {

// Size of dimension d of `rank`, counting the missing leading ones as 1.
int64_t size_at(const Shape& shape, size_t rank, size_t d) {
  const size_t missing = rank - shape.size();
  return d < missing ? 1 : shape[d - missing];
}

// Element strides over a result of `rank`, 0 where the operand is repeated.
std::vector<int64_t> strides_over(const Shape& shape, size_t rank) {
  std::vector<int64_t> strides(rank);
  int64_t stride = 1;
  for (size_t d = rank; d-- > 0;) {
    const int64_t size = size_at(shape, rank, d);
    strides[d] = size == 1 ? 0 : stride;
    stride *= size;
  }
  return strides;
}

}  // namespace

Shape broadcast_shape(const char* op, const Shape& a, const Shape& b) {
  const size_t rank = std::max(a.size(), b.size());
  Shape out(rank);
  for (size_t d = 0; d < rank; ++d) {
    const int64_t size_a = size_at(a, rank, d), size_b = size_at(b, rank, d);
    GRAFT_CHECK(size_a == size_b || size_a == 1 || size_b == 1, op, ": shapes ", a, " and ", b,
                " do not broadcast: sizes counted from the end must be equal or 1");
    out[d] = size_a == 1 ? size_b : size_a;
  }
  return out;
}

BroadcastShape broadcast_plan(const char* op, const Shape& out, const Shape& a, const Shape& b) {
  const std::vector<int64_t> a_strides = strides_over(a, out.size());
  const std::vector<int64_t> b_strides = strides_over(b, out.size());
  // From the innermost dimension outwards; written in reverse at the end.
  std::vector<size_t> kept;
  std::vector<int64_t> sizes;
  for (size_t d = out.size(); d-- > 0;) {
    if (out[d] == 1) continue;
    if (!kept.empty() && a_strides[d] == a_strides[kept.back()] * sizes.back() &&
        b_strides[d] == b_strides[kept.back()] * sizes.back()) {
      sizes.back() *= out[d];
      continue;
    }
    kept.push_back(d);
    sizes.push_back(out[d]);
  }
  GRAFT_CHECK(kept.size() <= kMaxBroadcastRank, op, ": broadcasting ", a, " with ", b,
              " alternates over more than ", kMaxBroadcastRank, " dimensions; reshape them first");
  BroadcastShape plan;
  if (kept.empty()) {
    plan.rank = 1;
    plan.sizes[0] = 1;
    return plan;
  }
  plan.rank = static_cast<int>(kept.size());
  for (size_t k = 0; k < kept.size(); ++k) {
    const size_t at = kept.size() - 1 - k;
    plan.sizes[at] = sizes[k];
    plan.a_strides[at] = a_strides[kept[k]];
    plan.b_strides[at] = b_strides[kept[k]];
  }
  return plan;
}

Tensor sum_to(const Tensor& x, const Shape& shape) {
  if (x.shape() == shape) return x;
  const size_t rank = x.shape().size();
  Axes repeated;
  for (size_t d = 0; d < rank; ++d) {
    if (size_at(shape, rank, d) == 1 && x.shape()[d] != 1)
      repeated.push_back(static_cast<int64_t>(d));
  }
  return view_as(repeated.empty() ? x : sum(x, repeated, true), shape);
}

}  // namespace graft
