// Entropy minimisation on the target (Grandvalet and Bengio, NIPS 2004), with the entropy of the
// mean prediction to hold against it (information maximisation; Krause et al. 2010, Shi and Sha
// 2012).
//
//   weight (mean over target of H(g) - diversity H(mean over target of g)),  g = softmax(logits)
//
// Traps. Without diversity (the default, as in the paper) one class for everything is a minimum:
// watch the health panel. Early on the predictions are wrong and become surely wrong: the weight
// rises with the progress. Diversity assumes that the target's classes are about equally frequent.
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class EntropyMinimisation : public AdaptMethod {
 public:
  explicit EntropyMinimisation(const MethodSettings& settings)
      : weight_(settings.number("weight")),
        diversity_(settings.number("diversity")),
        gamma_(settings.number("gamma")) {}

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const Tensor logs = log_softmax(pair.target.logits);
    const Tensor probabilities = exp(logs);
    Tensor loss = neg(mean(sum(mul(probabilities, logs), {1})));
    if (diversity_ > 0) {
      const Tensor average = mean(probabilities, {0});
      const Tensor negative_entropy = sum(mul(average, log(clamp(average, 1e-7f, 1))));
      loss = add(loss, mul(negative_entropy, static_cast<float>(diversity_)));
    }
    return mul(loss, static_cast<float>(weight_ * adversarial_ramp(gamma_, place.progress) *
                                        place.strength));
  }

 private:
  double weight_, diversity_, gamma_;
};

}  // namespace

MethodInfo entropy_method() {
  MethodInfo info{"entropy", "sure predictions on the target (Grandvalet and Bengio 2004)", {}};
  info.options = {{"weight", "0.1", "of the target's entropy", 0, 1000},
                  {"diversity", "0", "of the mean prediction's entropy, relative", 0, 1000},
                  {"gamma", "10", "steepness of the weight's ramp; 0: no ramp", 0, 1000}};
  info.make = [](const MethodSettings& settings, const MethodContext&) {
    return std::make_unique<EntropyMinimisation>(settings);
  };
  return info;
}

}  // namespace graft
