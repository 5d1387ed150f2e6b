// Softmax and losses. Included by kernels.h once per backend.

// Along the middle axis of x (outer, axis, inner).
void softmax(float* y, const float* x, int64_t outer, int64_t axis, int64_t inner);
void softmax_grad(float* dx, const float* y, const float* g, int64_t outer, int64_t axis,
                  int64_t inner);
void log_softmax(float* y, const float* x, int64_t outer, int64_t axis, int64_t inner);
void log_softmax_grad(float* dx, const float* y, const float* g, int64_t outer, int64_t axis,
                      int64_t inner);

// Cross entropy of logits (rows, classes). The target is `labels` (rows), each in 0..classes-1 or
// ignore_index, or else `soft` (rows, classes) probabilities. class_weights (classes) may be null.
// Writes each row's loss and log-sum-exp, and the number that Reduction::mean divides by.
void cross_entropy(float* loss, float* log_sum_exp, float* divisor, const float* logits,
                   const int64_t* labels, const float* soft, const float* class_weights,
                   const CrossEntropyShape& shape);
// g holds one number a row, or one number for all (g_per_row false); divided by *divisor unless
// null.
void cross_entropy_grad(float* dlogits, const float* g, bool g_per_row, const float* divisor,
                        const float* logits, const float* log_sum_exp, const int64_t* labels,
                        const float* soft, const float* class_weights,
                        const CrossEntropyShape& shape);

// loss[i] = l(x[i], target[i]); delta is Huber's.
void pair_loss(PairLoss kind, float* loss, const float* x, const float* target, float delta,
               int64_t n);
// sum[0] = scale * sum of l(x[i], target[i])
void pair_loss_sum(PairLoss kind, float* sum, const float* x, const float* target, float delta,
                   float scale, int64_t n);
// dx[i] = scale * g * dl/dx, where g is one number for all unless g_per_element.
void pair_loss_grad(PairLoss kind, float* dx, const float* g, bool g_per_element, const float* x,
                    const float* target, float delta, float scale, int64_t n);

// out[0] = sum of x[i], divided by *divisor unless null.
void loss_sum(float* out, const float* x, const float* divisor, int64_t n);
