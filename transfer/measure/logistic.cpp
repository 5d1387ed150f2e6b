#include "transfer/measure/logistic.h"

#include <algorithm>
#include <cmath>
#include <deque>

#include "engine/rng.h"
#include "transfer/measure/matrix.h"
#include "transfer/measure/rows.h"

namespace graft {
namespace {

constexpr const char* kOp = "logistic regression";

// The objective over W (classes, d + 1) for standardised x (n, d) with a column of ones.
class Objective {
 public:
  Objective(Matrix x, std::span<const int64_t> labels, int64_t classes, double l2)
      : x_(std::move(x)), labels_(labels), classes_(classes), l2_(l2) {}

  double operator()(const Vector& at, Vector& gradient) const {
    const Eigen::Map<const Matrix> w(at.data(), classes_, x_.cols());
    Matrix scores = x_ * w.transpose();
    const auto n = static_cast<double>(x_.rows());
    double loss = 0;
    for (int64_t i = 0; i < scores.rows(); ++i) {
      const int64_t label = labels_[static_cast<size_t>(i)];
      auto row = scores.row(i);
      const double largest = row.maxCoeff(), own = row(label);
      row = (row.array() - largest).exp();
      const double sum = row.sum();
      loss += std::log(sum) + largest - own;
      row /= sum;
      row(label) -= 1;
    }
    gradient.resize(at.size());
    Eigen::Map<Matrix> g(gradient.data(), classes_, x_.cols());
    g.noalias() = scores.transpose() * x_ / n;
    const auto penalised = w.leftCols(x_.cols() - 1);
    g.leftCols(x_.cols() - 1) += l2_ * penalised;
    return loss / n + 0.5 * l2_ * penalised.squaredNorm();
  }

 private:
  Matrix x_;
  std::span<const int64_t> labels_;
  int64_t classes_;
  double l2_;
};

struct Minimum {
  Vector at;
  double value;
  bool converged;
};

// L-BFGS with a backtracking line search; the curvature condition is kept by skipping pairs.
Minimum minimise(const Objective& f, Vector at, int64_t iterations, double tolerance) {
  constexpr size_t kMemory = 10;
  struct Pair {
    Vector step, change;
    double inverse;
  };
  std::deque<Pair> pairs;
  Vector gradient;
  double value = f(at, gradient);
  for (int64_t i = 0; i < iterations; ++i) {
    if (gradient.lpNorm<Eigen::Infinity>() <= tolerance) return {at, value, true};
    Vector direction = -gradient;
    std::vector<double> shares(pairs.size());
    for (size_t k = pairs.size(); k-- > 0;) {
      shares[k] = pairs[k].inverse * pairs[k].step.dot(direction);
      direction -= shares[k] * pairs[k].change;
    }
    if (!pairs.empty()) {
      direction /= pairs.back().inverse * pairs.back().change.squaredNorm();
    } else {
      direction /= std::max(1.0, gradient.norm());
    }
    for (size_t k = 0; k < pairs.size(); ++k) {
      direction += (shares[k] - pairs[k].inverse * pairs[k].change.dot(direction)) * pairs[k].step;
    }
    const double slope = gradient.dot(direction);
    double length = 1, next_value = 0;
    Vector next, next_gradient;
    bool found = false;
    for (int halving = 0; halving < 40 && !found; ++halving, length /= 2) {
      next = at + length * direction;
      next_value = f(next, next_gradient);
      found = next_value <= value + 1e-4 * length * slope;
    }
    // Rounding hides any further descent.
    if (!found) return {at, value, gradient.lpNorm<Eigen::Infinity>() <= 100 * tolerance};
    Pair pair{next - at, next_gradient - gradient, 0};
    const double curvature = pair.step.dot(pair.change);
    if (curvature > 1e-12 * pair.step.squaredNorm()) {
      pair.inverse = 1 / curvature;
      pairs.push_back(std::move(pair));
      if (pairs.size() > kMemory) pairs.pop_front();
    }
    at = std::move(next);
    gradient = std::move(next_gradient);
    value = next_value;
  }
  return {at, value, false};
}

Matrix with_ones(Matrix x, const std::vector<double>& mean, const std::vector<double>& scale) {
  for (int64_t j = 0; j < x.cols(); ++j) {
    x.col(j).array() -= mean[static_cast<size_t>(j)];
    x.col(j) *= scale[static_cast<size_t>(j)];
  }
  x.conservativeResize(Eigen::NoChange, x.cols() + 1);
  x.col(x.cols() - 1).setOnes();
  return x;
}

}  // namespace

LogisticRegression LogisticRegression::fit(const Tensor& features, std::span<const int64_t> labels,
                                           int64_t classes, const Options& options,
                                           const LogisticRegression* start) {
  Matrix x = matrix_of(kOp, "features", features);
  GRAFT_CHECK(classes >= 2, kOp, ": expected at least 2 classes, got ", classes);
  GRAFT_CHECK(options.l2 >= 0, kOp, ": expected an l2 of at least 0, got ", options.l2);
  check_labels(kOp, labels, x.rows(), classes);
  LogisticRegression result;
  result.classes_ = classes;
  result.width_ = x.cols();
  for (int64_t j = 0; j < x.cols(); ++j) {
    const double mean = x.col(j).mean();
    const double deviation = std::sqrt((x.col(j).array() - mean).square().mean());
    result.mean_.push_back(mean);
    // A column that is constant but for rounding says nothing.
    result.scale_.push_back(deviation > 1e-12 * (1 + std::fabs(mean)) ? 1 / deviation : 0);
  }
  Vector at = Vector::Zero(classes * (x.cols() + 1));
  if (start != nullptr) {
    GRAFT_CHECK(start->classes_ == classes && start->width_ == x.cols(), kOp,
                ": the start has other sizes");
    at = Eigen::Map<const Vector>(start->weights_.data(), at.size());
  }
  const Objective objective(with_ones(std::move(x), result.mean_, result.scale_), labels, classes,
                            options.l2);
  const Minimum minimum = minimise(objective, at, options.iterations, options.tolerance);
  result.weights_.assign(minimum.at.data(), minimum.at.data() + minimum.at.size());
  result.loss_ = minimum.value;
  result.converged_ = minimum.converged;
  return result;
}

Tensor LogisticRegression::probabilities(const Tensor& features) const {
  Matrix x = matrix_of(kOp, "features", features);
  GRAFT_CHECK(x.cols() == width_, kOp, ": fitted to ", width_, " features, got ", features);
  const Eigen::Map<const Matrix> w(weights_.data(), classes_, width_ + 1);
  Matrix scores = with_ones(std::move(x), mean_, scale_) * w.transpose();
  Tensor result({scores.rows(), classes_});
  float* out = result.mutable_data<float>();
  for (int64_t i = 0; i < scores.rows(); ++i) {
    auto row = scores.row(i);
    row = (row.array() - row.maxCoeff()).exp();
    row /= row.sum();
    for (int64_t c = 0; c < classes_; ++c) *out++ = static_cast<float>(row(c));
  }
  return result;
}

std::vector<int64_t> LogisticRegression::predict(const Tensor& features) const {
  const Tensor all = probabilities(features);
  std::vector<int64_t> result;
  for (int64_t i = 0; i < all.dim(0); ++i) {
    const float* row = all.data<float>() + i * classes_;
    result.push_back(std::max_element(row, row + classes_) - row);
  }
  return result;
}

void LogisticRegression::linear_layer(std::vector<float>& weight, std::vector<float>& bias) const {
  weight.clear();
  bias.clear();
  for (int64_t c = 0; c < classes_; ++c) {
    const double* row = weights_.data() + c * (width_ + 1);
    double shift = row[width_];
    for (int64_t j = 0; j < width_; ++j) {
      const auto k = static_cast<size_t>(j);
      weight.push_back(static_cast<float>(row[j] * scale_[k]));
      shift -= row[j] * scale_[k] * mean_[k];
    }
    bias.push_back(static_cast<float>(shift));
  }
}

std::vector<int64_t> stratified_folds(std::span<const int64_t> labels, int64_t classes,
                                      int64_t folds, RngKey key) {
  const auto n = static_cast<int64_t>(labels.size());
  GRAFT_CHECK(folds >= 2 && folds <= n, "folds: expected 2 to ", n, ", got ", folds);
  check_labels("folds", labels, n, classes);
  std::vector<int64_t> result(labels.size());
  std::vector<int64_t> order = permutation(n, key);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return labels[static_cast<size_t>(a)] < labels[static_cast<size_t>(b)];
  });
  for (int64_t i = 0; i < n; ++i) {
    result[static_cast<size_t>(order[static_cast<size_t>(i)])] = i % folds;
  }
  return result;
}

CrossValidation choose_l2(const Tensor& features, std::span<const int64_t> labels, int64_t classes,
                          const std::vector<double>& candidates, int64_t folds, RngKey key) {
  GRAFT_CHECK(!candidates.empty(), kOp, ": there is no l2 to choose from");
  const Tensor here = features.to(kCpu);
  const std::vector<int64_t> fold_of = stratified_folds(labels, classes, folds, key);
  CrossValidation result;
  result.l2 = candidates;
  // From strong to weak: each minimum is a good start for the next.
  std::sort(result.l2.begin(), result.l2.end(), std::greater<>());
  result.accuracy.assign(result.l2.size(), 0);
  result.loss.assign(result.l2.size(), 0);
  for (int64_t fold = 0; fold < folds; ++fold) {
    std::vector<int64_t> train, held;
    std::vector<int64_t> train_labels, held_labels;
    for (size_t i = 0; i < labels.size(); ++i) {
      const bool out = fold_of[i] == fold;
      (out ? held : train).push_back(static_cast<int64_t>(i));
      (out ? held_labels : train_labels).push_back(labels[i]);
    }
    const Tensor train_x = rows_of(here, train), held_x = rows_of(here, held);
    LogisticRegression model;
    for (size_t k = 0; k < result.l2.size(); ++k) {
      model = LogisticRegression::fit(train_x, train_labels, classes, {.l2 = result.l2[k]},
                                      k > 0 ? &model : nullptr);
      const Tensor p = model.probabilities(held_x);
      for (size_t i = 0; i < held_labels.size(); ++i) {
        const float* row = p.data<float>() + static_cast<int64_t>(i) * classes;
        const int64_t best = std::max_element(row, row + classes) - row;
        result.accuracy[k] += best == held_labels[i] ? 1 : 0;
        result.loss[k] -= std::log(std::max(1e-30, static_cast<double>(row[held_labels[i]])));
      }
    }
  }
  const auto n = static_cast<double>(labels.size());
  for (size_t k = 0; k < result.l2.size(); ++k) {
    result.accuracy[k] /= n;
    result.loss[k] /= n;
  }
  const auto best = std::min_element(result.loss.begin(), result.loss.end());
  result.best_l2 = result.l2[static_cast<size_t>(best - result.loss.begin())];
  return result;
}

std::vector<int64_t> cross_validated_labels(const Tensor& features, std::span<const int64_t> labels,
                                            int64_t classes, int64_t folds, RngKey key) {
  // Neither a stronger nor a weaker penalty is often best for features of a trained network.
  const double l2 = choose_l2(features, labels, classes, {1e-3, 1e-2, 1e-1, 1}, 3, key).best_l2;
  const std::vector<int64_t> fold_of = stratified_folds(labels, classes, folds, key);
  const Tensor here = features.to(kCpu);
  std::vector<int64_t> said(labels.size());
  for (int64_t fold = 0; fold < folds; ++fold) {
    std::vector<int64_t> train, held;
    for (size_t i = 0; i < fold_of.size(); ++i) {
      (fold_of[i] == fold ? held : train).push_back(static_cast<int64_t>(i));
    }
    const auto model = LogisticRegression::fit(rows_of(here, train), labels_of(labels, train),
                                               classes, {.l2 = l2});
    const std::vector<int64_t> answers = model.predict(rows_of(here, held));
    for (size_t i = 0; i < held.size(); ++i) said[static_cast<size_t>(held[i])] = answers[i];
  }
  return said;
}

std::vector<double> default_l2_candidates() { return {1e1, 1, 1e-1, 1e-2, 1e-3, 1e-4, 1e-5}; }

}  // namespace graft
