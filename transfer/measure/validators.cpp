#include "transfer/measure/validators.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "transfer/measure/distance.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/matrix.h"
#include "transfer/measure/nearest.h"
#include "transfer/measure/statistics.h"

namespace graft {
namespace {

// -sum p log p of a row of probabilities.
template <class Row>
double entropy_of(const Row& row) {
  double sum = 0;
  for (int64_t j = 0; j < row.size(); ++j) {
    if (row(j) > 0) sum -= row(j) * std::log(row(j));
  }
  return sum;
}

// Every step-th row, at most `most`.
Matrix thinned(Matrix x, int64_t most) {
  if (x.rows() <= most) return x;
  Matrix result(most, x.cols());
  for (int64_t i = 0; i < most; ++i) result.row(i) = x.row(i * x.rows() / most);
  return result;
}

}  // namespace

double entropy_score(const Tensor& probabilities) {
  const Matrix p = matrix_of("entropy validator", "probabilities", probabilities);
  double sum = 0;
  for (int64_t i = 0; i < p.rows(); ++i) sum += entropy_of(p.row(i));
  return -sum / static_cast<double>(p.rows());
}

double nuclear_norm_score(const Tensor& probabilities) {
  const Matrix p = matrix_of("BNM validator", "probabilities", probabilities);
  // Singular values from the small side's Gram matrix.
  const Matrix gram = p.cols() <= p.rows() ? Matrix(p.transpose() * p) : Matrix(p * p.transpose());
  const Eigen::SelfAdjointEigenSolver<Matrix> solver(gram, Eigen::EigenvaluesOnly);
  return solver.eigenvalues().cwiseMax(0.0).cwiseSqrt().sum() / static_cast<double>(p.rows());
}

double soft_neighbourhood_density(const Tensor& probabilities, double temperature, int64_t most) {
  constexpr const char* kOp = "SND validator";
  GRAFT_CHECK(temperature > 0, kOp, ": expected a positive temperature, got ", temperature);
  Matrix p = thinned(matrix_of(kOp, "probabilities", probabilities), most);
  GRAFT_CHECK(p.rows() >= 2, kOp, ": expected at least 2 rows, got ", p.rows());
  for (int64_t i = 0; i < p.rows(); ++i) p.row(i) /= p.row(i).norm();
  double sum = 0;
  for (int64_t i = 0; i < p.rows(); ++i) {
    Eigen::RowVectorXd similar = (p * p.row(i).transpose()).transpose() / temperature;
    similar(i) = -std::numeric_limits<double>::infinity();
    similar = (similar.array() - similar.maxCoeff()).exp();
    similar /= similar.sum();
    sum += entropy_of(similar);
  }
  return sum / static_cast<double>(p.rows());
}

double deep_embedded_validation(const Tensor& source_features, const Tensor& target_features,
                                std::span<const double> source_losses) {
  constexpr const char* kOp = "DEV validator";
  const Matrix source = matrix_of(kOp, "source features", source_features);
  const Matrix target = matrix_of(kOp, "target features", target_features);
  GRAFT_CHECK(source.cols() == target.cols(), kOp, ": the domains have ", source.cols(), " and ",
              target.cols(), " features");
  GRAFT_CHECK(static_cast<int64_t>(source_losses.size()) == source.rows(), kOp,
              ": expected a loss for each of ", source.rows(), " source rows, got ",
              source_losses.size());
  // p(target | x) / p(source | x), corrected for the domains' sizes.
  std::vector<float> values;
  std::vector<int64_t> labels;
  for (const Matrix* domain : {&source, &target}) {
    for (int64_t i = 0; i < domain->size(); ++i) {
      values.push_back(static_cast<float>(domain->data()[i]));
    }
    labels.insert(labels.end(), static_cast<size_t>(domain->rows()), domain == &source ? 0 : 1);
  }
  const Tensor both =
      Tensor::of(values, {static_cast<int64_t>(labels.size()), source_features.dim(1)});
  const auto model = LogisticRegression::fit(both, labels, 2, {.l2 = 1e-2});
  const Tensor p = model.probabilities(source_features.to(kCpu));
  const double sizes = static_cast<double>(source.rows()) / static_cast<double>(target.rows());
  std::vector<double> weights, weighted;
  for (int64_t i = 0; i < source.rows(); ++i) {
    const double from_source = p.data<float>()[2 * i], from_target = p.data<float>()[2 * i + 1];
    weights.push_back(sizes * from_target / std::max(from_source, 1e-12));
    weighted.push_back(weights.back() * source_losses[static_cast<size_t>(i)]);
  }
  // The weights' mean is 1 in truth: what it is off by here tells how much the risk is off.
  const double weight_mean = mean_of(weights), risk = mean_of(weighted);
  double together = 0, own = 0;
  for (size_t i = 0; i < weights.size(); ++i) {
    together += (weighted[i] - risk) * (weights[i] - weight_mean);
    own += (weights[i] - weight_mean) * (weights[i] - weight_mean);
  }
  const double slope = own > 0 ? -together / own : 0;
  return -(risk + slope * weight_mean - slope);
}

double neighbour_agreement(const Tensor& target_features, std::span<const int64_t> predicted,
                           const Tensor& source_features, std::span<const int64_t> source_labels,
                           int64_t classes, int64_t k) {
  const std::vector<int64_t> said =
      nearest_labels(target_features, source_features, source_labels, classes, k);
  GRAFT_CHECK(said.size() == predicted.size(), "kNN validator: expected a prediction for each of ",
              said.size(), " rows, got ", predicted.size());
  int64_t agreed = 0;
  for (size_t i = 0; i < said.size(); ++i) agreed += said[i] == predicted[i];
  return static_cast<double>(agreed) / static_cast<double>(said.size());
}

double reverse_validation(const Tensor& target_features, std::span<const int64_t> predicted,
                          const Tensor& source_features, std::span<const int64_t> source_labels,
                          int64_t classes) {
  constexpr const char* kOp = "reverse validator";
  GRAFT_CHECK(!source_labels.empty() &&
                  static_cast<int64_t>(source_labels.size()) == source_features.dim(0),
              kOp, ": expected a label for each of ", source_features.dim(0), " source rows, got ",
              source_labels.size());
  const bool one_class = check_labels(kOp, predicted, target_features.dim(0), classes) == 1;
  std::vector<int64_t> said(source_labels.size(), predicted[0]);
  if (!one_class) {
    said = LogisticRegression::fit(target_features, predicted, classes, {.l2 = 1e-2})
               .predict(source_features);
  }
  int64_t right = 0;
  for (size_t i = 0; i < said.size(); ++i) right += said[i] == source_labels[i];
  return static_cast<double>(right) / static_cast<double>(said.size());
}

double discrepancy_score(const Tensor& source_features, const Tensor& target_features) {
  return -mmd_squared(source_features, target_features);
}

}  // namespace graft
