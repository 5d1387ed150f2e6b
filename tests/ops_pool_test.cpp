// Pooling against references in double that go from the pixel to the windows that hold it.
#include <cmath>
#include <limits>

#include "kernels/kernels.h"
#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

Shape pooled_shape(const Shape& x, const Pool2dOptions& o) {
  return {x[0], (x[1] + o.padding.top + o.padding.bottom - o.kernel_height) / o.stride_height + 1,
          (x[2] + o.padding.left + o.padding.right - o.kernel_width) / o.stride_width + 1, x[3]};
}

// Calls visit(element of x, element of y) for every pixel of every window.
void for_pixels(const Shape& x, const Shape& y, const Pool2dOptions& o,
                const std::function<void(size_t, size_t)>& visit) {
  for (int64_t i = 0; i < numel_of(x); ++i) {
    const Shape at = unravel(i, x);
    const int64_t row = at[1] + o.padding.top, col = at[2] + o.padding.left;
    for (int64_t oh = 0; oh < y[1]; ++oh) {
      if (row < oh * o.stride_height || row >= oh * o.stride_height + o.kernel_height) continue;
      for (int64_t ow = 0; ow < y[2]; ++ow) {
        if (col < ow * o.stride_width || col >= ow * o.stride_width + o.kernel_width) continue;
        visit(static_cast<size_t>(i),
              static_cast<size_t>(((at[0] * y[1] + oh) * y[2] + ow) * y[3] + at[3]));
      }
    }
  }
}

void max_row(const std::string& op, const Shape& shape, const Pool2dOptions& o) {
  CAPTURE(text(shape));
  op_row(
      op, {distinct(shape)}, [&](const Tensors& in) { return max_pool2d(in[0], o); },
      [&](const Arrays& in) {
        Array y(pooled_shape(shape, o), -std::numeric_limits<double>::infinity());
        for_pixels(shape, y.shape, o, [&](size_t i, size_t k) {
          y.values[k] = std::max(y.values[k], in[0].values[i]);
        });
        return y;
      },
      kExact);
}

void avg_row(const std::string& op, const Shape& shape, const Pool2dOptions& o) {
  CAPTURE(text(shape));
  op_row(
      op, {real(shape)}, [&](const Tensors& in) { return avg_pool2d(in[0], o); },
      [&](const Arrays& in) {
        Array y(pooled_shape(shape, o)), count(y.shape);
        for_pixels(shape, y.shape, o, [&](size_t i, size_t k) {
          y.values[k] += in[0].values[i];
          count.values[k] += 1;
        });
        const auto all = static_cast<double>(o.kernel_height * o.kernel_width);
        return zip(y, count,
                   [&](double total, double n) { return total / (o.count_include_pad ? all : n); });
      },
      accumulating(o.kernel_height * o.kernel_width));
}

void adaptive_row(const std::string& op, const Shape& shape, int64_t out_height,
                  int64_t out_width) {
  CAPTURE(text(shape));
  op_row(
      op, {real(shape)},
      [&](const Tensors& in) { return adaptive_avg_pool2d(in[0], out_height, out_width); },
      [&](const Arrays& in) {
        Array y({shape[0], out_height, out_width, shape[3]}), count(y.shape);
        // Pixel r lies in window i when floor(i h / out) <= r < ceil((i + 1) h / out).
        const auto inside = [](int64_t r, int64_t i, int64_t size, int64_t out) {
          return std::floor(static_cast<double>(i * size) / static_cast<double>(out)) <=
                     static_cast<double>(r) &&
                 static_cast<double>(r) <
                     std::ceil(static_cast<double>((i + 1) * size) / static_cast<double>(out));
        };
        for (int64_t k = 0; k < in[0].size(); ++k) {
          const Shape at = unravel(k, shape);
          for (int64_t i = 0; i < out_height; ++i) {
            for (int64_t j = 0; j < out_width; ++j) {
              if (!inside(at[1], i, shape[1], out_height)) continue;
              if (!inside(at[2], j, shape[2], out_width)) continue;
              y.at({at[0], i, j, at[3]}) += in[0].values[static_cast<size_t>(k)];
              count.at({at[0], i, j, at[3]}) += 1;
            }
          }
        }
        return zip(y, count, [](double total, double n) { return total / n; });
      },
      accumulating(shape[1] * shape[2]));
}

Pool2dOptions window(int64_t kernel, int64_t stride, Padding padding = {}, bool include = true) {
  return {kernel, kernel, stride, stride, padding, include};
}

}  // namespace

TEST_CASE("max_pool2d") {
  max_row("max_pool2d", {0, 4, 4, 3}, window(2, 2));
  max_row("max_pool2d", {1, 1, 1, 1}, window(1, 1));
  for (int64_t channels : {1, 7, 16, 33, 65}) {
    max_row("max_pool2d", {2, 7, 6, channels}, window(3, 2, Padding::symmetric(1, 1)));
  }
  max_row("max_pool2d", {1, 6, 5, 3}, window(2, 1));
  max_row("max_pool2d", {1, 8, 9, 3}, window(3, 2, {0, 1, 0, 2}));
  max_row("max_pool2d", {1, 8, 9, 3}, {3, 2, 1, 3, {2, 0, 1, 0}, true});
  max_row("max_pool2d", {3, 28, 28, 20}, window(3, 2, Padding::symmetric(1, 1)));
  max_row("max_pool2d", {1, 2, 2, 0}, window(2, 2));
  max_row("max_pool2d", {1, 18, 17, 2}, window(17, 1));  // more places than a byte counts
  op_error("max_pool2d", "expected images (n, h, w, c), got f32[4, 4, 3]", [] {
    max_pool2d(Tensor::zeros({4, 4, 3}), {});
  });
  op_error("max_pool2d", "the kernel of 5 x 5 is larger than the padded image of 4 x 4", [] {
    max_pool2d(Tensor::zeros({1, 4, 4, 3}), window(5, 1));
  });
  op_error("max_pool2d", "expected padding from 0 to kernel - 1 on each side, got 2, 2, 2, 2", [] {
    max_pool2d(Tensor::zeros({1, 4, 4, 3}), window(2, 1, Padding::symmetric(2, 2)));
  });
  op_error("max_pool2d", "must be at least 1", [] {
    max_pool2d(Tensor::zeros({1, 4, 4, 3}), window(2, 0));
  });
}

TEST_CASE("max_pool2d: infinities, NaN and ties") {
  const double nan = std::numeric_limits<double>::quiet_NaN();
  const double inf = std::numeric_limits<double>::infinity();
  const Tensor y = max_pool2d(
      Tensor::of<float>({-INFINITY, -INFINITY, NAN, 1, -INFINITY, -INFINITY, 2, INFINITY},
                        {1, 2, 4, 1}),
      window(2, 2));
  CHECK(compare(to_array(y), Array({1, 1, 2, 1}, {-inf, nan}), 0, 0) == "");
  // The first of equal values, row by row, takes the gradient.
  Tensor x = Tensor::full({1, 3, 3, 1}, 5.0f);
  x.set_requires_grad();
  backward(max_pool2d(x, window(2, 1)), Tensor::of<float>({1, 2, 4, 8}, {1, 2, 2, 1}));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{1, 2, 0, 4, 8, 0, 0, 0, 0});
}

TEST_CASE("avg_pool2d") {
  avg_row("avg_pool2d", {0, 4, 4, 3}, window(2, 2));
  avg_row("avg_pool2d", {1, 1, 1, 1}, window(1, 1));
  for (bool include : {true, false}) {
    for (int64_t channels : {1, 7, 16, 33, 65}) {
      avg_row("avg_pool2d", {2, 7, 6, channels}, window(3, 2, Padding::symmetric(1, 1), include));
    }
    avg_row("avg_pool2d", {1, 8, 9, 3}, window(3, 1, {0, 2, 1, 2}, include));
  }
  avg_row("avg_pool2d", {3, 28, 28, 20}, window(2, 2));
  op_error("avg_pool2d", "is larger than the padded image", [] {
    avg_pool2d(Tensor::zeros({1, 0, 4, 3}), window(1, 1));
  });
}

TEST_CASE("adaptive_avg_pool2d") {
  adaptive_row("adaptive_avg_pool2d", {0, 4, 4, 3}, 1, 1);
  adaptive_row("adaptive_avg_pool2d", {1, 1, 1, 1}, 1, 1);
  for (int64_t channels : {1, 9, 64, 100}) {
    adaptive_row("adaptive_avg_pool2d", {2, 7, 7, channels}, 1, 1);
  }
  adaptive_row("adaptive_avg_pool2d", {2, 7, 10, 5}, 3, 4);    // overlapping windows
  adaptive_row("adaptive_avg_pool2d", {1, 2, 3, 5}, 4, 7);     // larger than the image
  adaptive_row("adaptive_avg_pool2d", {4, 28, 28, 20}, 7, 7);  // many threads
  op_error("adaptive_avg_pool2d", "must be at least 1, got f32[1, 4, 4, 3] to 0 x 1", [] {
    adaptive_avg_pool2d(Tensor::zeros({1, 4, 4, 3}), 0, 1);
  });
  op_error("adaptive_avg_pool2d", "to be an f32 or bf16 tensor",
           [] { adaptive_avg_pool2d(Tensor(), 1, 1); });
}

TEST_CASE("every instruction set pools alike") {
  if (!cpu::use_avx512()) return;
  const PoolShape s{.batch = 2,
                    .in_height = 9,
                    .in_width = 8,
                    .channels = 37,
                    .out_height = 5,
                    .out_width = 4,
                    .kernel_height = 3,
                    .kernel_width = 3,
                    .stride_height = 2,
                    .stride_width = 2,
                    .pad_top = 1,
                    .pad_bottom = 1,
                    .pad_left = 1,
                    .pad_right = 0};
  const Tensor x = normal({2, 9, 8, 37}, 0, 1, {1, 0, 0}),
               g = normal({2, 5, 4, 37}, 0, 1, {2, 0, 0});
  const auto same = [](const Tensor& a, const Tensor& b) {
    CHECK(compare(to_array(a), to_array(b), 1e-6, 1e-6) == "");
  };
  Tensor a({2, 5, 4, 37}), b({2, 5, 4, 37}), c = empty_like(x), d = empty_like(x);
  cpu::avx2::max_pool(s, a.mutable_data<float>(), x.data<float>());
  cpu::avx512::max_pool(s, b.mutable_data<float>(), x.data<float>());
  same(a, b);
  cpu::avx2::avg_pool(s, a.mutable_data<float>(), x.data<float>());
  cpu::avx512::avg_pool(s, b.mutable_data<float>(), x.data<float>());
  same(a, b);
  cpu::avx2::max_pool_grad(s, c.mutable_data<float>(), x.data<float>(), g.data<float>());
  cpu::avx512::max_pool_grad(s, d.mutable_data<float>(), x.data<float>(), g.data<float>());
  same(c, d);
}
