#include "transfer/measure/transferability.h"

#include <cmath>
#include <numbers>

#include "kernels/cpu/eigen_svd.h"
#include "transfer/measure/matrix.h"

namespace graft {
namespace {

// Ledoit and Wolf's intensity: how much of the covariance to replace by a multiple of the identity.
double shrinkage(const Matrix& centred, const Matrix& covariance) {
  if (centred.cols() == 1) return 0;  // one number is its own multiple of the identity
  const auto n = static_cast<double>(centred.rows()), d = static_cast<double>(centred.cols());
  const double target = covariance.trace() / d;
  const double apart =
      (covariance - target * Matrix::Identity(covariance.rows(), covariance.rows())).squaredNorm();
  if (apart <= 0) return 1;
  // sum over rows of |x x^T - C|^2 = sum of |x|^4 - n |C|^2
  double fourth = 0;
  for (int64_t i = 0; i < centred.rows(); ++i) {
    const double square = centred.row(i).squaredNorm();
    fourth += square * square;
  }
  const double noise = (fourth / n - covariance.squaredNorm()) / n;
  return std::min(1.0, std::max(0.0, noise / apart));
}

// Joint frequencies (classes, source classes) of label and source class, given weights a row.
Matrix joint(const Matrix& weights, std::span<const int64_t> labels, int64_t classes) {
  Matrix result = Matrix::Zero(classes, weights.cols());
  for (int64_t i = 0; i < weights.rows(); ++i) {
    result.row(labels[static_cast<size_t>(i)]) += weights.row(i);
  }
  return result / static_cast<double>(weights.rows());
}

Matrix probabilities_of(const char* op, const Tensor& x) {
  const Matrix p = matrix_of(op, "source probabilities", x);
  for (int64_t i = 0; i < p.rows(); ++i) {
    GRAFT_CHECK(p.row(i).minCoeff() >= 0 && std::fabs(p.row(i).sum() - 1) < 1e-3, op, ": row ", i,
                " of the source probabilities sums to ", p.row(i).sum(),
                ", expected 1; give the "
                "softmax of the logits");
  }
  return p;
}

}  // namespace

double h_score(const Tensor& features, std::span<const int64_t> labels, int64_t classes) {
  constexpr const char* kOp = "H-score";
  Matrix x = matrix_of(kOp, "features", features);
  GRAFT_CHECK(x.rows() >= 2, kOp, ": expected at least 2 rows, got ", x.rows());
  check_labels(kOp, labels, x.rows(), classes);
  x.rowwise() -= x.colwise().mean().eval();
  const auto n = static_cast<double>(x.rows());
  Matrix covariance = x.transpose() * x / n;
  if (covariance.trace() <= 0) return 0;  // constant features
  const double part = shrinkage(x, covariance);
  // Cov(E[f | y]) = M^T diag(count / n) M with M the class means; its square root is thin.
  Matrix root = Matrix::Zero(classes, x.cols());
  Vector counts = Vector::Zero(classes);
  for (int64_t i = 0; i < x.rows(); ++i) {
    root.row(labels[static_cast<size_t>(i)]) += x.row(i);
    counts(labels[static_cast<size_t>(i)]) += 1;
  }
  for (int64_t c = 0; c < classes; ++c) {
    if (counts(c) > 0) root.row(c) /= std::sqrt(counts(c) * n);
  }
  const double target = covariance.trace() / static_cast<double>(x.cols());
  covariance *= 1 - part;
  // Without shrinking (many rows) the covariance may still be singular to rounding.
  covariance.diagonal().array() += part * target + 1e-10 * target;
  const Eigen::LLT<Matrix> factor(covariance);
  const Matrix solved = factor.solve(root.transpose());
  return (1 - part) * (root * solved).trace();
}

double log_me(const Tensor& features, std::span<const int64_t> labels, int64_t classes) {
  constexpr const char* kOp = "LogME";
  const Matrix x = matrix_of(kOp, "features", features);
  check_labels(kOp, labels, x.rows(), classes);
  const auto n = static_cast<double>(x.rows()), d = static_cast<double>(x.cols());
  // Squared singular values, and the labels in the basis of the left singular vectors.
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(x, Eigen::ComputeThinU);
  const Vector square = svd.singularValues().array().square();
  const auto k = static_cast<double>(square.size());
  double total = 0;
  for (int64_t c = 0; c < classes; ++c) {
    Vector y(x.rows());
    for (int64_t i = 0; i < x.rows(); ++i) y(i) = labels[static_cast<size_t>(i)] == c ? 1 : 0;
    const Vector inside = (svd.matrixU().transpose() * y).array().square();
    const double outside = std::max(0.0, y.squaredNorm() - inside.sum());
    // The fixed point of alpha (precision of the weights) and beta (of the noise).
    double alpha = 1, beta = 1, weight_norm = 0, residual = 0;
    const auto measure = [&] {
      const double ratio = alpha / beta;
      weight_norm = (square.array() * inside.array() / (square.array() + ratio).square()).sum();
      residual = outside + (inside.array() * (ratio / (square.array() + ratio)).square()).sum();
    };
    constexpr double kTiny = 1e-12;  // a class that is fitted exactly has no noise
    for (int step = 0; step < 100; ++step) {
      measure();
      const double ratio = alpha / beta;
      const double used = (square.array() / (square.array() + ratio)).sum();
      alpha = used / (weight_norm + kTiny);
      beta = (n - used) / (residual + kTiny);
      if (std::fabs(alpha / beta - ratio) <= 1e-6 * ratio) break;
    }
    measure();
    const double determinant =
        (alpha + beta * square.array()).log().sum() + (d - k) * std::log(alpha);
    total += 0.5 *
             (d * std::log(alpha) + n * std::log(beta) - determinant - beta * residual -
              alpha * weight_norm - n * std::log(2 * std::numbers::pi)) /
             n;
  }
  return total / static_cast<double>(classes);
}

double leep(const Tensor& source_probabilities, std::span<const int64_t> labels, int64_t classes) {
  constexpr const char* kOp = "LEEP";
  const Matrix p = probabilities_of(kOp, source_probabilities);
  check_labels(kOp, labels, p.rows(), classes);
  Matrix given = joint(p, labels, classes);  // P(y, z), then P(y | z)
  for (int64_t z = 0; z < given.cols(); ++z) {
    const double sum = given.col(z).sum();
    if (sum > 0) given.col(z) /= sum;
  }
  double sum = 0;
  for (int64_t i = 0; i < p.rows(); ++i) {
    sum += std::log(given.row(labels[static_cast<size_t>(i)]).dot(p.row(i)));
  }
  return sum / static_cast<double>(p.rows());
}

double nce(const Tensor& source_probabilities, std::span<const int64_t> labels, int64_t classes) {
  constexpr const char* kOp = "NCE";
  const Matrix p = probabilities_of(kOp, source_probabilities);
  check_labels(kOp, labels, p.rows(), classes);
  Matrix hard = Matrix::Zero(p.rows(), p.cols());
  for (int64_t i = 0; i < p.rows(); ++i) {
    Eigen::Index z = 0;
    p.row(i).maxCoeff(&z);
    hard(i, z) = 1;
  }
  const Matrix together = joint(hard, labels, classes);
  double sum = 0;
  for (int64_t z = 0; z < together.cols(); ++z) {
    const double all = together.col(z).sum();
    for (int64_t y = 0; y < classes; ++y) {
      if (together(y, z) > 0) sum += together(y, z) * std::log(together(y, z) / all);
    }
  }
  return sum;
}

}  // namespace graft
