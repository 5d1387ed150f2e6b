// Chains of a transformer block in one pass. Included by kernels.h once per backend. x, residual
// and sum are (rows, c); bias, weight and shift (c) or null; word i of the key decides over element
// i, as in dropout(): nothing is stored, the backward pass asks the key again.

// y = dropout(gelu(x + bias)).
void bias_gelu_dropout(float* y, const float* x, const float* bias, float probability, RngKey key,
                       int64_t rows, int64_t c);
// dx, whose column sums are the bias's gradient. dx may be g.
void bias_gelu_dropout_grad(float* dx, const float* g, const float* x, const float* bias,
                            float probability, RngKey key, int64_t rows, int64_t c);

// sum = dropout(x + bias) + residual, and layer_norm() of it into y and stats.
void dropout_add_layer_norm(float* y, float* sum, float* stats, const float* x, const float* bias,
                            const float* residual, const float* weight, const float* shift,
                            float probability, RngKey key, int64_t rows, int64_t c, float epsilon);
// dsum is the residual's gradient, and the column sums of dx are the bias's. dx, dweight and dshift
// may be null; so may dsum where dx is.
void dropout_add_layer_norm_grad(float* dx, float* dsum, float* dweight, float* dshift,
                                 const float* g, const float* sum, const float* stats,
                                 const float* weight, float probability, RngKey key, int64_t rows,
                                 int64_t c);
