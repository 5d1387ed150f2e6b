// Sum, mean, maximum and argmax over any set of axes.
#include <algorithm>

#include "engine/autograd.h"
#include "engine/broadcast.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_float(const char* op, const Tensor& x) {
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32, op, ": expected an f32 tensor, got ", x,
              "; cast() converts");
}

// Which dimensions a list of axes reduces.
std::vector<bool> reduced_dims(const char* op, const Tensor& x, const Axes& axes) {
  std::vector<bool> reduced(x.shape().size(), axes.empty());
  for (int64_t axis : axes) {
    const int64_t d = axis < 0 ? axis + x.rank() : axis;
    GRAFT_CHECK(d >= 0 && d < x.rank(), op, ": axis ", axis, " is outside ", x);
    GRAFT_CHECK(!reduced[static_cast<size_t>(d)], op, ": axis ", axis, " is named twice in ", axes);
    reduced[static_cast<size_t>(d)] = true;
  }
  return reduced;
}

// The shapes of the result with the reduced dimensions as 1, and without them.
struct ResultShape {
  Shape kept, dropped;
  const Shape& of(bool keep_dims) const { return keep_dims ? kept : dropped; }
};
ResultShape result_shape(const Shape& shape, const std::vector<bool>& reduced) {
  ResultShape result;
  for (size_t d = 0; d < shape.size(); ++d) {
    result.kept.push_back(reduced[d] ? 1 : shape[d]);
    if (!reduced[d]) result.dropped.push_back(shape[d]);
  }
  return result;
}

// Neighbouring dimensions that are treated alike, merged. Sizes of 1 join any neighbour.
struct Run {
  int64_t size;
  bool reduced;
};
std::vector<Run> runs_of(const Shape& shape, const std::vector<bool>& reduced) {
  std::vector<Run> runs;
  for (size_t d = 0; d < shape.size(); ++d) {
    if (shape[d] == 1) continue;
    if (!runs.empty() && runs.back().reduced == reduced[d]) {
      runs.back().size *= shape[d];
    } else {
      runs.push_back({shape[d], reduced[d]});
    }
  }
  return runs;
}

int64_t product(const std::vector<Run>& runs, size_t begin, size_t end) {
  int64_t count = 1;
  for (size_t i = begin; i < end; ++i) count *= runs[i].size;
  return count;
}

Tensor sum_over(const Tensor& x, const ReduceShape& shape, double divisor) {
  Tensor y({shape.outer * shape.inner}, Dtype::f32, x.device());
  Tensor partial({shape.partials()}, Dtype::f64, x.device());
  GRAFT_KERNEL(reduce_sum, x.device())
  (y.mutable_data<float>(), x.data<float>(), shape, divisor, partial.mutable_data<double>());
  return y;
}

// g, with 1 in the reduced dimensions, times factor, repeated to `shape`.
Tensor expand(const char* op, const Tensor& g, const Shape& shape, float factor) {
  const Tensor scale = Tensor::full({}, factor, g.device());
  Tensor out(shape, Dtype::f32, g.device());
  GRAFT_KERNEL(binary_broadcast, g.device())
  (Binary::mul, out.mutable_data<float>(), g.data<float>(), scale.data<float>(),
   broadcast_plan(op, shape, g.shape(), {}));
  return out;
}

Tensor sum_or_mean(const char* op, const Tensor& x, const Axes& axes, bool keep_dims, bool mean) {
  const RunningOp running(op);
  check_real(op, "x", x);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(
        x, [&](const Tensor& wide) { return sum_or_mean(op, wide, axes, keep_dims, mean); });
  }
  const std::vector<bool> reduced = reduced_dims(op, x, axes);
  const ResultShape result = result_shape(x.shape(), reduced);
  std::vector<Run> runs = runs_of(x.shape(), reduced);
  int64_t count = 1;
  for (size_t d = 0; d < reduced.size(); ++d) count *= reduced[d] ? x.shape()[d] : 1;

  // One pass for each run of reduced dimensions, innermost first; the last one divides.
  Tensor y = x.detach();
  bool pending = true;
  while (pending) {
    size_t at = runs.size();
    int64_t left = 0;
    for (size_t i = 0; i < runs.size(); ++i) {
      if (!runs[i].reduced) continue;
      at = i;
      ++left;
    }
    pending = left > 1;
    const double divisor = mean && !pending ? static_cast<double>(count) : 1.0;
    ReduceShape shape{y.numel(), 1, 1};
    if (at < runs.size()) {
      shape = {product(runs, 0, at), runs[at].size, product(runs, at + 1, runs.size())};
      runs.erase(runs.begin() + static_cast<int64_t>(at));
    }
    y = sum_over(y, shape, divisor);
  }
  y = view_as(y, result.of(keep_dims));
  const float factor = mean ? static_cast<float>(1.0 / static_cast<double>(count)) : 1.0f;
  return record(
      op, {x}, y,
      [op, shape = x.shape(), kept = result.kept, factor](const Tensor& g, const Needs&) -> Grads {
        return {expand(op, view_as(g, kept), shape, factor)};
      });
}

}  // namespace

Tensor sum(const Tensor& x, const Axes& axes, bool keep_dims) {
  return sum_or_mean("sum", x, axes, keep_dims, false);
}
Tensor mean(const Tensor& x, const Axes& axes, bool keep_dims) {
  return sum_or_mean("mean", x, axes, keep_dims, true);
}

Tensor max(const Tensor& x, const Axes& axes, bool keep_dims) {
  const RunningOp running("max");
  check_float("max", x);
  const std::vector<bool> reduced = reduced_dims("max", x, axes);
  const ResultShape result = result_shape(x.shape(), reduced);
  const std::vector<Run> runs = runs_of(x.shape(), reduced);
  const auto groups = std::count_if(runs.begin(), runs.end(), [](Run r) { return r.reduced; });
  if (groups > 1) {
    // The reduced dimensions move to the end, in their order, so that "first" means the same.
    Axes order;
    for (bool wanted : {false, true}) {
      for (size_t d = 0; d < reduced.size(); ++d) {
        if (reduced[d] == wanted) order.push_back(static_cast<int64_t>(d));
      }
    }
    Axes last;
    for (int64_t d = static_cast<int64_t>(result.dropped.size()); d < x.rank(); ++d)
      last.push_back(d);
    return reshape(max(permute(x, order), last), result.of(keep_dims));
  }
  ReduceShape shape{x.numel(), 1, 1};
  for (size_t i = 0; i < runs.size(); ++i) {
    if (runs[i].reduced) {
      shape = {product(runs, 0, i), runs[i].size, product(runs, i + 1, runs.size())};
    }
  }
  GRAFT_CHECK(shape.axis > 0, "max: expected at least one element along axes ", axes, ", got ", x);
  const bool recording = any_requires_grad({&x});
  Tensor y(result.of(keep_dims), Dtype::f32, x.device());
  Tensor where = recording ? Tensor(y.shape(), Dtype::i64, x.device()) : Tensor();
  GRAFT_KERNEL(reduce_max, x.device())
  (y.mutable_data<float>(), recording ? where.mutable_data<int64_t>() : nullptr, x.data<float>(),
   shape);
  if (!recording) return y;
  return record(
      "max", {x}, y,
      [shape, x_shape = x.shape(), where = Saved(where)](const Tensor& g, const Needs&) -> Grads {
        Tensor dx(x_shape, Dtype::f32, g.device());
        GRAFT_KERNEL(reduce_max_grad, g.device())
        (dx.mutable_data<float>(), where.get("max").data<int64_t>(), g.data<float>(), shape);
        return {dx};
      });
}

Tensor argmax(const Tensor& x, int64_t axis) {
  const RunningOp running("argmax");
  check_float("argmax", x);
  const std::vector<bool> reduced = reduced_dims("argmax", x, {axis});
  const size_t d = static_cast<size_t>(axis < 0 ? axis + x.rank() : axis);
  ReduceShape shape{1, x.shape()[d], 1};
  for (size_t i = 0; i < d; ++i) shape.outer *= x.shape()[i];
  for (size_t i = d + 1; i < reduced.size(); ++i) shape.inner *= x.shape()[i];
  GRAFT_CHECK(shape.axis > 0, "argmax: expected at least one element along axis ", axis, ", got ",
              x);
  Tensor where(result_shape(x.shape(), reduced).dropped, Dtype::i64, x.device());
  GRAFT_KERNEL(reduce_max, x.device())
  (nullptr, where.mutable_data<int64_t>(), x.data<float>(), shape);
  return where;
}

}  // namespace graft
