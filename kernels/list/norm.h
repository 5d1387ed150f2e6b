// Normalisation. Included by kernels.h once per backend. Statistics are three numbers: the mean,
// 1 / sqrt(variance + epsilon), and what the mean lost by rounding to float (so that
// (x - mean) - rest is exact when the mean is large against the deviation). Batch-norm takes f32 or
// bf16; layer-norm and group-norm take f32.

// Batch statistics of x (rows, channels) into stats (3, channels), and the running ones moved by
// momentum: mean, and the unbiased variance. rows >= 2.
void batch_norm_statistics(float* stats, float* running_mean, float* running_var, ConstReals x,
                           int64_t rows, int64_t channels, float momentum, float epsilon);
// The same layout from given mean and variance.
void batch_norm_frozen_statistics(float* stats, const float* mean, const float* variance,
                                  int64_t channels, float epsilon);
// y = act((x - mean) invstd weight + bias + residual); weight, bias, residual may be null.
void batch_norm_apply(Reals y, ConstReals x, ConstReals residual, const float* stats,
                      const float* weight, const float* bias, Activation activation, int64_t rows,
                      int64_t channels);
void batch_norm_grad(const BatchNormGrad& args);

// Each row of x (rows, c) normalised, then weight and bias (c) or null. stats (rows, 3): the same
// three numbers for each row.
void layer_norm(float* y, float* stats, const float* x, const float* weight, const float* bias,
                int64_t rows, int64_t c, float epsilon);
// dx, dweight and dbias may be null.
void layer_norm_grad(float* dx, float* dweight, float* dbias, const float* g, const float* x,
                     const float* stats, const float* weight, int64_t rows, int64_t c);

// x (samples, spatial, channels), statistics over spatial and the channels of a group.
// stats (samples, groups, 3): the same three numbers for each group.
void group_norm(float* y, float* stats, const float* x, const float* weight, const float* bias,
                int64_t samples, int64_t spatial, int64_t channels, int64_t groups, float epsilon);
void group_norm_grad(float* dx, float* dweight, float* dbias, const float* g, const float* x,
                     const float* stats, const float* weight, int64_t samples, int64_t spatial,
                     int64_t channels, int64_t groups);
