// Times the kernels that a training step of the image models spends its time in, by shape, as
// GFLOP/s and GB/s. Every row is checked first: a fast wrong kernel is worth nothing.
//
//   kernel_speed [--threads T] [FILTER]
//
// Checks need no second implementation. Convolution is linear, so with y = conv(x, w) and a
// gradient g the sums <g, y>, <dx, x> and <dw, w> are one number, and some elements of y are
// computed in double. Batch-norm's result has mean 0 and variance 1, and its dx is orthogonal to 1
// and to the result.
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <omp.h>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "engine/rng.h"

namespace {

using namespace graft;

// Seconds of the median of several calls, after one that warms the caches.
double median_seconds(const std::function<double()>& timed_call) {
  timed_call();
  std::vector<double> seconds;
  double total = 0;
  while (seconds.size() < 5 || (total < 0.5 && seconds.size() < 200)) {
    seconds.push_back(timed_call());
    total += seconds.back();
  }
  std::nth_element(seconds.begin(), seconds.begin() + seconds.size() / 2, seconds.end());
  return seconds[seconds.size() / 2];
}

template <class Work>
double seconds_of(const Work& work) {
  const auto start = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

double dot(const Tensor& a, const Tensor& b) {
  const float *pa = a.data<float>(), *pb = b.data<float>();
  double sum = 0;
  for (int64_t i = 0; i < a.numel(); ++i) sum += double{pa[i]} * pb[i];
  return sum;
}
double norm(const Tensor& a) { return std::sqrt(dot(a, a)); }

void print_row(const std::string& name, double seconds, double flops, double bytes) {
  std::printf("%-52s %9.3f ms %8.1f GFLOP/s %7.1f GB/s\n", name.c_str(), 1e3 * seconds,
              1e-9 * flops / seconds, 1e-9 * bytes / seconds);
  std::fflush(stdout);
}

void expect(bool good, const std::string& name, const std::string& what, double a, double b) {
  GRAFT_CHECK(good, name, ": wrong result, ", what, ": ", a, " against ", b);
}

struct Conv {
  int64_t batch, size, in, out, kernel, stride;
  int64_t groups = 1;
  bool depthwise() const { return in == out && groups == in; }
};

double conv_in_double(const Tensor& x, const Tensor& w, const Conv2dOptions& o, int64_t n,
                      int64_t oh, int64_t ow, int64_t channel) {
  const int64_t height = x.dim(1), width = x.dim(2), in = x.dim(3), per_group = w.dim(3);
  const int64_t group = channel / (w.dim(0) / o.groups);
  double sum = 0;
  for (int64_t r = 0; r < w.dim(1); ++r) {
    for (int64_t s = 0; s < w.dim(2); ++s) {
      const int64_t h = oh * o.stride_height + r - o.padding.top;
      const int64_t v = ow * o.stride_width + s - o.padding.left;
      if (h < 0 || h >= height || v < 0 || v >= width) continue;
      const float* px = x.data<float>() + ((n * height + h) * width + v) * in + group * per_group;
      const float* pw = w.data<float>() + ((channel * w.dim(1) + r) * w.dim(2) + s) * per_group;
      for (int64_t c = 0; c < per_group; ++c) sum += double{px[c]} * pw[c];
    }
  }
  return sum;
}

void bench_conv(const Conv& c) {
  const std::string name =
      text(c.depthwise() ? "depthwise " : "conv ", c.kernel, "x", c.kernel, "/", c.stride, " ",
           c.in, "->", c.out, " at ", c.size, ", batch ", c.batch);
  Conv2dOptions options;
  options.stride_height = options.stride_width = c.stride;
  options.padding = Padding::symmetric(c.kernel / 2, c.kernel / 2);
  options.groups = c.groups;
  Tensor x = normal({c.batch, c.size, c.size, c.in}, 0, 1, {.seed = 1});
  Tensor w = normal({c.out, c.kernel, c.kernel, c.in / c.groups}, 0, 1, {.seed = 2});
  x.set_requires_grad();
  w.set_requires_grad();
  const Tensor y = conv2d(x, w, Tensor(), options);
  const Tensor g = normal(y.shape(), 0, 1, {.seed = 3});

  for (int64_t probe = 0; probe < 50; ++probe) {
    const int64_t i = probe * 7919 % y.numel();
    const int64_t channel = i % c.out, ow = i / c.out % y.dim(2),
                  oh = i / c.out / y.dim(2) % y.dim(1);
    const double wanted =
        conv_in_double(x, w, options, i / c.out / y.dim(2) / y.dim(1), oh, ow, channel);
    const double got = double{y.data<float>()[i]};
    expect(std::abs(got - wanted) < 1e-4 * std::sqrt(c.kernel * c.kernel * c.in / c.groups), name,
           text("element ", i), got, wanted);
  }
  backward(y, g);
  const double gy = dot(g, y), slack = 1e-5 * norm(g) * norm(y);
  expect(std::abs(dot(x.grad(), x) - gy) < slack, name, "<dx, x> = <g, y>", dot(x.grad(), x), gy);
  expect(std::abs(dot(w.grad(), w) - gy) < slack, name, "<dw, w> = <g, y>", dot(w.grad(), w), gy);

  const double flops = 2.0 * static_cast<double>(y.numel() * c.kernel * c.kernel * c.in / c.groups);
  const double bytes = static_cast<double>(x.bytes() + y.bytes() + w.bytes());
  const auto forward = [&] {
    const NoGrad no_grad;
    return seconds_of([&] { conv2d(x, w, Tensor(), options); });
  };
  const auto backward_for = [&](bool wants_x, bool wants_w) {
    return [&, wants_x, wants_w] {
      Tensor xs = x.detach(), ws = w.detach();
      xs.set_requires_grad(wants_x);
      ws.set_requires_grad(wants_w);
      const Tensor out = conv2d(xs, ws, Tensor(), options);
      return seconds_of([&] { backward(out, g); });
    };
  };
  print_row(name + ", forward", median_seconds(forward), flops, bytes);
  print_row(name + ", gradient of x", median_seconds(backward_for(true, false)), flops, bytes);
  print_row(name + ", gradient of w", median_seconds(backward_for(false, true)), flops, bytes);
}

void bench_batch_norm(int64_t batch, int64_t size, int64_t channels) {
  const std::string name = text("batch_norm ", channels, " at ", size, ", batch ", batch);
  Tensor x = normal({batch, size, size, channels}, 0.5f, 2, {.seed = 1});
  Tensor weight = Tensor::full({channels}, 1), bias = Tensor::zeros({channels});
  Tensor mean = Tensor::zeros({channels}), variance = Tensor::full({channels}, 1);
  x.set_requires_grad();
  weight.set_requires_grad();
  bias.set_requires_grad();
  const Tensor g = normal(x.shape(), 0, 1, {.seed = 3});
  const Tensor y = batch_norm(x, weight, bias, mean, variance, {});
  backward(y, g);
  const double count = static_cast<double>(x.numel()), ones = dot(y, Tensor::full(y.shape(), 1));
  expect(std::abs(ones) < 1e-4 * count, name, "the mean is 0", ones / count, 0);
  expect(std::abs(dot(y, y) / count - 1) < 1e-3, name, "the variance is 1", dot(y, y) / count, 1);
  const double leak = dot(x.grad(), y) / (norm(x.grad()) * norm(y));
  expect(std::abs(leak) < 1e-4, name, "dx is orthogonal to the result", leak, 0);

  const double bytes = static_cast<double>(x.bytes());
  const auto forward = [&] {
    const NoGrad no_grad;
    return seconds_of([&] { batch_norm(x, weight, bias, mean, variance, {}); });
  };
  const auto back = [&] {
    x.zero_grad();
    weight.zero_grad();
    bias.zero_grad();
    const Tensor out = batch_norm(x, weight, bias, mean, variance, {});
    return seconds_of([&] { backward(out, g); });
  };
  // The least traffic: x is read for the statistics and again for the result; x and g twice.
  print_row(name + ", forward", median_seconds(forward), 5 * count, 3 * bytes);
  print_row(name + ", backward", median_seconds(back), 8 * count, 5 * bytes);
}

}  // namespace

int main(int argc, char** argv) try {
  std::string filter;
  for (int i = 1; i < argc; ++i) {
    const std::string argument = argv[i];
    if (argument == "--threads" && i + 1 < argc) {
      omp_set_num_threads(std::atoi(argv[++i]));
    } else {
      GRAFT_CHECK(!argument.starts_with("-"), "usage: kernel_speed [--threads T] [FILTER]");
      filter = argument;
    }
  }
  const auto wanted = [&](const char* family) {
    return filter.empty() || std::string(family).find(filter) != std::string::npos;
  };
  // Shapes of EfficientNet-Lite0, MobileNetV2 and ResNet-50 at 224 pixels.
  constexpr int64_t kBatch = 16;
  if (wanted("depthwise")) {
    for (const Conv& c :
         {Conv{kBatch, 112, 32, 32, 3, 1, 32}, Conv{kBatch, 112, 96, 96, 3, 2, 96},
          Conv{kBatch, 56, 144, 144, 5, 2, 144}, Conv{kBatch, 28, 240, 240, 5, 1, 240},
          Conv{kBatch, 14, 480, 480, 3, 1, 480}, Conv{kBatch, 14, 672, 672, 5, 1, 672},
          Conv{kBatch, 7, 1152, 1152, 5, 1, 1152}}) {
      bench_conv(c);
    }
  }
  if (wanted("batch_norm")) {
    bench_batch_norm(kBatch, 112, 96);
    bench_batch_norm(kBatch, 56, 256);
    bench_batch_norm(kBatch, 14, 672);
    bench_batch_norm(kBatch, 7, 2048);
  }
  if (wanted("conv")) {
    for (const Conv& c : {Conv{kBatch, 224, 3, 64, 7, 2}, Conv{kBatch, 112, 16, 96, 1, 1},
                          Conv{kBatch, 56, 64, 64, 3, 1}, Conv{kBatch, 28, 240, 40, 1, 1},
                          Conv{kBatch, 14, 256, 256, 3, 1}, Conv{kBatch, 14, 112, 672, 1, 1},
                          Conv{kBatch, 7, 512, 2048, 1, 1}}) {
      bench_conv(c);
    }
  }
} catch (const std::exception& error) {
  std::fprintf(stderr, "%s\n", error.what());
  return 1;
}
