// LoRA: low-rank adapters (Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021).
// A layer with the frozen weight W computes
//
//   y = W x + bias + (alpha / rank) B A dropout(x)
//
// and only A (rank rows, random at first) and B (zero at first) learn. Of a convolution A is a
// convolution to `rank` channels with W's kernel, stride, padding and groups (rank channels a
// group) and B one of 1 x 1 behind it, which is the same as adding (alpha / rank) B A to W. So
// after training W + (alpha / rank) B A is an ordinary weight, and the model as fast as before.
//
// Attention (attention.h) has its projections adapted, which are Linear layers. An adapter stands
// only where it has fewer values than the weight: depthwise convolutions get none, nor do small
// layers at a high rank.
#pragma once

#include <string>
#include <utility>
#include <vector>

#include "layers/adapted.h"

namespace graft {

struct LoraOptions {
  int64_t rank = 0;                 // 0: no adapters
  float alpha = 0;                  // 0: as large as the rank
  float dropout = 0;                // of what the adapters see, in training
  std::vector<std::string> layers;  // name patterns (name_pattern.h); none: every layer
  float scale() const { return alpha == 0 ? 1.0f : alpha / static_cast<float>(rank); }
};

struct AttachedAdapters {
  std::vector<std::string> layers;    // that have one now
  std::vector<std::string> left_out;  // that were meant, too, but are too small for the rank
  int64_t values = 0;                 // of all adapters
};

// Gives the layers that the patterns name adapters. `whole` names modules that go on training in
// full, such as a new head; every other parameter becomes an adapter's base (AdapterRole) and stops
// training. Throws when a pattern matches nothing that can take an adapter of this rank, and when
// the model has adapters.
AttachedAdapters attach_adapters(Module& root, const LoraOptions& options,
                                 const std::vector<std::string>& whole, RngKey key);
bool has_adapters(Module& root);

// state_dict() of the model without adapters that computes the same.
StateDict merged_state_dict(Module& root);
// Makes it that model: adapters go into the weights, which are parameters like any other again.
void merge_adapters(Module& root);

// While it lives the adapters are merged into the weights, so that the model runs as fast as one
// without; afterwards the weights are what they were, to the byte. Not for training.
class LoraMerged {
 public:
  explicit LoraMerged(Module& root);
  ~LoraMerged();
  LoraMerged(const LoraMerged&) = delete;
  LoraMerged& operator=(const LoraMerged&) = delete;

 private:
  std::vector<std::pair<AdaptedLayer*, Tensor>> weights_;
};

}  // namespace graft
