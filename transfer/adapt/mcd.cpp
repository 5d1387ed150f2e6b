// MCD: maximum classifier discrepancy (Saito et al., CVPR 2018).
//
// Two heads F_1, F_2 over the same features G. Each step, in turns:
//   A  CE(source) of both heads                                        everything moves
//   B  CE(source) of both heads - weight d(F_1, F_2 on target)         the heads move
//   C  weight d(F_1, F_2 on target), `rounds` times                    the features move
// with d = mean |softmax F_1 - softmax F_2|: the heads seek out target images far from the
// source's, the features bring those back.
//
// Traps. The heads have to differ from the start: two linear heads on the same few features soon
// agree, hence hidden layers in the second one (`depth`). It is trained from scratch beside a head
// that may be well ahead. A step costs 2 passes of both domains and `rounds` of the target. Epochs
// are judged by the first head alone.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Mcd : public AdaptMethod {
 public:
  Mcd(const MethodSettings& settings, const MethodContext& context)
      : second_(context.feature_width, class_head_of(settings, context), context.key),
        weight_(settings.number("weight")),
        rounds_(settings.integer("rounds")) {}

  Module* extra() override { return &second_; }

  // The discrepancy, which step() lets the heads raise and the features lower.
  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const Tensor discrepancy =
        classifier_discrepancy(pair.target.logits, second_(pair.target.features));
    return mul(discrepancy, static_cast<float>(weight_ * place.strength));
  }

  void step(AdaptStep& step) override {
    const auto both_heads = [&](const DomainPass& source) {
      return add(step.source_loss(source),
                 cross_entropy(second_(source.features), step.source_labels()));
    };
    step.update(both_heads(step.pass().source));
    DomainPair pair = step.pass();
    const Tensor classification = both_heads(pair.source);
    step.update(sub(classification, transfer_loss(pair, step.place())), {Part::head, Part::extra});
    for (int64_t i = 0; i < rounds_; ++i) {
      pair.target = step.target_pass();
      const Tensor discrepancy = transfer_loss(pair, step.place());
      step.note("transfer_loss", discrepancy);
      step.update(discrepancy, {Part::features});
    }
  }

 private:
  DomainHead second_;
  double weight_;
  int64_t rounds_;
};

}  // namespace

MethodInfo mcd_method() {
  MethodInfo info{"mcd", "two heads that disagree about the target (Saito et al. 2018)", {}};
  info.options = domain_head_options(256, 1);
  info.options.push_back({"weight", "1", "of the discrepancy", 0, 1000});
  info.options.push_back({"rounds", "4", "updates of the features a step", 1, 100});
  info.make = [](const MethodSettings& settings, const MethodContext& context) {
    return std::make_unique<Mcd>(settings, context);
  };
  return info;
}

}  // namespace graft
