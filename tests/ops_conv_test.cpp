// conv2d, conv2d_fused and same_padding against a scatter reference in double.
#include <omp.h>

#include "kernels/kernels.h"
#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

// Every input pixel is sent to the outputs that it reaches: the ops gather.
Array scatter_conv(const Array& x, const Array& w, const Array* bias, const Conv2dOptions& o) {
  const int64_t n = x.shape[0], h = x.shape[1], wd = x.shape[2], c = x.shape[3];
  const int64_t out = w.shape[0], kh = w.shape[1], kw = w.shape[2], depth = w.shape[3];
  const Padding& p = o.padding;
  const int64_t oh =
      (h + p.top + p.bottom - (kh - 1) * o.dilation_height - 1) / o.stride_height + 1;
  const int64_t ow = (wd + p.left + p.right - (kw - 1) * o.dilation_width - 1) / o.stride_width + 1;
  Array y({n, oh, ow, out});
  if (bias != nullptr) {
    for (size_t i = 0; i < y.values.size(); ++i) {
      y.values[i] = bias->values[i % static_cast<size_t>(out)];
    }
  }
  for (int64_t i = 0; i < n * h * wd * c; ++i) {
    const int64_t channel = i % c, col = i / c % wd, row = i / c / wd % h, image = i / c / wd / h;
    const int64_t group = channel / depth;
    for (int64_t a = 0; a < kh; ++a) {
      const int64_t up = row + p.top - a * o.dilation_height;
      if (up < 0 || up % o.stride_height != 0 || up / o.stride_height >= oh) continue;
      for (int64_t b = 0; b < kw; ++b) {
        const int64_t left = col + p.left - b * o.dilation_width;
        if (left < 0 || left % o.stride_width != 0 || left / o.stride_width >= ow) continue;
        const int64_t per_group = out / o.groups;
        for (int64_t k = group * per_group; k < (group + 1) * per_group; ++k) {
          const int64_t to =
              ((image * oh + up / o.stride_height) * ow + left / o.stride_width) * out + k;
          const int64_t tap = ((k * kh + a) * kw + b) * depth + channel % depth;
          y.values[static_cast<size_t>(to)] +=
              x.values[static_cast<size_t>(i)] * w.values[static_cast<size_t>(tap)];
        }
      }
    }
  }
  return y;
}

void conv_row(const std::string& op, const Shape& x, const Shape& weight, bool bias,
              const Conv2dOptions& options) {
  CAPTURE(text(x, " ", weight));
  std::vector<Input> inputs{real(x), real(weight).parameter()};
  if (bias) inputs.push_back(real({weight[0]}).parameter());
  const int64_t length = weight[1] * weight[2] * weight[3];
  // Depthwise is ours and does not depend on threads; the library's backward-weights does.
  const bool depthwise = options.groups == x[3] && weight[0] == x[3];
  Options settings(accumulating(std::max(length, x[0] * x[1] * x[2])));
  if (!depthwise) settings = settings.with_threads_mattering();
  op_row(
      op, inputs,
      [&](const Tensors& in) { return conv2d(in[0], in[1], bias ? in[2] : Tensor(), options); },
      [&](const Arrays& in) {
        return scatter_conv(in[0], in[1], bias ? &in[2] : nullptr, options);
      },
      settings);
}

void depthwise_row(const std::string& op, int64_t channels, int64_t size, int64_t kernel,
                   Conv2dOptions options, int64_t batch = 2) {
  options.groups = channels;
  conv_row(op, {batch, size, size + 1, channels}, {channels, kernel, kernel, 1}, false, options);
}

Conv2dOptions stride_and_padding(int64_t stride, Padding padding, int64_t dilation = 1,
                                 int64_t groups = 1) {
  return {stride, stride, dilation, dilation, padding, groups};
}

}  // namespace

TEST_CASE("dense convolution") {
  for (int64_t channels : {1, 3, 7, 16, 17}) {
    conv_row("conv2d", {2, 6, 5, channels}, {9, 3, 3, channels}, true,
             stride_and_padding(1, Padding::symmetric(1, 1)));
  }
  conv_row("conv2d", {1, 1, 1, 1}, {1, 1, 1, 1}, true, {});
  conv_row("conv2d", {0, 5, 5, 3}, {4, 3, 3, 3}, true, {});
  conv_row("conv2d", {2, 9, 8, 3}, {8, 3, 3, 3}, false, stride_and_padding(2, {0, 1, 0, 1}));
  conv_row("conv2d", {2, 9, 7, 5}, {6, 3, 2, 5}, true, stride_and_padding(1, {2, 0, 1, 3}, 2));
  conv_row("conv2d", {1, 7, 7, 8}, {12, 3, 3, 2}, true,
           stride_and_padding(1, Padding::symmetric(1, 1), 1, 4));
  conv_row("conv2d", {2, 5, 5, 6}, {12, 3, 3, 1}, true,
           stride_and_padding(2, Padding::symmetric(1, 1), 1, 6));  // channel multiplier 2
  conv_row("conv2d", {1, 15, 15, 3}, {5, 7, 7, 3}, false,
           stride_and_padding(2, Padding::symmetric(3, 3)));
}

TEST_CASE("1x1 convolution: as a convolution and, from 64 channels on, as a product") {
  for (int64_t channels : {24, 63, 64, 65}) {
    conv_row("conv2d", {2, 4, 3, channels}, {10, 1, 1, channels}, false, {});
  }
  conv_row("conv2d", {2, 5, 5, 64}, {7, 1, 1, 64}, true, stride_and_padding(2, {}));
  conv_row("conv2d", {1, 3, 3, 64}, {7, 1, 1, 64}, true,
           stride_and_padding(1, Padding::symmetric(1, 1)));
}

TEST_CASE("dense convolution: channels in fours, strides beside dilations, groups") {
  conv_row("conv2d", {2, 4, 3, 8}, {12, 1, 1, 8}, true, {});
  conv_row("conv2d", {1, 5, 6, 8}, {36, 3, 3, 8}, true,
           stride_and_padding(1, Padding::symmetric(1, 1)));
  conv_row("conv2d", {2, 4, 3, 8}, {8, 1, 1, 4}, true, stride_and_padding(1, {}, 1, 2));
  conv_row("conv2d", {1, 6, 7, 16}, {8, 3, 3, 8}, false,
           stride_and_padding(2, Padding::symmetric(1, 1), 1, 2));
  // Pixels that few taps reach, or none: a stride that the dilation divides into or shares a factor
  // with, kernels smaller than the stride, images smaller than it.
  for (int64_t in : {3, 4}) {
    for (int64_t stride : {2, 3, 4}) {
      for (int64_t dilation : {1, 2, 3}) {
        conv_row("conv2d", {2, 9, 8, in}, {6, 3, 2, in}, false,
                 stride_and_padding(stride, {2, 1, 0, 3}, dilation));
      }
      conv_row("conv2d", {1, 7, 6, in}, {5, 1, 1, in}, false, stride_and_padding(stride, {}));
    }
  }
  conv_row("conv2d", {1, 1, 2, 4}, {3, 2, 2, 4}, true, stride_and_padding(3, {1, 2, 1, 0}));
  conv_row("conv2d", {2, 8, 9, 4}, {3, 2, 3, 4}, true, {3, 2, 1, 2, {1, 0, 2, 1}, 1});
}

TEST_CASE("dense convolution: channels in eights") {
  conv_row("conv2d", {2, 5, 3, 16}, {24, 1, 1, 16}, true, {});
  conv_row("conv2d", {2, 5, 6, 16}, {24, 3, 3, 16}, true,
           stride_and_padding(1, Padding::symmetric(1, 1)));
  conv_row("conv2d", {1, 9, 8, 24}, {8, 3, 2, 24}, false, stride_and_padding(2, {2, 1, 0, 3}, 3));
  conv_row("conv2d", {1, 6, 7, 16}, {32, 3, 3, 8}, true,
           stride_and_padding(2, Padding::symmetric(1, 1), 1, 2));
}

TEST_CASE("more than one thread's share") {
  conv_row("conv2d", {4, 14, 14, 20}, {24, 3, 3, 20}, false,
           stride_and_padding(1, Padding::symmetric(1, 1)));
}

TEST_CASE("depthwise convolution: channel counts around vector widths") {
  for (int64_t channels : {1, 2, 4, 7, 8, 9, 15, 16, 17, 24, 33, 36}) {
    depthwise_row("conv2d", channels, 5, 3, stride_and_padding(1, Padding::symmetric(1, 1)));
    depthwise_row("conv2d", channels, 6, 5, stride_and_padding(2, {1, 2, 1, 2}), 1);
  }
}

TEST_CASE("depthwise convolution: widths around the tiles, strides, padding, dilation") {
  for (int64_t size : {1, 2, 3, 4, 6, 7, 8, 13, 14, 15, 22}) {
    for (int64_t stride : {1, 2}) {
      depthwise_row("conv2d", 16, size, 3, stride_and_padding(stride, {1, 1, 1, 1}), 1);
      depthwise_row("conv2d", 16, size, 5, stride_and_padding(stride, {2, 2, 2, 2}), 1);
      depthwise_row("conv2d", 17, size, 3, stride_and_padding(stride, {0, 2, 0, 2}), 1);
    }
  }
  for (int64_t stride : {1, 2, 3, 4}) {
    for (int64_t dilation : {1, 2, 3}) {
      depthwise_row("conv2d", 17, 9, 3, stride_and_padding(stride, {3, 1, 2, 4}, dilation), 1);
    }
  }
  depthwise_row("conv2d", 16, 6, 1, {});
  depthwise_row("conv2d", 16, 6, 1, stride_and_padding(3, {}));
  depthwise_row("conv2d", 16, 6, 2, stride_and_padding(2, {}));
  depthwise_row("conv2d", 16, 9, 7, stride_and_padding(1, {3, 3, 3, 3}));
  depthwise_row("conv2d", 16, 3, 3, stride_and_padding(1, {4, 5, 6, 4}));  // rows of padding only
  depthwise_row("conv2d", 24, 20, 3, stride_and_padding(1, {1, 1, 1, 1}), 6);  // many threads
  depthwise_row("conv2d", 24, 20, 5, stride_and_padding(2, {1, 2, 1, 2}), 6);
  conv_row("conv2d", {1, 7, 8, 16}, {16, 3, 5, 1}, true,
           stride_and_padding(1, {1, 1, 2, 2}, 1, 16));
  conv_row("conv2d", {1, 7, 8, 16}, {16, 7, 5, 1}, true,
           stride_and_padding(2, {3, 3, 2, 2}, 1, 16));
  conv_row("conv2d", {0, 7, 8, 16}, {16, 3, 3, 1}, true, stride_and_padding(1, {}, 1, 16));
  Conv2dOptions mixed{1, 2, 2, 1, {2, 2, 1, 1}, 16};
  conv_row("conv2d", {2, 7, 8, 16}, {16, 3, 3, 1}, true, mixed);
}

TEST_CASE("every instruction set computes depthwise convolution alike") {
  const ConvShape s{.batch = 2,
                    .in_height = 9,
                    .in_width = 11,
                    .in_channels = 25,
                    .out_height = 5,
                    .out_width = 6,
                    .out_channels = 25,
                    .kernel_height = 5,
                    .kernel_width = 5,
                    .stride_height = 2,
                    .stride_width = 2,
                    .pad_top = 2,
                    .pad_bottom = 2,
                    .pad_left = 2,
                    .pad_right = 2,
                    .groups = 25};
  const Tensor x = normal({2, 9, 11, 25}, 0, 1, {1, 0, 0}),
               g = normal({2, 5, 6, 25}, 0, 1, {2, 0, 0});
  const Tensor w = normal({25, 5, 5, 1}, 0, 1, {3, 0, 0});
  Tensor scratch({depthwise_scratch(s)});
  Conv2dOptions options = stride_and_padding(2, Padding::symmetric(2, 2), 1, 25);
  const Array expected = scatter_conv(to_array(x), to_array(w), nullptr, options);
  const auto check = [&](auto& forward, auto& backward_data, auto& backward_weight) {
    Tensor y = Tensor({2, 5, 6, 25}), dx = empty_like(x), dw = empty_like(w);
    forward(s, y.mutable_data<float>(), x.data<float>(), w.data<float>(), nullptr, Activation::none,
            scratch.mutable_data<float>());
    CHECK(compare(to_array(y), expected, 1e-5, 1e-5) == "");
    backward_data(s, dx.mutable_data<float>(), g.data<float>(), w.data<float>(),
                  scratch.mutable_data<float>());
    backward_weight(s, dw.mutable_data<float>(), x.data<float>(), g.data<float>(),
                    scratch.mutable_data<float>());
    // <g, conv(x, w)> is linear in x and in w: both gradients must give it back.
    const auto dot = [](const Tensor& a, const Tensor& b) {
      const Array p = to_array(a), q = to_array(b);
      double total = 0;
      for (size_t i = 0; i < p.values.size(); ++i) total += p.values[i] * q.values[i];
      return total;
    };
    CHECK(dot(dx, x) == doctest::Approx(dot(g, y)).epsilon(1e-5));
    CHECK(dot(dw, w) == doctest::Approx(dot(g, y)).epsilon(1e-5));
  };
  check(cpu::avx2::depthwise_forward, cpu::avx2::depthwise_backward_data,
        cpu::avx2::depthwise_backward_weight);
  if (cpu::use_avx512()) {
    check(cpu::avx512::depthwise_forward, cpu::avx512::depthwise_backward_data,
          cpu::avx512::depthwise_backward_weight);
  }
}

namespace {
void fused_row(const std::string& op, const Shape& x, const Shape& weight, bool bias, bool residual,
               Activation activation, const Conv2dOptions& options) {
  CAPTURE(text(x, " ", weight));
  std::vector<Input> inputs{real(x), real(weight)};
  if (bias) inputs.push_back(real({weight[0]}));
  const Array shape = scatter_conv(Array(x), Array(weight), nullptr, options);
  if (residual) inputs.push_back(real(shape.shape));
  op_row(
      op, inputs,
      [&](const Tensors& in) {
        NoGrad no_grad;
        return conv2d_fused(in[0], in[1], bias ? in[2] : Tensor(), options, activation,
                            residual ? in.back() : Tensor());
      },
      [&](const Arrays& in) {
        Array y = scatter_conv(in[0], in[1], bias ? &in[2] : nullptr, options);
        for (size_t i = 0; i < y.values.size(); ++i) {
          if (residual) y.values[i] += in.back().values[i];
          if (activation != Activation::none) y.values[i] = std::max(0.0, y.values[i]);
          if (activation == Activation::relu6) y.values[i] = std::min(6.0, y.values[i]);
        }
        return y;
      },
      Options(accumulating(weight[1] * weight[2] * weight[3])).without_gradients());
}
}  // namespace

TEST_CASE("conv2d_fused: bias, residual and activation") {
  const Conv2dOptions same = stride_and_padding(1, Padding::symmetric(1, 1));
  Conv2dOptions depthwise = same;
  depthwise.groups = 17;
  for (Activation activation : {Activation::none, Activation::relu, Activation::relu6}) {
    for (bool bias : {false, true}) {
      for (bool residual : {false, true}) {
        fused_row("conv2d_fused", {2, 6, 5, 17}, {9, 3, 3, 17}, bias, residual, activation, same);
        fused_row("conv2d_fused", {2, 6, 5, 17}, {9, 1, 1, 17}, bias, residual, activation, {});
        fused_row("conv2d_fused", {2, 4, 5, 16}, {8, 3, 3, 16}, bias, residual, activation, same);
        fused_row("conv2d_fused", {2, 6, 5, 17}, {17, 3, 3, 1}, bias, residual, activation,
                  depthwise);
      }
    }
  }
  fused_row("conv2d_fused", {0, 6, 5, 3}, {4, 3, 3, 3}, true, true, Activation::relu, same);
  op_error("conv2d_fused", "has no gradient", [] {
    Tensor w = Tensor::zeros({1, 1, 1, 1});
    w.set_requires_grad();
    conv2d_fused(Tensor::zeros({1, 1, 1, 1}), w, Tensor(), {}, Activation::none);
  });
  op_error("conv2d_fused", "expected a residual of [1, 2, 2, 1], got f32[1, 2, 1, 1]", [] {
    conv2d_fused(Tensor::zeros({1, 2, 2, 1}), Tensor::zeros({1, 1, 1, 1}), Tensor(), {},
                 Activation::none, Tensor::zeros({1, 2, 1, 1}));
  });
}

TEST_CASE("packed weights follow in-place changes") {
  NoGrad no_grad;
  const Tensor x = normal({2, 8, 8, 32}, 0, 1, {1, 0, 0});
  Tensor w = normal({48, 3, 3, 32}, 0, 1, {2, 0, 0});
  const Conv2dOptions options = stride_and_padding(1, Padding::symmetric(1, 1));
  conv2d(x, w, Tensor(), options);
  const Tensor changed = normal({48, 3, 3, 32}, 0, 1, {3, 0, 0});
  w.copy_from(changed);
  const Tensor y = conv2d(x, w, Tensor(), options);
  CHECK(compare(to_array(y), scatter_conv(to_array(x), to_array(changed), nullptr, options), 1e-4,
                1e-4) == "");
}

TEST_CASE("the backward pass skips what is not wanted and saves only what it needs") {
  Tensor x = normal({2, 8, 8, 8}, 0, 1, {1, 0, 0}), w = normal({8, 3, 3, 8}, 0, 1, {2, 0, 0});
  w.set_requires_grad();
  Tensor y = conv2d(x, w);
  w.fill(0.0f);  // not saved, because x wants no gradient
  CHECK_NOTHROW(backward(y, Tensor::full(y.shape(), 1.0f)));
  CHECK(w.grad().defined());
}

TEST_CASE("conv2d: errors") {
  const auto zeros = [](Shape shape) { return Tensor::zeros(std::move(shape)); };
  op_error("conv2d", "expected x (n, h, w, c), got f32[4, 4, 3]", [&] {
    conv2d(zeros({4, 4, 3}), zeros({2, 3, 3, 3}));
  });
  op_error("conv2d", "expected weight (out, kh, kw, c / groups), got f32[2, 3, 3]", [&] {
    conv2d(zeros({1, 4, 4, 3}), zeros({2, 3, 3}));
  });
  op_error("conv2d", "x has 3 channels, so with 1 groups expected weight (out, kh, kw, 3)", [&] {
    conv2d(zeros({1, 4, 4, 3}), zeros({2, 3, 3, 4}));
  });
  op_error("conv2d", "4 input and 6 output channels do not divide into 4 groups", [&] {
    conv2d(zeros({1, 4, 4, 4}), zeros({6, 3, 3, 1}), Tensor(), stride_and_padding(1, {}, 1, 4));
  });
  op_error("conv2d", "the kernel spans 5 pixels of height but the padded image has 4", [&] {
    conv2d(zeros({1, 4, 9, 1}), zeros({1, 3, 3, 1}), Tensor(), stride_and_padding(1, {}, 2));
  });
  op_error("conv2d", "strides must be at least 1", [&] {
    conv2d(zeros({1, 4, 4, 1}), zeros({1, 3, 3, 1}), Tensor(), stride_and_padding(0, {}));
  });
  op_error("conv2d", "padding must not be negative", [&] {
    conv2d(zeros({1, 4, 4, 1}), zeros({1, 3, 3, 1}), Tensor(),
           stride_and_padding(1, {-1, 0, 0, 0}));
  });
  op_error("conv2d", "expected bias [2], got f32[3]", [&] {
    conv2d(zeros({1, 4, 4, 1}), zeros({2, 3, 3, 1}), zeros({3}));
  });
  op_error("conv2d", "to be an f32 or bf16 tensor", [&] {
    conv2d(Tensor::zeros({1, 4, 4, 1}, Dtype::i64), zeros({2, 3, 3, 1}), zeros({3}));
  });
}

TEST_CASE("same_padding puts the odd pixel at the bottom and right") {
  // TensorFlow's rule for 224 pixels, kernel 3, stride 2: one row below, one column on the right.
  const Padding a = same_padding(224, 224, 3, 3, 2, 2);
  CHECK(a.top == 0);
  CHECK(a.bottom == 1);
  CHECK(a.left == 0);
  CHECK(a.right == 1);
  const Padding b = same_padding(7, 8, 5, 3, 1, 1, 1, 2);
  CHECK(b.top == 2);
  CHECK(b.bottom == 2);
  CHECK(b.left == 2);
  CHECK(b.right == 2);
  // A stride beyond the kernel needs none.
  const Padding c = same_padding(9, 9, 1, 1, 2, 2);
  CHECK(c.bottom == 0);
  for (int64_t in = 1; in < 20; ++in) {
    for (int64_t kernel = 1; kernel < 6; ++kernel) {
      for (int64_t stride = 1; stride < 4; ++stride) {
        const Padding p = same_padding(in, in, kernel, kernel, stride, stride);
        const Tensor y =
            conv2d(Tensor::zeros({1, in, in, 1}), Tensor::zeros({1, kernel, kernel, 1}), Tensor(),
                   stride_and_padding(stride, p));
        CHECK(y.dim(1) == (in + stride - 1) / stride);
        CHECK(p.bottom - p.top >= 0);
        CHECK(p.bottom - p.top <= 1);
      }
    }
  }
  op_error("same_padding", "must be at least 1", [] { same_padding(4, 4, 3, 3, 0, 1); });
}
