// AdaBN: adaptive batch normalisation (Li et al., 2017; Pattern Recognition 80, 2018).
//
// Trained on the source alone; before the target is judged, every batch norm's mean and variance
// are replaced by the target's.
//
// Traps. There is nothing to adapt without batch norms. The weights were trained with the source's
// statistics: the more of the network was frozen while they moved, the less it helps. A target
// with other class shares shifts the statistics although no image changed.
#include "layers/norm.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class AdaBn : public AdaptMethod {
 public:
  Tensor transfer_loss(const DomainPair&, const StepPlace&) override { return Tensor(); }

  void before_judging(ImageModel& model, Batches& target, Device device) override {
    estimate_statistics(model, target, device);
  }

  void check(ImageModel& model) const override {
    GRAFT_CHECK(DomainNorm::count(model) > 0,
                "adabn: the network has no batch norm whose statistics could be the target's; "
                "choose another --method or other --weights");
  }
};

}  // namespace

MethodInfo adabn_method() {
  MethodInfo info{"adabn", "the target's batch-norm statistics (Li et al. 2017)", {}};
  info.uses_target = false;
  info.make = [](const MethodSettings&, const MethodContext&) { return std::make_unique<AdaBn>(); };
  return info;
}

}  // namespace graft
