// A network looked at from both domains: the numbers from which an epoch is chosen.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "transfer/batches.h"

namespace graft {

// One pass without a tape, in inference mode; everything on the CPU.
struct DomainView {
  Tensor features;       // f32 (n, feature width)
  Tensor probabilities;  // f32 (n, classes)
  std::vector<int64_t> labels, predicted;
  std::vector<double> losses;  // cross-entropy of each row's label
  double accuracy() const;
  double loss() const;
};
// `keep_going` is called after every batch with the number of samples done; when it returns false
// the view is empty.
DomainView look(ImageModel& model, Batches& batches, Device device,
                const std::function<bool(int64_t)>& keep_going);

// The validators by name: source, bnm, dev, entropy, knn, mmd, reverse, snd (measure/validators.h),
// all from the source's held-out images and the target without its labels.
std::map<std::string, double> validator_scores(const DomainView& source, const DomainView& target);
// The names, and "last".
std::vector<std::string> validator_names();

// Every so many rows of (n, ...), at most `most`.
Tensor thinned(const Tensor& x, int64_t most);

}  // namespace graft
