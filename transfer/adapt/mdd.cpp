// MDD: margin disparity discrepancy (Zhang et al., ICML 2019).
//
//   an adversarial head f' over the features that agrees with the head f on the source and differs
//   from it on the target:  with y(x) = argmax f(x), p' = softmax(f'),
//     L' = margin mean over source of -log p'_y  +  mean over target of -log(1 - p'_y)
//   f' minimises L', the features maximise it: a layer before f' that turns the gradient round and
//   scales it by lambda(p), as in DANN. The head f learns from the source's labels alone.
//
// Traps. The margin is the factor exp(rho) of the paper; 2 to 4 there. log(1 - p) and not -log p
// on the target: the latter's gradient explodes where f' is right (the paper's section 4). No
// gradient reaches f through y.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Mdd : public AdaptMethod {
 public:
  Mdd(const MethodSettings& settings, const MethodContext& context)
      : adversary_(context.aligned_width, class_head_of(settings, context), context.key),
        weight_(settings.number("weight")),
        gamma_(settings.number("gamma")),
        margin_(static_cast<float>(settings.number("margin"))) {}

  Module* extra() override { return &adversary_; }

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const auto lambda =
        static_cast<float>(weight_ * adversarial_ramp(gamma_, place.progress) * place.strength);
    const auto adversary = [&](const DomainPass& pass) {
      return adversary_(grad_reverse(pass.aligned, lambda));
    };
    const Tensor agree = cross_entropy(adversary(pair.source), argmax(pair.source.logits));
    const Tensor differ = not_that_class(adversary(pair.target), argmax(pair.target.logits));
    return add(mul(agree, margin_), differ);
  }

 private:
  DomainHead adversary_;
  double weight_, gamma_;
  float margin_;
};

}  // namespace

MethodInfo mdd_method() {
  MethodInfo info{
      "mdd", "a head that differs on the target, with a margin (Zhang et al. 2019)", {}};
  info.options = domain_head_options(1024, 1);
  info.options.push_back({"weight", "1", "lambda at the end of its ramp", 0, 1000});
  info.options.push_back({"gamma", "10", "steepness of the ramp; 0: no ramp", 0, 1000});
  info.options.push_back({"margin", "4", "weight of agreeing on the source", 0.1, 1000});
  info.make = [](const MethodSettings& settings, const MethodContext& context) {
    return std::make_unique<Mdd>(settings, context);
  };
  return info;
}

}  // namespace graft
