// Pointwise kernels. Included by kernels.h once per backend.

// y[i] = f(x[i]). y may be x.
void unary(Unary op, UnaryParams params, float* y, const float* x, int64_t n);
// dx[i] = g[i] f'(x[i], y[i]). x and y may be null where uses_of(op) says that f' does not read
// them. dx may be g.
void unary_grad(Unary op, UnaryParams params, float* dx, const float* x, const float* y,
                const float* g, int64_t n);

// out[i] = f(a[i], b[i]). out may be a or b.
void binary(Binary op, float* out, const float* a, const float* b, int64_t n);
// The same with broadcasting; out is contiguous and apart from a and b.
void binary_broadcast(Binary op, float* out, const float* a, const float* b,
                      const BroadcastShape& shape);
// The gradients before they are summed to their own shapes: da[i] = g[i] df/da, db[i] = g[i] df/db,
// each skipped where null. da, db and g have the broadcast shape; da or db may be g.
void binary_grad(Binary op, float* da, float* db, const float* a, const float* b, const float* g,
                 const BroadcastShape& shape);
