// How a checkpoint's tensors compare with those that an architecture wants.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layers/models/zoo.h"

namespace graft {

// The outcome of one comparison. Class count and input channels are the file's own, not a
// difference.
struct Fit {
  std::string architecture;
  int64_t classes = 0;  // 0: the file has no head
  int64_t in_channels = 0;
  int64_t matching = 0;
  std::vector<std::string> missing;     // num_batches_tracked and an absent head not counted
  std::vector<std::string> mismatched;  // "conv1.weight: resnet18 wants [...], the file has [...]"
  std::vector<std::string> left_over;
  bool exact() const { return missing.empty() && mismatched.empty() && left_over.empty(); }
};

Fit fit(const std::string& architecture, const std::map<std::string, Shape>& file);

// Every architecture that recognise() knows (with the common widths of mobilenet_v2), best fit
// first.
std::vector<Fit> fits(const std::map<std::string, Shape>& file);

}  // namespace graft
