// Multinomial logistic regression: the linear probe, and the classifier behind the domain distance
// and density ratios.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/tensor.h"
#include "kernels/types.h"

namespace graft {

// Minimises  mean cross-entropy + l2 / 2 |W|^2  (the bias is free) over features standardised to
// mean 0 and deviation 1, by L-BFGS (Nocedal 1980) in double. Convex: the result does not depend on
// a seed. scikit-learn's C is 1 / (rows l2).
class LogisticRegression {
 public:
  struct Options {
    double l2 = 1e-3;
    int64_t iterations = 300;
    double tolerance = 1e-6;  // on the largest entry of the gradient
  };
  // features f32 (n, d), labels in 0..classes-1. `start`: where to begin, of the same sizes, or
  // null.
  static LogisticRegression fit(const Tensor& features, std::span<const int64_t> labels,
                                int64_t classes, const Options& options,
                                const LogisticRegression* start = nullptr);

  // f32 (n, classes).
  Tensor probabilities(const Tensor& features) const;
  std::vector<int64_t> predict(const Tensor& features) const;
  double loss() const { return loss_; }  // of the minimum, penalty included
  bool converged() const { return converged_; }
  int64_t classes() const { return classes_; }
  int64_t width() const { return width_; }
  // W (classes, width) and bias (classes) for features as they are, without standardising.
  void linear_layer(std::vector<float>& weight, std::vector<float>& bias) const;

 private:
  int64_t classes_ = 0, width_ = 0;
  std::vector<double> mean_, scale_;  // standardising: (x - mean) scale
  std::vector<double> weights_;       // (classes, width + 1), the bias last
  double loss_ = 0;
  bool converged_ = false;
};

// Each row's fold, 0..folds-1, every class spread evenly.
std::vector<int64_t> stratified_folds(std::span<const int64_t> labels, int64_t classes,
                                      int64_t folds, RngKey key);

struct CrossValidation {
  double best_l2 = 0;
  std::vector<double> l2;        // the candidates
  std::vector<double> accuracy;  // of each, over all held-out rows
  std::vector<double> loss;      // mean cross-entropy, likewise
};
// Tries each l2 on `folds` stratified folds; the best has the lowest held-out cross-entropy.
CrossValidation choose_l2(const Tensor& features, std::span<const int64_t> labels, int64_t classes,
                          const std::vector<double>& candidates, int64_t folds, RngKey key);
// What a probe says of each row that was fitted on the folds without it, with the penalty that is
// best on three other folds (of four from 1e-3 to 1): the linear probe where there are no rows to
// spare for judging.
std::vector<int64_t> cross_validated_labels(const Tensor& features, std::span<const int64_t> labels,
                                            int64_t classes, int64_t folds, RngKey key);
// 1e-5 ... 1e1, a factor of ten apart.
std::vector<double> default_l2_candidates();

}  // namespace graft
