// Pooling over NHWC images. Included by kernels.h once per backend.

// Largest value of each window; padding counts as -infinity, NaN wins.
void max_pool(const PoolShape& shape, float* y, const float* x);
// dx: the gradient of each window at its first largest value (row by row), found again from x.
void max_pool_grad(const PoolShape& shape, float* dx, const float* x, const float* g);

// Mean of each window; with count_include_pad padding counts as zeros, else it does not count.
void avg_pool(const PoolShape& shape, float* y, const float* x);
void avg_pool_grad(const PoolShape& shape, float* dx, const float* g);

// Mean over rows floor(i in / out) .. ceil((i + 1) in / out) and columns likewise; of `shape` only
// batch, sizes and channels count.
void adaptive_avg_pool(const PoolShape& shape, float* y, const float* x);
void adaptive_avg_pool_grad(const PoolShape& shape, float* dx, const float* g);
