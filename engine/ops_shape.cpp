// Ops that move elements: reshape, permute, concat, slice, gather, embedding, cast.
#include <algorithm>

#include "engine/autograd.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_defined(const char* op, const Tensor& x) {
  GRAFT_CHECK(x.defined(), op, ": expected a tensor, got ", x);
}

size_t checked_axis(const char* op, const Tensor& x, int64_t axis) {
  check_defined(op, x);
  const int64_t d = axis < 0 ? axis + x.rank() : axis;
  GRAFT_CHECK(d >= 0 && d < x.rank(), op, ": axis ", axis, " is outside ", x);
  return static_cast<size_t>(d);
}

int64_t product(const Shape& shape, size_t begin, size_t end) {
  int64_t count = 1;
  for (size_t d = begin; d < end; ++d) count *= shape[d];
  return count;
}

// Copies x to the entries start... of `target` along an axis; the other sizes are equal.
void copy_into(Tensor& target, size_t axis, int64_t start, const Tensor& x) {
  const auto element = static_cast<int64_t>(size_of(x.dtype()));
  const int64_t entry = product(x.shape(), axis + 1, x.shape().size()) * element;
  const int64_t row = x.shape()[axis] * entry, target_row = target.shape()[axis] * entry;
  target.storage()->bump_version();
  GRAFT_KERNEL(copy_rows, x.device())
  (static_cast<char*>(target.raw()) + start * entry, target_row, x.raw(), row,
   product(x.shape(), 0, axis), row);
}

// A copy of `count` entries of x from `start` along an axis.
Tensor copy_out(const Tensor& x, size_t axis, int64_t start, int64_t count) {
  Shape shape = x.shape();
  shape[axis] = count;
  Tensor y(shape, x.dtype(), x.device());
  const auto element = static_cast<int64_t>(size_of(x.dtype()));
  const int64_t entry = product(shape, axis + 1, shape.size()) * element;
  y.storage()->bump_version();
  GRAFT_KERNEL(copy_rows, x.device())
  (y.raw(), count * entry, static_cast<const char*>(x.raw()) + start * entry,
   x.shape()[axis] * entry, product(shape, 0, axis), count * entry);
  return y;
}

// permute without recording.
Tensor permuted(const Tensor& x, const std::vector<size_t>& order) {
  std::vector<int64_t> strides(x.shape().size());
  int64_t stride = 1;
  for (size_t d = strides.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= x.shape()[d];
  }
  Shape sizes;
  for (size_t d : order) sizes.push_back(x.shape()[d]);
  Tensor y(sizes, x.dtype(), x.device());
  if (y.numel() == 0) return y;
  // Dimensions of size 1 go, neighbours that stay neighbours are merged.
  std::vector<std::pair<int64_t, int64_t>> dims;  // size, stride
  for (size_t d : order) {
    if (x.shape()[d] == 1) continue;
    if (!dims.empty() && dims.back().second == strides[d] * x.shape()[d]) {
      dims.back() = {dims.back().first * x.shape()[d], strides[d]};
    } else {
      dims.emplace_back(x.shape()[d], strides[d]);
    }
  }
  if (dims.empty()) dims.emplace_back(1, 1);
  GRAFT_CHECK(dims.size() <= kMaxPermuteRank, "permute: at most ", kMaxPermuteRank,
              " dimensions can change places, got ", x);
  PermuteShape shape;
  for (const auto& [size, dim_stride] : dims) {
    shape.sizes[shape.rank] = size;
    shape.strides[shape.rank++] = dim_stride;
  }
  y.storage()->bump_version();
  GRAFT_KERNEL(permute, x.device())
  (y.raw(), x.raw(), static_cast<int64_t>(size_of(x.dtype())), shape);
  return y;
}

// Indices are checked here, once, so that kernels need not.
void check_ids(const char* op, const Tensor& ids, int64_t limit) {
  GRAFT_CHECK(ids.defined() && ids.dtype() == Dtype::i64, op, ": expected i64 indices, got ", ids);
  const int64_t bad =
      GRAFT_KERNEL(first_outside, ids.device())(ids.data<int64_t>(), ids.numel(), limit);
  GRAFT_CHECK(bad < 0, op, ": index ", ids.to_vector<int64_t>()[static_cast<size_t>(bad)],
              " at position ", bad, " is outside 0..", limit - 1);
}

}  // namespace

Tensor reshape(const Tensor& x, Shape shape) {
  check_defined("reshape", x);
  const Shape asked = shape;
  int64_t* open = nullptr;
  int64_t known = 1;
  for (int64_t& size : shape) {
    GRAFT_CHECK(size >= -1 && (size != -1 || open == nullptr), "reshape: ", x, " cannot take ",
                asked, ": sizes are 0 or more, and one may be -1");
    if (size == -1) {
      open = &size;
    } else {
      known *= size;
    }
  }
  if (open != nullptr) {
    GRAFT_CHECK(known > 0 && x.numel() % known == 0, "reshape: ", x, " of ", x.numel(),
                " elements cannot take ", asked, ": no size fits -1");
    *open = x.numel() / known;
  }
  GRAFT_CHECK(numel_of(shape) == x.numel(), "reshape: ", x, " of ", x.numel(),
              " elements cannot take ", asked);
  return record("reshape", {x}, view_as(x, shape),
                [before = x.shape()](const Tensor& g, const Needs&) -> Grads {
                  return {view_as(g, before)};
                });
}

Tensor permute(const Tensor& x, const Axes& order) {
  const RunningOp running("permute");
  check_defined("permute", x);
  std::vector<size_t> from, back(x.shape().size());
  std::vector<bool> seen(x.shape().size());
  GRAFT_CHECK(order.size() == seen.size(), "permute: expected each of the ", x.rank(), " axes of ",
              x, " once, got ", order);
  for (size_t i = 0; i < order.size(); ++i) {
    const size_t d = checked_axis("permute", x, order[i]);
    GRAFT_CHECK(!seen[d], "permute: expected each of the ", x.rank(), " axes of ", x, " once, got ",
                order);
    seen[d] = true;
    from.push_back(d);
    back[d] = i;
  }
  return record("permute", {x}, permuted(x, from),
                [back](const Tensor& g, const Needs&) -> Grads { return {permuted(g, back)}; });
}

Tensor concat(const std::vector<Tensor>& parts, int64_t axis) {
  const RunningOp running("concat");
  GRAFT_CHECK(!parts.empty(), "concat: expected at least one tensor, got none");
  const size_t d = checked_axis("concat", parts[0], axis);
  Shape shape = parts[0].shape();
  shape[d] = 0;
  std::vector<int64_t> sizes;
  for (const Tensor& part : parts) {
    Shape other = part.shape();
    if (part.defined() && other.size() == shape.size()) other[d] = 0;
    GRAFT_CHECK(part.defined() && other.size() == shape.size() &&
                    std::equal(other.begin(), other.end(), shape.begin(),
                               [&, at = size_t{0}](int64_t a, int64_t b) mutable {
                                 return at++ == d || a == b;
                               }) &&
                    part.dtype() == parts[0].dtype() && part.device() == parts[0].device(),
                "concat: along axis ", axis, " expected parts like ", parts[0], ", got ", part);
    sizes.push_back(part.shape()[d]);
    shape[d] += part.shape()[d];
  }
  Tensor y(shape, parts[0].dtype(), parts[0].device());
  int64_t start = 0;
  for (const Tensor& part : parts) {
    copy_into(y, d, start, part);
    start += part.shape()[d];
  }
  return record("concat", parts, y, [d, sizes](const Tensor& g, const Needs& needs) -> Grads {
    Grads grads(sizes.size());
    int64_t from = 0;
    for (size_t i = 0; i < sizes.size(); ++i) {
      if (needs[i]) grads[i] = copy_out(g, d, from, sizes[i]);
      from += sizes[i];
    }
    return grads;
  });
}

Tensor slice(const Tensor& x, int64_t axis, int64_t start, int64_t count) {
  const RunningOp running("slice");
  const size_t d = checked_axis("slice", x, axis);
  GRAFT_CHECK(start >= 0 && count >= 0 && start <= x.shape()[d] && count <= x.shape()[d] - start,
              "slice: entries ", start, " to ", start, " + ", count, " along axis ", axis,
              " are outside ", x);
  return record("slice", {x}, copy_out(x, d, start, count),
                [d, start, shape = x.shape()](const Tensor& g, const Needs&) -> Grads {
                  Tensor dx = Tensor::zeros(shape, g.dtype(), g.device());
                  copy_into(dx, d, start, g);
                  return {dx};
                });
}

Tensor gather(const Tensor& x, const Tensor& index, int64_t axis) {
  const RunningOp running("gather");
  const size_t d = checked_axis("gather", x, axis);
  GRAFT_CHECK(x.dtype() == Dtype::f32, "gather: expected an f32 tensor, got ", x);
  GRAFT_CHECK(index.defined() && index.dtype() == Dtype::i64 && index.rank() == x.rank(),
              "gather: expected i64 indices of rank ", x.rank(), ", got ", index);
  GRAFT_CHECK(x.rank() <= kMaxGatherRank, "gather: at most ", kMaxGatherRank, " dimensions, got ",
              x);
  GatherShape shape;
  shape.rank = static_cast<int>(x.rank());
  shape.axis = static_cast<int>(d);
  shape.axis_size = x.shape()[d];
  int64_t stride = 1;
  for (size_t i = x.shape().size(); i-- > 0;) {
    GRAFT_CHECK(i == d || index.shape()[i] <= x.shape()[i], "gather: indices ", index,
                " are larger than ", x, " in dimension ", i);
    shape.sizes[i] = index.shape()[i];
    shape.strides[i] = stride;
    stride *= x.shape()[i];
  }
  check_ids("gather", index, x.shape()[d]);
  Tensor y(index.shape(), Dtype::f32, x.device());
  GRAFT_KERNEL(gather, x.device())
  (y.mutable_data<float>(), x.data<float>(), index.data<int64_t>(), shape);
  if (!any_requires_grad({&x})) return y;
  return record(
      "gather", {x}, y,
      [shape, x_shape = x.shape(), index = Saved(index)](const Tensor& g, const Needs&) -> Grads {
        Tensor dx = Tensor::zeros(x_shape, Dtype::f32, g.device());
        GRAFT_KERNEL(gather_grad, g.device())
        (dx.mutable_data<float>(), index.get("gather").data<int64_t>(), g.data<float>(), shape);
        return {dx};
      });
}

Tensor embedding(const Tensor& weight, const Tensor& ids) {
  const RunningOp running("embedding");
  GRAFT_CHECK(weight.defined() && weight.dtype() == Dtype::f32 && weight.rank() == 2,
              "embedding: expected an f32 weight of shape (rows, width), got ", weight);
  const int64_t rows = weight.dim(0), width = weight.dim(1);
  check_ids("embedding", ids, rows);
  Shape shape = ids.shape();
  shape.push_back(width);
  Tensor y(shape, Dtype::f32, weight.device());
  GRAFT_KERNEL(embedding, weight.device())
  (y.mutable_data<float>(), weight.data<float>(), ids.data<int64_t>(), ids.numel(), width);
  if (!any_requires_grad({&weight})) return y;
  return record("embedding", {weight}, y,
                [rows, width, ids = Saved(ids)](const Tensor& g, const Needs&) -> Grads {
                  const Tensor& kept = ids.get("embedding");
                  Tensor dw({rows, width}, Dtype::f32, g.device());
                  GRAFT_KERNEL(embedding_grad, g.device())
                  (dw.mutable_data<float>(), kept.data<int64_t>(), g.data<float>(), kept.numel(),
                   rows, width);
                  return {dw};
                });
}

Tensor cast(const Tensor& x, Dtype dtype) {
  const RunningOp running("cast");
  check_defined("cast", x);
  if (x.dtype() == dtype) return x;
  Tensor y(x.shape(), dtype, x.device());
  y.storage()->bump_version();
  GRAFT_KERNEL(cast, x.device())(y.raw(), dtype, x.raw(), x.dtype(), x.numel());
  if (!is_real(dtype) || !is_real(x.dtype())) return y;
  return record("cast", {x}, y, [from = x.dtype()](const Tensor& g, const Needs&) -> Grads {
    return {cast(g, from)};
  });
}

}  // namespace graft
