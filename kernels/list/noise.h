// Random masks. Included by kernels.h once per backend. Nothing is stored: the backward pass calls
// the same function with the gradient.

// y[i] = x[i] / (1 - probability) where word i of the key says "keep", else 0. y may be x.
void dropout(float* y, const float* x, float probability, RngKey key, int64_t n);
// The same for whole rows of x (rows, width): word r of the key decides over row r.
void drop_path(float* y, const float* x, float probability, RngKey key, int64_t rows,
               int64_t width);
