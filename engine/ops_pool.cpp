// Pooling over NHWC images.
#include "engine/autograd.h"
#include "engine/checks.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

void check_images(const char* op, const Tensor& x) {
  check_real(op, "x", x);
  GRAFT_CHECK(x.rank() == 4, op, ": expected images (n, h, w, c), got ", x);
}

PoolShape shape_of(const char* op, const Tensor& x, const Pool2dOptions& options) {
  check_images(op, x);
  const Padding& pad = options.padding;
  GRAFT_CHECK(options.kernel_height > 0 && options.kernel_width > 0 && options.stride_height > 0 &&
                  options.stride_width > 0,
              op, ": kernel and stride must be at least 1, got ", options.kernel_height, " x ",
              options.kernel_width, " and ", options.stride_height, " x ", options.stride_width);
  // A wider border would hold windows without a single pixel.
  const int64_t most_height = options.kernel_height - 1, most_width = options.kernel_width - 1;
  GRAFT_CHECK(pad.top >= 0 && pad.top <= most_height && pad.bottom >= 0 &&
                  pad.bottom <= most_height && pad.left >= 0 && pad.left <= most_width &&
                  pad.right >= 0 && pad.right <= most_width,
              op, ": expected padding from 0 to kernel - 1 on each side, got ", pad.top, ", ",
              pad.bottom, ", ", pad.left, ", ", pad.right, " for a kernel of ",
              options.kernel_height, " x ", options.kernel_width);
  const int64_t height = x.dim(1) + pad.top + pad.bottom, width = x.dim(2) + pad.left + pad.right;
  GRAFT_CHECK(x.dim(1) > 0 && x.dim(2) > 0 && height >= options.kernel_height &&
                  width >= options.kernel_width,
              op, ": the kernel of ", options.kernel_height, " x ", options.kernel_width,
              " is larger than the padded image of ", height, " x ", width,
              "; use a larger image or a smaller kernel");
  return {.batch = x.dim(0),
          .in_height = x.dim(1),
          .in_width = x.dim(2),
          .channels = x.dim(3),
          .out_height = (height - options.kernel_height) / options.stride_height + 1,
          .out_width = (width - options.kernel_width) / options.stride_width + 1,
          .kernel_height = options.kernel_height,
          .kernel_width = options.kernel_width,
          .stride_height = options.stride_height,
          .stride_width = options.stride_width,
          .pad_top = pad.top,
          .pad_bottom = pad.bottom,
          .pad_left = pad.left,
          .pad_right = pad.right,
          .count_include_pad = options.count_include_pad};
}

Tensor pooled(const PoolShape& s, Device device) {
  return Tensor({s.batch, s.out_height, s.out_width, s.channels}, Dtype::f32, device);
}
Tensor image(const PoolShape& s, Device device) {
  return Tensor({s.batch, s.in_height, s.in_width, s.channels}, Dtype::f32, device);
}

}  // namespace

Tensor max_pool2d(const Tensor& x, const Pool2dOptions& options) {
  const RunningOp running("max_pool2d");
  const PoolShape s = shape_of("max_pool2d", x, options);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x, [&](const Tensor& wide) { return max_pool2d(wide, options); });
  }
  Tensor y = pooled(s, x.device());
  GRAFT_KERNEL(max_pool, x.device())
  (s, y.mutable_data<float>(), x.data<float>());
  if (!any_requires_grad({&x})) return y;
  return record("max_pool2d", {x}, y, [s, x = Saved(x)](const Tensor& g, const Needs&) -> Grads {
    Tensor dx = image(s, g.device());
    GRAFT_KERNEL(max_pool_grad, g.device())
    (s, dx.mutable_data<float>(), x.get("max_pool2d").data<float>(), g.data<float>());
    return {dx};
  });
}

Tensor avg_pool2d(const Tensor& x, const Pool2dOptions& options) {
  const RunningOp running("avg_pool2d");
  const PoolShape s = shape_of("avg_pool2d", x, options);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(x, [&](const Tensor& wide) { return avg_pool2d(wide, options); });
  }
  Tensor y = pooled(s, x.device());
  GRAFT_KERNEL(avg_pool, x.device())
  (s, y.mutable_data<float>(), x.data<float>());
  return record("avg_pool2d", {x}, y, [s](const Tensor& g, const Needs&) -> Grads {
    Tensor dx = image(s, g.device());
    GRAFT_KERNEL(avg_pool_grad, g.device())
    (s, dx.mutable_data<float>(), g.data<float>());
    return {dx};
  });
}

Tensor adaptive_avg_pool2d(const Tensor& x, int64_t out_height, int64_t out_width) {
  const RunningOp running("adaptive_avg_pool2d");
  check_images("adaptive_avg_pool2d", x);
  GRAFT_CHECK(out_height > 0 && out_width > 0 && x.dim(1) > 0 && x.dim(2) > 0,
              "adaptive_avg_pool2d: image and output sizes must be at least 1, got ", x, " to ",
              out_height, " x ", out_width);
  if (x.dtype() == Dtype::bf16) {
    return through_f32(
        x, [&](const Tensor& wide) { return adaptive_avg_pool2d(wide, out_height, out_width); });
  }
  const PoolShape s{.batch = x.dim(0),
                    .in_height = x.dim(1),
                    .in_width = x.dim(2),
                    .channels = x.dim(3),
                    .out_height = out_height,
                    .out_width = out_width,
                    .kernel_height = 0,
                    .kernel_width = 0};
  Tensor y = pooled(s, x.device());
  GRAFT_KERNEL(adaptive_avg_pool, x.device())
  (s, y.mutable_data<float>(), x.data<float>());
  return record("adaptive_avg_pool2d", {x}, y, [s](const Tensor& g, const Needs&) -> Grads {
    Tensor dx = image(s, g.device());
    GRAFT_KERNEL(adaptive_avg_pool_grad, g.device())
    (s, dx.mutable_data<float>(), g.data<float>());
    return {dx};
  });
}

}  // namespace graft
