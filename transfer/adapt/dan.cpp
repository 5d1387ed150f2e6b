// DAN: deep adaptation network (Long et al., ICML 2015).
//
//   CE(source) + weight MMD^2(aligned(source), aligned(target)),  a sum of Gaussian kernels
//
// discrepancy.h has the estimate: unbiased, over all pairs of a batch (the paper's linear-time one
// over every second pair is noisier for no less work on a batch).
//
// Traps. Bandwidths follow the mean squared distance of the batch, taken as a constant: with a
// gradient through them the features could grow apart and call it closeness. Batches of a few dozen
// rows make a noisy estimate, which may be negative. Where the classes' shares differ between the
// domains, features that look alike must be wrong.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Dan : public AdaptMethod {
 public:
  explicit Dan(const MethodSettings& settings)
      : kernels_(kernel_family(settings.integer("kernels"))),
        weight_(settings.number("weight")),
        gamma_(settings.number("gamma")) {}

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    if (std::min(pair.source.aligned.dim(0), pair.target.aligned.dim(0)) < 2) return Tensor();
    return mul(
        mmd({{pair.source.aligned, pair.target.aligned, kernels_}}),
        static_cast<float>(weight_ * adversarial_ramp(gamma_, place.progress) * place.strength));
  }

 private:
  KernelScales kernels_;
  double weight_, gamma_;
};

}  // namespace

MethodInfo dan_method() {
  MethodInfo info{"dan", "multi-kernel mean discrepancy (Long et al. 2015)", {}};
  info.options = {{"weight", "1", "of the discrepancy", 0, 1000},
                  {"kernels", "5", "bandwidths, a factor of 2 apart; odd", 1, 31, {}, true},
                  {"gamma", "0", "steepness of the weight's ramp; 0: no ramp", 0, 1000}};
  info.make = [](const MethodSettings& settings, const MethodContext&) {
    return std::make_unique<Dan>(settings);
  };
  return info;
}

}  // namespace graft
