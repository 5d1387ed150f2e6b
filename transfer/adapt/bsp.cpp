// BSP: batch spectral penalisation, with DANN (Chen et al., ICML 2019).
//
//   DANN's losses + penalty sum over i <= k of (sigma_i(F_s)^2 + sigma_i(F_t)^2)
//
// for the largest singular values of each domain's batch of aligned features. What an adversary
// makes alike are the directions of the largest ones; the classes are told apart along others, too.
//
// Traps. The singular values are computed on the host in double (engine/ops_svd.cpp): a step on a
// GPU waits for them. They grow with the batch, so the penalty's weight belongs to a batch size.
// Those of dann.cpp.
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Bsp : public AdaptMethod {
 public:
  Bsp(const MethodSettings& settings, const MethodContext& context)
      : head_(context.aligned_width, domain_head_of(settings), context.key),
        weight_(settings.number("weight")),
        gamma_(settings.number("gamma")),
        penalty_(settings.number("penalty")),
        values_(settings.integer("values")) {}

  Module* extra() override { return &head_; }

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const double lambda = weight_ * adversarial_ramp(gamma_, place.progress) * place.strength;
    const Tensor adversary = reversed_domain_loss(head_, pair, static_cast<float>(lambda));
    const Tensor spectrum = add(largest(pair.source.aligned), largest(pair.target.aligned));
    return add(adversary, mul(spectrum, static_cast<float>(penalty_ * place.strength)));
  }

 private:
  // Descending, so that the first are the largest.
  Tensor largest(const Tensor& x) const {
    const Tensor s = singular_values(x);
    const Tensor first = slice(s, 0, 0, std::min(values_, s.numel()));
    return sum(mul(first, first));
  }

  DomainHead head_;
  double weight_, gamma_, penalty_;
  int64_t values_;
};

}  // namespace

MethodInfo bsp_method() {
  MethodInfo info{"bsp", "dann with small largest singular values (Chen et al. 2019)", {}};
  info.options = domain_head_options(1024, 2);
  info.options.push_back({"weight", "1", "lambda at the end of its ramp", 0, 1000});
  info.options.push_back({"gamma", "10", "steepness of the ramp; 0: no ramp", 0, 1000});
  info.options.push_back({"penalty", "0.0001", "of the squared singular values", 0, 1000});
  info.options.push_back({"values", "1", "how many of the largest", 1, 1024});
  info.make = [](const MethodSettings& settings, const MethodContext& context) {
    return std::make_unique<Bsp>(settings, context);
  };
  return info;
}

}  // namespace graft
