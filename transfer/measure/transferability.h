// Scores that foretell how well a pre-trained network will do on a task, without training on it:
// from its features (H-score, LogME) or from its own classifier's outputs (LEEP, NCE). Larger is
// better. They rank networks on one task; their values mean nothing across tasks, and none is right
// every time: use them with their intervals (statistics.h) and beside a probe.
#pragma once

#include <cstdint>
#include <span>

#include "engine/tensor.h"

namespace graft {

// H-score (Bao et al. 2019) with a shrunk covariance (Ibrahim et al. 2022; Ledoit and Wolf 2004):
// tr(Cov(f)^-1 Cov(E[f | y])), from 0 to classes - 1. Shrinking keeps it finite and honest where
// there are fewer rows than features. features f32 (n, d), n >= 2.
double h_score(const Tensor& features, std::span<const int64_t> labels, int64_t classes);

// Log of the maximum evidence of a Bayesian linear model from features to labels, a row (You et
// al. 2021), averaged over classes. features f32 (n, d).
double log_me(const Tensor& features, std::span<const int64_t> labels, int64_t classes);

// Log expected empirical prediction (Nguyen et al. 2020): mean log-likelihood of the labels under
// sum over z of P(y | z) p(z | x), where p is the source classifier's and P(y | z) their joint
// frequencies. source_probabilities f32 (n, source classes), rows summing to 1. At most 0.
double leep(const Tensor& source_probabilities, std::span<const int64_t> labels, int64_t classes);

// Negative conditional entropy -H(y | z) of the labels given the source classifier's most probable
// class z (Tran et al. 2019). At most 0.
double nce(const Tensor& source_probabilities, std::span<const int64_t> labels, int64_t classes);

}  // namespace graft
