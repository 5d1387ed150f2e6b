// Plans by name.
#pragma once

#include <string>
#include <vector>

#include "transfer/plan.h"

namespace graft {

// The network from input to head as blocks: what a preset unfreezes or slows down as one. A block
// is an entry of a sequence ("layer1.0", "features.3", "_blocks.7") or a layer of its own; a batch
// norm belongs to the convolution before it. The last block is the head.
struct Block {
  std::string name;
  std::vector<std::string> modules;
};
std::vector<Block> blocks_of(ImageModel& model);

struct Preset {
  std::string name;
  std::string summary;  // one line for people
};
std::vector<Preset> presets();

// The preset for this model, with the options' epochs (of all phases together), learning rate,
// schedule, weight decay and batch-norm policy. Throws with the names there are.
Plan make_preset(const std::string& name, const FinetuneOptions& options, ImageModel& model);

}  // namespace graft
