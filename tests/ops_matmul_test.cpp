// matmul, linear and feed_forward against sums of outer products in double.
#include <cmath>

#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

// Adds one outer product for each inner index; the op sums along rows.
Array outer_products(const Array& a, const Array& b, bool transpose_a, bool transpose_b) {
  const size_t rank = a.shape.size();
  const int64_t m = a.shape[rank - (transpose_a ? 1 : 2)];
  const int64_t k = a.shape[rank - (transpose_a ? 2 : 1)];
  const int64_t n = b.shape[b.shape.size() - (transpose_b ? 2 : 1)];
  Shape shape(a.shape.begin(), a.shape.end() - 2);
  const int64_t batch = numel_of(shape);
  shape.insert(shape.end(), {m, n});
  Array y(shape);
  const bool shared = b.shape.size() == 2;
  for (int64_t q = 0; q < batch; ++q) {
    const double* left = a.values.data() + q * m * k;
    const double* right = b.values.data() + (shared ? 0 : q * k * n);
    for (int64_t p = 0; p < k; ++p) {
      for (int64_t i = 0; i < m; ++i) {
        for (int64_t j = 0; j < n; ++j) {
          y.values[static_cast<size_t>((q * m + i) * n + j)] +=
              left[transpose_a ? p * m + i : i * k + p] *
              right[transpose_b ? j * k + p : p * n + j];
        }
      }
    }
  }
  return y;
}

// Within 1, so that products are: accumulating() allows for the rounding of such sums.
Input factor(Shape shape) { return real(std::move(shape), -1, 1); }

Shape matrix(const Shape& leading, int64_t rows, int64_t columns, bool transposed) {
  Shape shape = leading;
  shape.insert(shape.end(), {transposed ? columns : rows, transposed ? rows : columns});
  return shape;
}

void matmul_row(const std::string& op, const Shape& leading, int64_t m, int64_t k, int64_t n,
                bool shared_b = false) {
  for (bool ta : {false, true}) {
    for (bool tb : {false, true}) {
      CAPTURE(text(leading, " ", m, " ", k, " ", n, " ", ta, " ", tb));
      op_row(
          op,
          {factor(matrix(leading, m, k, ta)),
           factor(matrix(shared_b ? Shape{} : leading, k, n, tb))},
          [&](const Tensors& in) { return matmul(in[0], in[1], ta, tb); },
          [&](const Arrays& in) { return outer_products(in[0], in[1], ta, tb); },
          Options(accumulating(std::max({m, k, n}))).with_threads_mattering());
    }
  }
}

// x (..., in) times the transpose of w, and a bias.
Array affine(const Array& x, const Array& w, const Array* bias) {
  Shape shape = x.shape;
  shape.back() = w.shape[0];
  const Array rows({x.size() / w.shape[1], w.shape[1]}, x.values);
  const Array y(shape, outer_products(rows, w, false, true).values);
  return bias == nullptr ? y : zip(y, *bias, [](double a, double b) { return a + b; });
}

void linear_row(const std::string& op, const Shape& x, int64_t out, bool bias) {
  CAPTURE(text(x, " ", out));
  std::vector<Input> inputs{factor(x), factor({out, x.back()}).parameter()};
  if (bias) inputs.push_back(factor({out}).parameter());
  op_row(
      op, inputs, [&](const Tensors& in) { return linear(in[0], in[1], bias ? in[2] : Tensor()); },
      [&](const Arrays& in) { return affine(in[0], in[1], bias ? &in[2] : nullptr); },
      Options(accumulating(std::max(numel_of(x), x.back()))).with_threads_mattering());
}

double gelu_of(double x, Gelu form) {
  if (form == Gelu::exact) return x / 2 * std::erfc(-x / std::sqrt(2.0));
  return x / 2 * (1 + std::tanh(std::sqrt(2 / std::acos(-1.0)) * (x + 0.044715 * x * x * x)));
}

void feed_forward_row(const std::string& op, const Shape& x, int64_t hidden, int64_t out,
                      bool bias = true) {
  for (const Gelu form : {Gelu::exact, Gelu::tanh}) {
    CAPTURE(text(x, " ", hidden, " ", out, " ", static_cast<int>(form)));
    std::vector<Input> inputs{factor(x), factor({hidden, x.back()}).parameter(),
                              factor({out, hidden}).parameter()};
    if (bias) {
      inputs.push_back(factor({hidden}).parameter());
      inputs.push_back(factor({out}).parameter());
    }
    op_row(
        op, inputs,
        [&](const Tensors& in) {
          return feed_forward(in[0], in[1], bias ? in[3] : Tensor(), in[2], bias ? in[4] : Tensor(),
                              form);
        },
        [&](const Arrays& in) {
          const Array pre = affine(in[0], in[1], bias ? &in[3] : nullptr);
          const Array inner = map(pre, [&](double value) { return gelu_of(value, form); });
          return affine(inner, in[2], bias ? &in[4] : nullptr);
        },
        Options(accumulating(std::max({numel_of(x), x.back(), hidden, out})))
            .with_threads_mattering());
  }
}

}  // namespace

TEST_CASE("matmul") {
  matmul_row("matmul", {}, 1, 1, 1);
  matmul_row("matmul", {}, 3, 5, 7);
  matmul_row("matmul", {}, 17, 16, 33);
  matmul_row("matmul", {}, 1, 9, 4);
  matmul_row("matmul", {}, 4, 9, 1);
  matmul_row("matmul", {}, 0, 3, 2);
  matmul_row("matmul", {}, 3, 0, 2);
  matmul_row("matmul", {}, 3, 2, 0);
  matmul_row("matmul", {2, 3}, 4, 5, 6);
  matmul_row("matmul", {1}, 4, 5, 6);
  matmul_row("matmul", {0}, 4, 5, 6);
  matmul_row("matmul", {}, 70, 65, 64);  // more than one thread's share
}

TEST_CASE("matmul: one b for all") {
  matmul_row("matmul", {3}, 4, 5, 6, true);
  matmul_row("matmul", {2, 2}, 3, 7, 2, true);
  matmul_row("matmul", {1}, 3, 7, 2, true);
  matmul_row("matmul", {0}, 3, 7, 2, true);
}

// Sizes that reach every tile of kernels/cuda/gemm.cuh, with and without 16-byte access, and those
// whose k is cut into chunks.
TEST_CASE("matmul: tiles and chunks") {
  const auto forward_row = [](const Shape& leading, int64_t m, int64_t k, int64_t n) {
    for (bool ta : {false, true}) {
      for (bool tb : {false, true}) {
        CAPTURE(text(leading, " ", m, " ", k, " ", n, " ", ta, " ", tb));
        op_row(
            "matmul", {factor(matrix(leading, m, k, ta)), factor(matrix(leading, k, n, tb))},
            [&](const Tensors& in) { return matmul(in[0], in[1], ta, tb); },
            [&](const Arrays& in) { return outer_products(in[0], in[1], ta, tb); },
            Options(accumulating(k)).with_threads_mattering().without_gradients());
      }
    }
  };
  forward_row({100}, 65, 3, 67);
  forward_row({100}, 68, 9, 72);
  forward_row({2}, 66, 261, 65);
  forward_row({}, 68, 300, 132);
  forward_row({}, 130, 301, 9);
  forward_row({}, 132, 300, 12);
  forward_row({}, 9, 301, 130);
  forward_row({}, 12, 300, 132);
  forward_row({}, 5, 701, 6);
  forward_row({3}, 4, 600, 8);
  forward_row({}, 1, 300, 1);
}

TEST_CASE("matmul: errors") {
  const auto zeros = [](Shape shape) { return Tensor::zeros(std::move(shape)); };
  op_error("matmul", "expected b of rank 2 or more, got f32[3]", [&] {
    matmul(zeros({2, 3}), zeros({3}));
  });
  op_error("matmul", "inner sizes differ: a f32[2, 3] has 3, b f32[4, 5] has 4", [&] {
    matmul(zeros({2, 3}), zeros({4, 5}));
  });
  op_error("matmul",
           "inner sizes differ: a f32[2, 3] transposed has 2, b f32[4, 5] transposed has 5", [&] {
             matmul(zeros({2, 3}), zeros({4, 5}), true, true);
           });
  op_error("matmul", "expected equal leading dimensions or b of rank 2", [&] {
    matmul(zeros({2, 2, 3}), zeros({3, 3, 5}));
  });
}

TEST_CASE("linear") {
  linear_row("linear", {1, 1}, 1, true);
  linear_row("linear", {5}, 3, true);
  linear_row("linear", {4, 7}, 9, true);
  linear_row("linear", {4, 7}, 9, false);
  linear_row("linear", {2, 3, 17}, 33, true);
  linear_row("linear", {0, 4}, 3, true);
  linear_row("linear", {32, 64}, 40, true);  // more than one thread's share
  op_error("linear", "expected x (..., 4) for weight f32[3, 4], got f32[2, 5]", [] {
    linear(Tensor::zeros({2, 5}), Tensor::zeros({3, 4}));
  });
  op_error("linear", "expected an f32 weight (out, in), got f32[3]", [] {
    linear(Tensor::zeros({2, 5}), Tensor::zeros({3}));
  });
  op_error("linear", "expected an f32 bias [3], got f32[4]", [] {
    linear(Tensor::zeros({2, 5}), Tensor::zeros({3, 5}), Tensor::zeros({4}));
  });
}

TEST_CASE("feed_forward") {
  feed_forward_row("feed_forward", {1, 1}, 1, 1);
  feed_forward_row("feed_forward", {5}, 3, 2);
  feed_forward_row("feed_forward", {4, 7}, 9, 5);
  feed_forward_row("feed_forward", {4, 7}, 9, 5, false);
  feed_forward_row("feed_forward", {2, 3, 17}, 33, 12);
  feed_forward_row("feed_forward", {0, 4}, 3, 2);
  feed_forward_row("feed_forward", {70, 12}, 72, 10);  // more than one thread's share
  // Products whose k is cut into chunks, there and back, with and without 16-byte access.
  feed_forward_row("feed_forward", {6, 300}, 20, 3);
  feed_forward_row("feed_forward", {3, 5}, 20, 300);
  feed_forward_row("feed_forward", {3, 261}, 7, 261);
}

// The large tile of kernels/cuda/gemm_bf16.cuh, whose rows are those of the small one.
TEST_CASE("feed_forward: many rows are as few are") {
  const int64_t rows = 95 * 128 + 1, few = 3, in = 8, hidden = 72, out = 8;
  const auto random = [](Shape shape, uint32_t stream) {
    return uniform(std::move(shape), -1, 1, {3, 0, stream}).to(test_device());
  };
  const Tensor x = random({rows, in}, 1), g = random({rows, out}, 2);
  const Tensor w1 = random({hidden, in}, 3), b1 = random({hidden}, 4);
  const Tensor w2 = random({out, hidden}, 5), b2 = random({out}, 6);
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    for (const Gelu form : {Gelu::exact, Gelu::tanh}) {
      // y and dx of `count` rows from `first` on.
      const auto run = [&](int64_t first, int64_t count) {
        Tensor leaf = narrow(x, first, count).clone().set_requires_grad();
        const Tensor y = feed_forward(cast(leaf, dtype), w1, b1, w2, b2, form);
        backward(y, cast(narrow(g, first, count), dtype));
        return std::pair{cast(y.detach(), Dtype::f32), leaf.grad()};
      };
      const auto [y, dx] = run(0, rows);
      const double tolerance = dtype == Dtype::bf16 ? 0x1p-6 : 1e-5;
      for (const int64_t first : {int64_t{0}, int64_t{1000}, rows - few}) {
        const auto [few_y, few_dx] = run(first, few);
        CHECK(compare(to_array(narrow(y, first, few)), to_array(few_y), tolerance, tolerance) ==
              "");
        CHECK(compare(to_array(narrow(dx, first, few)), to_array(few_dx), tolerance,
                      4 * tolerance) == "");
      }
    }
  }
}

TEST_CASE("feed_forward: errors") {
  const auto zeros = [](Shape shape) { return Tensor::zeros(std::move(shape)); };
  const Tensor x = zeros({2, 4}), w1 = zeros({3, 4}), w2 = zeros({5, 3});
  op_error("feed_forward", "expected x (..., 4) for weight1 f32[3, 4], got f32[2, 5]", [&] {
    feed_forward(zeros({2, 5}), w1, Tensor(), w2, Tensor());
  });
  op_error("feed_forward", "expected weight2 (out, 3) behind weight1 f32[3, 4], got f32[5, 4]",
           [&] {
             feed_forward(x, w1, Tensor(), zeros({5, 4}), Tensor());
           });
  op_error("feed_forward", "expected an f32 weight2 (out, in), got f32[3]",
           [&] { feed_forward(x, w1, Tensor(), zeros({3}), Tensor()); });
  op_error("feed_forward", "expected an f32 bias1 [3], got f32[5]",
           [&] { feed_forward(x, w1, zeros({5}), w2, Tensor()); });
  op_error("feed_forward", "expected an f32 bias2 [5], got f32[3]",
           [&] { feed_forward(x, w1, Tensor(), w2, zeros({3})); });
}

TEST_CASE("feed_forward: what is frozen gets no gradient and costs no memory") {
  const auto random = [](Shape shape, uint32_t stream) {
    return uniform(std::move(shape), -1, 1, {4, 0, stream}).to(test_device());
  };
  const Tensor x = random({3, 4}, 1);
  Tensor w1 = random({6, 4}, 2), b1 = random({6}, 3), w2 = random({5, 6}, 4), b2 = random({5}, 5);
  b1.set_requires_grad();
  b2.set_requires_grad();
  backward(sum(feed_forward(x, w1, b1, w2, b2)));
  CHECK(!w1.grad().defined());
  CHECK(!w2.grad().defined());
  const Array alone1 = to_array(b1.grad()), alone2 = to_array(b2.grad());
  for (Tensor* parameter : {&w1, &b1, &w2, &b2}) {
    parameter->set_requires_grad();
    parameter->zero_grad();
  }
  backward(sum(feed_forward(x, w1, b1, w2, b2)));
  CHECK(compare(to_array(b1.grad()), alone1, 1e-6, 1e-6) == "");
  CHECK(compare(to_array(b2.grad()), alone2, 1e-6, 1e-6) == "");
}

TEST_CASE("linear: packed weights follow in-place changes") {
  NoGrad no_grad;
  Tensor x = normal({8, 96}, 0, 1, {1, 0, 0}), w = normal({100, 96}, 0, 1, {2, 0, 0});
  linear(x, w);
  w.fill(1.0f);
  const Array y = to_array(linear(x, w));
  CHECK(compare(y, outer_products(to_array(x), Array({100, 96}, 1.0), false, true), 1e-5, 1e-5) ==
        "");
}
