// DANN: domain-adversarial training (Ganin et al., JMLR 17(59), 2016).
//
//   min over network, head of  CE(source) - lambda L_d,   min over domain head of  L_d
//   lambda(p) = weight (2 / (1 + exp(-gamma p)) - 1)
//
// in one backward pass: a layer before the domain head that is the identity forward and multiplies
// the gradient by -lambda.
//
// Traps. The placement of lambda differs between paper and codes: in the deep experiments it is on
// the gradient into the features alone and the domain head learns at full speed (placement =
// features); equation 15 and the authors' shallow code scale the head's loss, too (placement =
// loss). A domain head that is at 50 % from the start teaches nothing; one at 100 % to the end
// means that lambda or its width is too small. Where the classes' shares differ between the
// domains, features that look alike must be wrong.
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Dann : public AdaptMethod {
 public:
  Dann(const MethodSettings& settings, const MethodContext& context)
      : head_(context.aligned_width, domain_head_of(settings), context.key),
        weight_(settings.number("weight")),
        gamma_(settings.number("gamma")),
        on_features_(settings.is("placement", "features")) {}

  Module* extra() override { return &head_; }

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const float lambda =
        static_cast<float>(weight_ * adversarial_ramp(gamma_, place.progress) * place.strength);
    const float reversed = on_features_ ? lambda : 1.0f;
    const Tensor loss = reversed_domain_loss(head_, pair, reversed);
    return on_features_ ? loss : mul(loss, lambda);
  }

 private:
  DomainHead head_;
  double weight_, gamma_;
  bool on_features_;
};

}  // namespace

MethodInfo dann_method() {
  MethodInfo info{"dann", "domain-adversarial training (Ganin et al. 2016)", {}};
  info.options = domain_head_options(1024, 2);
  info.options.push_back({"weight", "1", "lambda at the end of its ramp", 0, 1000});
  info.options.push_back({"gamma", "10", "steepness of the ramp; 0: no ramp", 0, 1000});
  info.options.push_back(
      {"placement", "features", "what lambda scales: features, loss", 0, 0, {"features", "loss"}});
  info.make = [](const MethodSettings& settings, const MethodContext& context) {
    return std::make_unique<Dann>(settings, context);
  };
  return info;
}

}  // namespace graft
