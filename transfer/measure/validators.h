// Judging a model on a target domain without its labels. Each function gives a score, larger is
// better, of one checkpoint; the checkpoint with the largest is chosen. None of them sees a target
// label.
#pragma once

#include <span>

#include "engine/tensor.h"
#include "kernels/types.h"

namespace graft {

// probabilities f32 (n, classes), rows summing to 1, of target images.

// Minus the mean entropy of the predictions (Morerio et al. 2018). A model that puts everything
// into one class scores best: use it with the balance of predictions beside it.
double entropy_score(const Tensor& probabilities);
// The nuclear norm of the predictions over n (batch nuclear-norm maximisation, Cui et al. 2020):
// confident and diverse. At most sqrt(min(n, classes) / n).
double nuclear_norm_score(const Tensor& probabilities);
// Soft neighbourhood density (Saito et al. 2021): mean entropy of the softmax over the other rows'
// similarities; dense neighbourhoods score high. Rows beyond `most` are left out, evenly.
double soft_neighbourhood_density(const Tensor& probabilities, double temperature = 0.05,
                                  int64_t most = 4000);

// Deep embedded validation (You et al. 2019): minus the importance-weighted loss on labelled source
// images held out of training, with a control variate. Weights come from a logistic regression that
// tells source features from target features. source_features (n, d), target_features (m, d),
// source_losses (n): each held-out source image's loss.
double deep_embedded_validation(const Tensor& source_features, const Tensor& target_features,
                                std::span<const double> source_losses);

// Agreement of each target prediction with its k nearest source images' labels, in feature space.
double neighbour_agreement(const Tensor& target_features, std::span<const int64_t> predicted,
                           const Tensor& source_features, std::span<const int64_t> source_labels,
                           int64_t classes, int64_t k = 5);

// Reverse validation (Zhong et al. 2010; Ganin et al. 2016) in its cheap form: a linear classifier
// is fitted to the target features with the predictions as labels, and judged on labelled source
// features; its accuracy. Where all predictions are one class it is that class's share. The
// features are the checkpoint's own, so that a mistake both directions share goes unseen.
double reverse_validation(const Tensor& target_features, std::span<const int64_t> predicted,
                          const Tensor& source_features, std::span<const int64_t> source_labels,
                          int64_t classes);

// Minus the squared maximum mean discrepancy of source and target features (distance.h).
double discrepancy_score(const Tensor& source_features, const Tensor& target_features);

}  // namespace graft
