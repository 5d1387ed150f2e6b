// NumPy broadcasting, worked out once per call for the kernels.
#pragma once

#include "engine/ops.h"
#include "kernels/types.h"

namespace graft {

// The shape of the result. Throws naming `op` and both shapes where they do not fit.
Shape broadcast_shape(const char* op, const Shape& a, const Shape& b);
// How shapes a and b lie over a result of shape `out`; neighbouring dimensions that behave alike
// are merged. Throws when more than kMaxBroadcastRank remain.
BroadcastShape broadcast_plan(const char* op, const Shape& out, const Shape& a, const Shape& b);
// The sum of x over the dimensions along which a tensor of `shape` was repeated: the way a gradient
// goes back through broadcasting. x itself where nothing was repeated.
Tensor sum_to(const Tensor& x, const Shape& shape);

}  // namespace graft
