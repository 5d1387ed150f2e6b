// Fused optimizer passes over `count` tensors. Included by kernels.h once per backend. The list
// itself is in host memory. `clip` is one number in the backend's memory that each gradient is
// multiplied with, rounded by itself, before it is used; null: 1.

// SGD of PyTorch: d = g + weight_decay p; m = momentum m + d; p -= learning_rate (nesterov ? d +
// momentum m : m).
void sgd_step(const OptimTensor* tensors, int64_t count, OptimRates rates, const float* clip,
              float momentum, float weight_decay, bool nesterov);
// AdamW: p -= decay p; m, v averages of g and g^2; p -= step_size m / (sqrt(v) root_scale +
// epsilon).
void adamw_step(const OptimTensor* tensors, int64_t count, OptimRates rates, const float* clip,
                float beta1, float beta2, float epsilon);
// p *= factor.
void scale_tensors(const OptimTensor* tensors, int64_t count, float factor);
// *sum = sum of g^2 over all tensors; in host memory.
void gradient_square_sum(double* sum, const OptimTensor* tensors, int64_t count);
// *factor = clip_factor_of() that sum (kernels/clip.h); in the backend's memory.
void clip_factor(float* factor, const OptimTensor* tensors, int64_t count, float max_norm);
