// Reductions over the middle of (outer, axis, inner). Included by kernels.h once per backend.

// y (outer, inner) = sum over the axis, divided by `divisor` (1 for a sum; axis for a mean: NaN
// when it is 0). `partial` holds shape.partials() doubles.
void reduce_sum(float* y, const float* x, const ReduceShape& shape, double divisor,
                double* partial);
// y (outer, inner) = the largest value along the axis and `where` its first position; NaN counts as
// largest. Either may be null. shape.axis > 0.
void reduce_max(float* y, int64_t* where, const float* x, const ReduceShape& shape);
// dx (outer, axis, inner) = g at the positions `where`, 0 elsewhere.
void reduce_max_grad(float* dx, const int64_t* where, const float* g, const ReduceShape& shape);
