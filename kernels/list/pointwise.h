// Pointwise kernels, f32 or bf16. Included by kernels.h once per backend.

// y[i] = f(x[i]). y may be x.
void unary(Unary op, UnaryParams params, Reals y, ConstReals x, int64_t n);
// dx[i] = g[i] f'(x[i], y[i]). x and y may be null where uses_of(op) says that f' does not read
// them. dx may be g.
void unary_grad(Unary op, UnaryParams params, Reals dx, ConstReals x, ConstReals y, ConstReals g,
                int64_t n);

// out[i] = f(a[i], b[i]). out may be a or b.
void binary(Binary op, Reals out, ConstReals a, ConstReals b, int64_t n);
// The same with broadcasting; out is contiguous and apart from a and b.
void binary_broadcast(Binary op, Reals out, ConstReals a, ConstReals b,
                      const BroadcastShape& shape);
// The gradients before they are summed to their own shapes: da[i] = g[i] df/da, db[i] = g[i] df/db,
// each skipped where null. da, db and g have the broadcast shape; da or db may be g.
void binary_grad(Binary op, Reals da, Reals db, ConstReals a, ConstReals b, ConstReals g,
                 const BroadcastShape& shape);
