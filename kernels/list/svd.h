// Singular values. Included by kernels.h once per backend.

// x (rows, columns) = u diag(values) vt with k = min(rows, columns) values, descending; u (rows, k)
// and vt (k, columns), or both null. All are NaN where x is not finite. Vectors of a value that is
// 0 are any, or 0.
void singular_values(float* values, float* u, float* vt, const float* x, int64_t rows,
                     int64_t columns);
// dx = u diag(g) vt
void singular_values_grad(float* dx, const float* g, const float* u, const float* vt, int64_t rows,
                          int64_t columns);
