// Batch normalisation over two domains.
//
//   frozen  running statistics of the pre-trained weights, kept
//   joint   source and target make up one batch, whose statistics they share
//   domain  a pass each; each domain has running statistics of its own, weights and biases are
//           shared (after Chang et al., Domain-Specific Batch Normalization, CVPR 2019)
//
// Trap: with separate passes and one set of running statistics, a network is judged with a mixture
// that it was never trained with. `domain` therefore swaps the buffers; what is saved has the
// target's.
#pragma once

#include <cstdint>
#include <vector>

#include "layers/norm.h"
#include "transfer/batches.h"

namespace graft {

enum class NormMode : uint8_t { frozen, joint, domain };
enum class Domain : uint8_t { source, target };

class DomainNorm {
 public:
  // Finds the batch norms of the network, and freezes their statistics if the mode says so.
  DomainNorm(Module& network, NormMode mode);
  NormMode mode() const { return mode_; }
  // Of a network, its batch norms.
  static size_t count(Module& network);
  // Puts this domain's running statistics into the network; of interest in mode `domain` only.
  void use(Domain domain);
  // The statistics that are not in the network, "bn1.running_mean" -> tensor on the CPU; empty but
  // in mode `domain`. To be called while the target's are in use.
  StateDict source_state() const;
  void load_source_state(const StateDict& state);

 private:
  struct Norm {
    std::string name;
    BatchNorm2d* layer;
    Tensor mean, variance;  // of the domain that is not in use
  };
  NormMode mode_;
  Domain in_use_ = Domain::target;
  std::vector<Norm> norms_;
};

// Replaces the running statistics by those of these images: mean and unbiased variance over all
// batches, exact in the first batch norm; the deeper ones see activations that were normalised
// batch by batch, as in training (AdaBN, Li et al. 2017). Leaves the model in inference mode.
// Throws when the network has no batch norm.
void estimate_statistics(ImageModel& model, Batches& images, Device device);

// Keeps a network's buffers and puts them back.
class KeptBuffers {
 public:
  explicit KeptBuffers(Module& network);
  void restore();

 private:
  std::vector<std::pair<Tensor*, Tensor>> kept_;
};

}  // namespace graft
