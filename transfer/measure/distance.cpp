#include "transfer/measure/distance.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "engine/rng.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/matrix.h"

namespace graft {
namespace {

struct Domains {
  Matrix a, b;
};
Domains domains_of(const char* op, const Tensor& a, const Tensor& b, int64_t least) {
  Domains d{matrix_of(op, "the first domain", a), matrix_of(op, "the second domain", b)};
  GRAFT_CHECK(d.a.cols() == d.b.cols(), op, ": the domains have ", d.a.cols(), " and ", d.b.cols(),
              " features");
  GRAFT_CHECK(d.a.rows() >= least && d.b.rows() >= least, op, ": expected at least ", least,
              " rows of each domain, got ", d.a.rows(), " and ", d.b.rows());
  return d;
}

Matrix covariance(const Matrix& x) {
  const Matrix centred = x.rowwise() - x.colwise().mean();
  return centred.transpose() * centred / static_cast<double>(x.rows() - 1);
}

// Squared distances between all rows of a and b together.
Matrix squared_distances(const Domains& d) {
  Matrix all(d.a.rows() + d.b.rows(), d.a.cols());
  all << d.a, d.b;
  // Distances do not change, and lose less to rounding, around the mean.
  all.rowwise() -= all.colwise().mean().eval();
  const Vector norms = all.rowwise().squaredNorm();
  Matrix result = -2 * all * all.transpose();
  result.colwise() += norms;
  result.rowwise() += norms.transpose();
  return result.cwiseMax(0.0);
}

double median_off_diagonal(const Matrix& m) {
  std::vector<double> values;
  for (int64_t i = 0; i < m.rows(); ++i) {
    for (int64_t j = i + 1; j < m.cols(); ++j) values.push_back(m(i, j));
  }
  const auto middle = values.begin() + static_cast<int64_t>(values.size() / 2);
  std::nth_element(values.begin(), middle, values.end());
  return *middle;
}

// The sum of kernels between all rows.
Matrix kernel_sums(const char* op, const Tensor& a, const Tensor& b) {
  const Matrix distances = squared_distances(domains_of(op, a, b, 2));
  const double median = median_off_diagonal(distances);
  Matrix sums = Matrix::Zero(distances.rows(), distances.cols());
  for (const double factor : {0.25, 0.5, 1.0, 2.0, 4.0}) {
    // Equal points everywhere: any width says the same.
    const double width = median > 0 ? factor * median : 1;
    sums.array() += (distances.array() / (-2 * width)).exp();
  }
  return sums;
}

// The unbiased estimate where rows `order`[0..n-1] are the first domain.
double estimate(const Matrix& kernel, const std::vector<int64_t>& order, int64_t n) {
  const int64_t m = kernel.rows() - n;
  double within_a = 0, within_b = 0, between = 0;
  for (int64_t i = 0; i < kernel.rows(); ++i) {
    const int64_t row = order[static_cast<size_t>(i)];
    for (int64_t j = 0; j < i; ++j) {
      const double value = kernel(row, order[static_cast<size_t>(j)]);
      if (i < n) {
        within_a += value;
      } else if (j >= n) {
        within_b += value;
      } else {
        between += value;
      }
    }
  }
  const auto na = static_cast<double>(n), nb = static_cast<double>(m);
  return 2 * within_a / (na * (na - 1)) + 2 * within_b / (nb * (nb - 1)) - 2 * between / (na * nb);
}

std::vector<int64_t> first_to_last(int64_t n) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  return order;
}

}  // namespace

double proxy_a_distance(const Tensor& a, const Tensor& b, RngKey key, int64_t most) {
  constexpr const char* kOp = "proxy A-distance";
  domains_of(kOp, a, b, 4);
  const Tensor domains[2] = {a.to(kCpu), b.to(kCpu)};
  const int64_t width = a.dim(1);
  std::vector<float> values[2];  // of the halves that train and judge
  std::vector<int64_t> labels[2];
  for (int64_t d = 0; d < 2; ++d) {
    const Tensor& domain = domains[d];
    const std::vector<int64_t> order =
        permutation(domain.dim(0), {key.seed, key.step, key.stream + static_cast<uint32_t>(d)});
    const int64_t used = std::min(domain.dim(0), most);
    for (int64_t i = 0; i < used; ++i) {
      const float* row = domain.data<float>() + order[static_cast<size_t>(i)] * width;
      values[i % 2].insert(values[i % 2].end(), row, row + width);
      labels[i % 2].push_back(d);
    }
  }
  const auto table = [&](int half) {
    return Tensor::of(values[half], {static_cast<int64_t>(labels[half].size()), width});
  };
  const Tensor train = table(0), judge = table(1);
  // Balanced error, so that domains of different sizes do not look apart by their size.
  double least = 0.5;
  LogisticRegression model;
  bool first = true;
  for (const double l2 : default_l2_candidates()) {
    model = LogisticRegression::fit(train, labels[0], 2, {.l2 = l2}, first ? nullptr : &model);
    first = false;
    const std::vector<int64_t> said = model.predict(judge);
    double wrong[2] = {}, count[2] = {};
    for (size_t i = 0; i < said.size(); ++i) {
      wrong[labels[1][i]] += said[i] != labels[1][i];
      count[labels[1][i]] += 1;
    }
    least = std::min(least, 0.5 * (wrong[0] / count[0] + wrong[1] / count[1]));
  }
  return 2 * (1 - 2 * least);
}

double mmd_squared(const Tensor& a, const Tensor& b) {
  const Matrix kernel = kernel_sums("MMD", a, b);
  return estimate(kernel, first_to_last(kernel.rows()), a.dim(0));
}

double mmd_p_value(const Tensor& a, const Tensor& b, RngKey key, int64_t permutations) {
  GRAFT_CHECK(permutations >= 1, "MMD: expected at least 1 permutation, got ", permutations);
  const Matrix kernel = kernel_sums("MMD", a, b);
  const double value = estimate(kernel, first_to_last(kernel.rows()), a.dim(0));
  int64_t as_large = 1;  // the domains as they are
  for (int64_t i = 0; i < permutations; ++i) {
    const RngKey own{key.seed, key.step, key.stream + static_cast<uint32_t>(i)};
    as_large += estimate(kernel, permutation(kernel.rows(), own), a.dim(0)) >= value;
  }
  return static_cast<double>(as_large) / static_cast<double>(permutations + 1);
}

double coral_distance(const Tensor& a, const Tensor& b) {
  const Domains d = domains_of("CORAL distance", a, b, 2);
  const auto width = static_cast<double>(d.a.cols());
  return (covariance(d.a) - covariance(d.b)).squaredNorm() / (4 * width * width);
}

}  // namespace graft
