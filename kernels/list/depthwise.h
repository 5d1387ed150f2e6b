// Depthwise convolution: groups == in_channels == out_channels. NHWC images of the shape's dtype,
// filters (c, kh, kw) in f32.
// Included by kernels.h once per backend.
//
// scratch: depthwise_scratch(shape) floats (plan.h), contents arbitrary.

// y = act(conv(x) + bias); bias may be null.
void depthwise_forward(const ConvShape& shape, Reals y, ConstReals x, const float* weight,
                       const float* bias, Activation activation, float* scratch);
void depthwise_backward_data(const ConvShape& shape, Reals dx, ConstReals g, const float* weight,
                             float* scratch);
void depthwise_backward_weight(const ConvShape& shape, float* dw, ConstReals x, ConstReals g,
                               float* scratch);
