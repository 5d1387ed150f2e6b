// JAN: joint adaptation network (Long et al., ICML 2017).
//
//   CE(source) + weight MMD^2 of the joint distribution of features and predictions: the kernel is
//   the product of one over aligned features (a sum of bandwidths) and one over softmax(logits)
//
// Traps. The kernel over predictions has a fixed bandwidth (sigma 0.92, as the authors' code has
// it): probabilities have a scale of their own. While the target's predictions are wrong, aligning
// them with the source's is aligning the wrong classes; gamma lets the weight rise with the
// progress. The others are those of dan.cpp.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Jan : public AdaptMethod {
 public:
  explicit Jan(const MethodSettings& settings)
      : features_(kernel_family(settings.integer("kernels"))),
        weight_(settings.number("weight")),
        gamma_(settings.number("gamma")) {
    const auto sigma = static_cast<float>(settings.number("sigma"));
    predictions_ = {{1.0f}, sigma * sigma};
  }

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const DomainPass &source = pair.source, &target = pair.target;
    if (std::min(source.aligned.dim(0), target.aligned.dim(0)) < 2) return Tensor();
    return mul(
        mmd({{source.aligned, target.aligned, features_},
             {softmax(source.logits), softmax(target.logits), predictions_}}),
        static_cast<float>(weight_ * adversarial_ramp(gamma_, place.progress) * place.strength));
  }

 private:
  KernelScales features_, predictions_;
  double weight_, gamma_;
};

}  // namespace

MethodInfo jan_method() {
  MethodInfo info{"jan", "joint discrepancy of features and predictions (Long et al. 2017)", {}};
  info.options = {
      {"weight", "1", "of the discrepancy", 0, 1000},
      {"kernels", "5", "bandwidths over features, a factor of 2 apart; odd", 1, 31, {}, true},
      {"sigma", "0.92", "bandwidth over predictions", 1e-3, 1000},
      {"gamma", "10", "steepness of the weight's ramp; 0: no ramp", 0, 1000}};
  info.make = [](const MethodSettings& settings, const MethodContext&) {
    return std::make_unique<Jan>(settings);
  };
  return info;
}

}  // namespace graft
