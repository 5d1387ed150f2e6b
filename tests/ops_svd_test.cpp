// singular_values against the eigenvalues of the smaller Gram matrix, found by Jacobi's rotations.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>

#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

// x x^T or x^T x, whichever is smaller.
std::vector<std::vector<double>> gram(const Array& x) {
  const int64_t rows = x.shape[0], columns = x.shape[1];
  const bool wide = rows <= columns;
  const auto size = static_cast<size_t>(std::min(rows, columns));
  std::vector<std::vector<double>> result(size, std::vector<double>(size));
  for (size_t i = 0; i < size; ++i) {
    for (size_t j = 0; j < size; ++j) {
      for (int64_t k = 0; k < std::max(rows, columns); ++k) {
        const auto a = static_cast<int64_t>(i), b = static_cast<int64_t>(j);
        result[i][j] += wide ? x.at({a, k}) * x.at({b, k}) : x.at({k, a}) * x.at({k, b});
      }
    }
  }
  return result;
}

void rotate(std::vector<std::vector<double>>& a, size_t p, size_t q) {
  if (a[p][q] == 0) return;
  const double theta = (a[q][q] - a[p][p]) / (2 * a[p][q]);
  const double t = std::copysign(1, theta) / (std::fabs(theta) + std::sqrt(theta * theta + 1));
  const double c = 1 / std::sqrt(t * t + 1), s = t * c;
  for (size_t k = 0; k < a.size(); ++k) {
    const double left = a[k][p], right = a[k][q];
    a[k][p] = c * left - s * right;
    a[k][q] = s * left + c * right;
  }
  for (size_t k = 0; k < a.size(); ++k) {
    const double upper = a[p][k], lower = a[q][k];
    a[p][k] = c * upper - s * lower;
    a[q][k] = s * upper + c * lower;
  }
}

Array by_eigenvalues(const Array& x) {
  std::vector<std::vector<double>> a = gram(x);
  for (int sweep = 0; sweep < 12; ++sweep) {
    for (size_t p = 0; p < a.size(); ++p) {
      for (size_t q = p + 1; q < a.size(); ++q) rotate(a, p, q);
    }
  }
  Array values({static_cast<int64_t>(a.size())});
  for (size_t i = 0; i < a.size(); ++i) values.values[i] = std::sqrt(std::max(a[i][i], 0.0));
  std::sort(values.values.begin(), values.values.end(), std::greater<>());
  return values;
}

void svd_row(const std::string& op, const Input& x, const Options& options) {
  CAPTURE(text(x.shape));
  op_row(
      op, {x}, [](const Tensors& in) { return singular_values(in[0]); },
      [](const Arrays& in) { return by_eigenvalues(in[0]); }, options);
}

}  // namespace

TEST_CASE("singular_values") {
  for (const Shape& shape : {Shape{1, 1}, {1, 7}, {7, 1}, {5, 5}, {3, 8}, {8, 3}, {33, 17}}) {
    svd_row("singular_values", real(shape), kPointwise);
  }
  for (const Shape& shape : {Shape{0, 3}, {3, 0}, {0, 0}}) {
    svd_row("singular_values", real(shape), kPointwise);
  }
  // Large enough that Eigen would use threads.
  svd_row("singular_values", real({24, 1500}), kPointwise);
  svd_row("singular_values", real({700, 20}), kPointwise);
}

TEST_CASE("singular_values of equal, vanishing, huge and tiny values") {
  const Options values = Options(kPointwise).without_gradients();
  svd_row("singular_values", given({2, 0, 0, 0, -2, 0, 0, 0, 2}, {3, 3}), values);
  svd_row("singular_values", given({0, 0, 0, 0, 0, 0}, {2, 3}), values);
  svd_row("singular_values", given({3e38, 0, 0, 1e-30}, {2, 2}), values);
  svd_row("singular_values", given({3e-38, 1e-38, 2e-38, 3e-38}, {2, 2}),
          Options(Tolerance{2e-6, 0}).without_gradients());
  // Rank 1: the other values are 0 but for rounding.
  svd_row("singular_values", given({1, 2, 3, 2, 4, 6, 3, 6, 9}, {3, 3}),
          Options(Tolerance{2e-6, 1e-6}).without_gradients());
}

// x = H diag(values) H' with Householder's reflections H = 1 - 2 v v^T / v^T v, whose singular
// values are those.
Tensor with_values(const std::vector<double>& values, int64_t rows, int64_t columns) {
  const auto reflect = [](int64_t n, int64_t i, int64_t j) {
    const auto v = [](int64_t k) { return std::sin(static_cast<double>(k + 1)); };
    double square = 0;
    for (int64_t k = 0; k < n; ++k) square += v(k) * v(k);
    return (i == j ? 1 : 0) - 2 * v(i) * v(j) / square;
  };
  std::vector<float> x;
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < columns; ++j) {
      double sum = 0;
      for (size_t k = 0; k < values.size(); ++k) {
        const auto at = static_cast<int64_t>(k);
        sum += reflect(rows, i, at) * values[k] * reflect(columns, at, j);
      }
      x.push_back(static_cast<float>(sum));
    }
  }
  return Tensor::of(x, {rows, columns}).to(test_device());
}

TEST_CASE("singular_values that are known, from a thousand to a thousandth, and four zeros") {
  std::vector<double> values;
  for (int k = 0; k < 13; ++k) values.push_back(std::pow(10, 3 - k / 2.0));
  values.insert(values.end(), {0, 0, 0, 0});
  for (const auto& [rows, columns] : {std::pair(17, 40), {40, 17}, {17, 17}}) {
    const std::vector<float> got =
        singular_values(with_values(values, rows, columns)).to_vector<float>();
    REQUIRE(got.size() == values.size());
    for (size_t k = 0; k < values.size(); ++k) {
      CAPTURE(k);
      // Rounding x to f32 moves a value by no more than 6e-8 of its Frobenius norm.
      CHECK(std::abs(got[k] - values[k]) < 6e-8 * 1.5 * values[0]);
    }
  }
}

TEST_CASE("the gradient of a sum does not depend on the basis of equal singular values") {
  Tensor x = Tensor::of<float>({2, 0, 0, 0, 2, 0, 0, 0, 2}, {3, 3}).to(test_device());
  x.set_requires_grad();
  backward(sum(singular_values(x)));
  const std::vector<float> identity{1, 0, 0, 0, 1, 0, 0, 0, 1};
  const std::vector<float> grad = x.grad().to_vector<float>();
  for (size_t i = 0; i < identity.size(); ++i) {
    CHECK(grad[i] == doctest::Approx(static_cast<double>(identity[i])).epsilon(1e-6));
  }
}

TEST_CASE("singular_values of what is not finite are NaN, and so is the gradient") {
  for (float bad :
       {std::numeric_limits<float>::quiet_NaN(), std::numeric_limits<float>::infinity()}) {
    Tensor x = Tensor::of<float>({1, 2, bad, 4, 5, 6}, {2, 3}).to(test_device());
    x.set_requires_grad();
    const Tensor values = singular_values(x);
    for (float v : values.to_vector<float>()) CHECK(std::isnan(v));
    backward(sum(values));
    for (float v : x.grad().to_vector<float>()) CHECK(std::isnan(v));
  }
}

TEST_CASE("singular_values errors") {
  op_error("singular_values", "expected an f32 tensor, got an undefined tensor",
           [] { singular_values(Tensor()); });
  op_error("singular_values", "expected an f32 tensor", [] {
    singular_values(Tensor::zeros({2, 2}, Dtype::i64));
  });
  op_error("singular_values", "expected a matrix, got f32[2, 3, 4]", [] {
    singular_values(Tensor::zeros({2, 3, 4}));
  });
}
