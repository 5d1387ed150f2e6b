// What a run does against overfitting beyond the plain loss; README.md says when each helps.
#pragma once

#include <cstdint>
#include <string>

namespace graft {

struct FinetuneOptions;

struct RegulariseOptions {
  // --- terms of the loss; weight 0: none
  float l2_sp = 0;           // pull of the features towards the weights that the run starts from
  float l2_sp_head = 0.01f;  // pull of the head towards 0, where l2_sp is positive
  float delta = 0;           // pull of the feature maps towards those of the starting weights
  int64_t delta_images = 0;  // that its attention to channels is measured on; 0: all count alike
  float bss = 0;             // on the smallest singular values of a batch's features
  int64_t bss_values = 1;    // how many of them
  float co_tuning = 0;       // of the source head's cross-entropy
  // --- noise
  float stoch_norm = 0;  // probability that a channel is normalised with the running statistics
  float mixup = 0;       // Beta(a, a) of the shares of two mixed images; 0: off
  float cutmix = 0;      // the same of the area pasted from another image; 0: off
  // --- the weights that are judged and kept; negative: the last ones
  float ema = -1;  // decay of an exponential moving average over steps
  float swa = -1;  // the part of a phase's epochs after which their weights are averaged

  bool mixes() const { return mixup > 0 || cutmix > 0; }
  // Whether the weights that the run starts from are needed as long as it runs.
  bool needs_start() const { return l2_sp > 0 || delta > 0 || co_tuning > 0; }
};

// Throws Error naming what is out of range or contradicts another option.
void check_regularisation(const FinetuneOptions& options);
// "cross entropy + L2-SP (0.1 from the start, 0.01 on the head); judged by EMA 0.99"
std::string describe_objective(const FinetuneOptions& options);

}  // namespace graft
