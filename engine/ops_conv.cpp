// Convolution: dense and grouped on the library, depthwise on our own kernels.
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/derived.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

int64_t output_size(const char* op, const char* side, int64_t in, int64_t before, int64_t after,
                    int64_t kernel, int64_t stride, int64_t dilation) {
  const int64_t reach = (kernel - 1) * dilation + 1;
  GRAFT_CHECK(in + before + after >= reach, op, ": the kernel spans ", reach, " pixels of ", side,
              " but the padded image has ", in + before + after,
              "; use a larger image, more padding or a smaller kernel");
  return (in + before + after - reach) / stride + 1;
}

ConvShape shape_of(const char* op, const Tensor& x, const Tensor& weight, const Tensor& bias,
                   const Conv2dOptions& options) {
  check_real(op, "x", x);
  check_parameter(op, "weight", weight, x);
  GRAFT_CHECK(x.rank() == 4, op, ": expected x (n, h, w, c), got ", x);
  GRAFT_CHECK(weight.rank() == 4, op, ": expected weight (out, kh, kw, c / groups), got ", weight);
  const Padding& pad = options.padding;
  GRAFT_CHECK(options.stride_height > 0 && options.stride_width > 0, op,
              ": strides must be at least 1, got ", options.stride_height, " and ",
              options.stride_width);
  GRAFT_CHECK(options.dilation_height > 0 && options.dilation_width > 0, op,
              ": dilations must be at least 1, got ", options.dilation_height, " and ",
              options.dilation_width);
  GRAFT_CHECK(pad.top >= 0 && pad.bottom >= 0 && pad.left >= 0 && pad.right >= 0, op,
              ": padding must not be negative, got ", pad.top, ", ", pad.bottom, ", ", pad.left,
              ", ", pad.right, "; slice the image instead");
  const int64_t in = x.dim(3), out = weight.dim(0), groups = options.groups;
  GRAFT_CHECK(in > 0 && out > 0 && weight.dim(1) > 0 && weight.dim(2) > 0, op,
              ": channels and kernel sizes must be at least 1, got x ", x, " and weight ", weight);
  GRAFT_CHECK(groups > 0 && in % groups == 0 && out % groups == 0, op, ": ", in, " input and ", out,
              " output channels do not divide into ", groups, " groups");
  GRAFT_CHECK(weight.dim(3) == in / groups, op, ": x has ", in, " channels, so with ", groups,
              " groups expected weight (out, kh, kw, ", in / groups, "), got ", weight);
  if (bias.defined()) {
    check_parameter(op, "bias", bias, x);
    GRAFT_CHECK(bias.shape() == Shape{out}, op, ": expected bias [", out, "], got ", bias);
  }
  ConvShape s{.batch = x.dim(0),
              .in_height = x.dim(1),
              .in_width = x.dim(2),
              .in_channels = in,
              .out_height = 0,
              .out_width = 0,
              .out_channels = out,
              .kernel_height = weight.dim(1),
              .kernel_width = weight.dim(2),
              .stride_height = options.stride_height,
              .stride_width = options.stride_width,
              .dilation_height = options.dilation_height,
              .dilation_width = options.dilation_width,
              .pad_top = pad.top,
              .pad_bottom = pad.bottom,
              .pad_left = pad.left,
              .pad_right = pad.right,
              .groups = groups,
              .dtype = x.dtype()};
  s.out_height = output_size(op, "height", s.in_height, pad.top, pad.bottom, s.kernel_height,
                             s.stride_height, s.dilation_height);
  s.out_width = output_size(op, "width", s.in_width, pad.left, pad.right, s.kernel_width,
                            s.stride_width, s.dilation_width);
  return s;
}

Tensor depthwise_memory(const ConvShape& s, Device device) {
  return Tensor({depthwise_scratch(s)}, Dtype::f32, device);
}

Tensor forward(const ConvShape& s, const Tensor& x, const Tensor& weight, const Tensor& bias,
               const Tensor& residual, Activation activation, bool keep) {
  Tensor y({s.batch, s.out_height, s.out_width, s.out_channels}, s.dtype, x.device());
  if (y.numel() == 0) return y;
  if (s.depthwise()) {
    Tensor scratch = depthwise_memory(s, x.device());
    GRAFT_KERNEL(depthwise_forward, x.device())
    (s, y.mutable_reals(), x.reals(), weight.data<float>(), data_or_null(bias),
     residual.defined() ? Activation::none : activation, scratch.mutable_data<float>());
    if (!residual.defined()) return y;
    // No network adds a residual to a depthwise convolution: two more passes are good enough.
    y = add(y, residual);
    if (activation == Activation::relu) return relu(y);
    return activation == Activation::relu6 ? relu6(y) : y;
  }
  const LibraryPlan plan = GRAFT_KERNEL(conv_forward_plan, x.device())(
      s, {bias.defined(), residual.defined(), activation});
  const LibraryWeight packed = library_weight(weight, plan, keep);
  const Storage scratch(plan.scratch_bytes, x.device());
  GRAFT_KERNEL(conv_forward, x.device())
  (plan, y.mutable_reals(), x.reals(), packed.data, data_or_null(bias), residual.reals(),
   scratch.data());
  return y;
}

Tensor backward_data(const ConvShape& s, const Tensor& g, const Tensor& weight, bool keep) {
  Tensor dx({s.batch, s.in_height, s.in_width, s.in_channels}, s.dtype, g.device());
  if (dx.numel() == 0) return dx;
  if (s.depthwise()) {
    Tensor scratch = depthwise_memory(s, g.device());
    GRAFT_KERNEL(depthwise_backward_data, g.device())
    (s, dx.mutable_reals(), g.reals(), weight.data<float>(), scratch.mutable_data<float>());
    return dx;
  }
  const LibraryPlan plan = GRAFT_KERNEL(conv_backward_data_plan, g.device())(s);
  const LibraryWeight packed = library_weight(weight, plan, keep);
  const Storage scratch(plan.scratch_bytes, g.device());
  GRAFT_KERNEL(conv_backward_data, g.device())
  (plan, dx.mutable_reals(), g.reals(), packed.data, scratch.data());
  return dx;
}

Tensor backward_weight(const ConvShape& s, const Tensor& g, const Tensor& x) {
  const Shape shape{s.out_channels, s.kernel_height, s.kernel_width, s.in_channels / s.groups};
  if (g.numel() == 0) return Tensor::zeros(shape, Dtype::f32, g.device());
  Tensor dw(shape, Dtype::f32, g.device());
  if (s.depthwise()) {
    Tensor scratch = depthwise_memory(s, g.device());
    GRAFT_KERNEL(depthwise_backward_weight, g.device())
    (s, dw.mutable_data<float>(), x.reals(), g.reals(), scratch.mutable_data<float>());
    return dw;
  }
  const LibraryPlan plan = GRAFT_KERNEL(conv_backward_weight_plan, g.device())(s);
  const Storage scratch(plan.scratch_bytes, g.device());
  GRAFT_KERNEL(conv_backward_weight, g.device())
  (plan, dw.mutable_data<float>(), x.reals(), g.reals(), scratch.data());
  return dw;
}

}  // namespace

Padding same_padding(int64_t in_height, int64_t in_width, int64_t kernel_height,
                     int64_t kernel_width, int64_t stride_height, int64_t stride_width,
                     int64_t dilation_height, int64_t dilation_width) {
  GRAFT_CHECK(stride_height > 0 && stride_width > 0 && kernel_height > 0 && kernel_width > 0 &&
                  dilation_height > 0 && dilation_width > 0,
              "same_padding: kernel, stride and dilation must be at least 1");
  const auto total = [](int64_t in, int64_t kernel, int64_t stride, int64_t dilation) {
    const int64_t out = (in + stride - 1) / stride;
    return std::max<int64_t>(0, (out - 1) * stride + (kernel - 1) * dilation + 1 - in);
  };
  const int64_t height = total(in_height, kernel_height, stride_height, dilation_height);
  const int64_t width = total(in_width, kernel_width, stride_width, dilation_width);
  return {height / 2, height - height / 2, width / 2, width - width / 2};
}

Tensor conv2d(const Tensor& x, const Tensor& weight, const Tensor& bias,
              const Conv2dOptions& options) {
  const RunningOp running("conv2d");
  const ConvShape s = shape_of("conv2d", x, weight, bias, options);
  // A weight that is being trained changes before its packed form could be used again.
  const bool trained = grad_enabled() && weight.requires_grad();
  Tensor y = forward(s, x, weight, bias, Tensor(), Activation::none, !trained);
  if (!any_requires_grad({&x, &weight, &bias})) return y;
  return record("conv2d", {x, weight, bias}, y,
                [s, trained, x = Saved(weight.requires_grad() ? x : Tensor()),
                 weight = Saved(x.requires_grad() ? weight : Tensor())](
                    const Tensor& g, const Needs& needs) -> Grads {
                  Grads grads(3);
                  if (needs[0]) grads[0] = backward_data(s, g, weight.get("conv2d"), !trained);
                  if (needs[1]) grads[1] = backward_weight(s, g, x.get("conv2d"));
                  if (needs[2]) grads[2] = sum(cast(g, Dtype::f32), {0, 1, 2});
                  return grads;
                });
}

Tensor conv2d_fused(const Tensor& x, const Tensor& weight, const Tensor& bias,
                    const Conv2dOptions& options, Activation activation, const Tensor& residual) {
  const RunningOp running("conv2d_fused");
  const ConvShape s = shape_of("conv2d_fused", x, weight, bias, options);
  GRAFT_CHECK(
      !any_requires_grad({&x, &weight, &bias, &residual}),
      "conv2d_fused: is for inference and has no gradient; put the call in a NoGrad scope or "
      "use conv2d");
  if (residual.defined()) {
    check_like("conv2d_fused", "residual", residual, x);
    const Shape expected{s.batch, s.out_height, s.out_width, s.out_channels};
    GRAFT_CHECK(residual.shape() == expected, "conv2d_fused: expected a residual of ", expected,
                ", got ", residual);
  }
  return forward(s, x, weight, bias, residual, activation, true);
}

}  // namespace graft
