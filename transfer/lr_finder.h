// The learning-rate range test (Smith, Cyclical learning rates, 2017): the rate grows exponentially
// from step to step, and the loss tells where it begins to help and where it begins to harm.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "transfer/finetune.h"

namespace graft {

struct LrFinderOptions {
  double lowest = 1e-7, highest = 10;
  int64_t steps = 100;
  double smoothing = 0.98;  // of the moving average over the losses, unbiased at the start
  double stop_factor = 4;   // stops when the smoothed loss is so many times its minimum
};

struct LrFinderResult {
  std::vector<double> rates, losses, smoothed;  // of each step taken
  bool diverged = false;                        // stopped before the last step
  // Suggestions, as fastai names them; none where the loss never falls.
  // The middle of the longest valley of falling losses: a good peak rate.
  std::optional<double> valley;
  // Where the loss falls fastest.
  std::optional<double> steepest;
  // A tenth of the rate with the lowest loss: the largest rate to dare.
  std::optional<double> tenth_of_minimum;
};

// Trains a copy of what the options describe, in their plan's last phase, and writes nothing. A
// rule's multipliers stay: the rate is that of the phase. Throws as finetune() does, on a range
// that is none, and on fewer than 10 steps.
LrFinderResult find_learning_rate(const FinetuneOptions& options, const LrFinderOptions& finder,
                                  Observer& observer);
// The suggestions for given rates and smoothed losses.
void suggest(LrFinderResult& result);

}  // namespace graft
