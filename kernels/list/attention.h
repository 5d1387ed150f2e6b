// Attention (Vaswani et al. 2017). Included by kernels.h once per backend. Layouts: attention.h.
// depth and width at most kMostAttentionDepth on CUDA.

// y = softmax(q k^T scale + mask) v, and the logarithm of each row's sum of exponentials (null:
// not wanted). Without keys y is 0; a row whose scores are all -infinity is NaN.
void attention_forward(float* y, float* log_sum_exp, const AttentionInputs<float>& in);
// The probabilities are made again from log_sum_exp.
void attention_backward(const AttentionGrad<float>& grad, const AttentionInputs<float>& in);
