// Depthwise convolution: groups == in_channels == out_channels. NHWC images, filters (c, kh, kw).
// Included by kernels.h once per backend.
//
// scratch: depthwise_scratch(shape) floats (plan.h), contents arbitrary.

// y = act(conv(x) + bias); bias may be null.
void depthwise_forward(const ConvShape& shape, float* y, const float* x, const float* weight,
                       const float* bias, Activation activation, float* scratch);
void depthwise_backward_data(const ConvShape& shape, float* dx, const float* g, const float* weight,
                             float* scratch);
void depthwise_backward_weight(const ConvShape& shape, float* dw, const float* x, const float* g,
                               float* scratch);
