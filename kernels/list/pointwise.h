// Pointwise kernels and the reductions that broadcasting needs. Included by kernels.h once per backend.

// y[i] = f(x[i]); dx[i] = g[i] f'(x[i]). y may be x, dx may be g.
void unary(Unary op, UnaryParams params, float* y, const float* x, int64_t n);
void unary_grad(Unary op, UnaryParams params, float* dx, const float* x, const float* y,
                const float* g, int64_t n);
