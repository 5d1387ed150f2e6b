// ADDA: adversarial discriminative domain adaptation (Tzeng et al., CVPR 2017).
//
//   1. for the first `pretrain` of the run: cross-entropy of the source, everything trains
//   2. the features are copied; the copy F_s, for the source, and the head stay as they are, and
//      in turns
//        the discriminator D learns  F_s(source) -> 1, F_t(target) -> 0
//        the target's features F_t learn  D(F_t(target)) -> 1   (turned labels, not a turned
//        gradient: it does not vanish while D wins)
//
// Traps. Nothing ties F_t to the classes: they can be aligned with one another's (source accuracy,
// judged through F_t, falls first). F_t needs a far smaller rate than D; `encoder_scale` scales its
// loss. Batch norms of F_t see target images only in the second part. Align the head's input:
// another --layer is refused.
#include "engine/autograd.h"
#include "layers/init.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

// The discriminator, and the source's network once it is copied.
class Adversary : public Module {
 public:
  Adversary(const MethodSettings& settings, const MethodContext& context)
      : discriminator(context.feature_width, domain_head_of(settings), context.key),
        source(context.blank()),
        copied(Tensor::zeros({1})) {
    child("discriminator", discriminator);
    child("source", *source);
    buffer("copied", copied);
    for (const NamedTensor& entry : source->named_parameters()) {
      entry.tensor->set_requires_grad(false);
      entry.tensor->fill(0);
    }
  }
  Tensor forward(const Tensor& x) override { return discriminator(x); }

  DomainHead discriminator;
  std::unique_ptr<ImageModel> source;
  Tensor copied;  // 1 once it is
};

class Adda : public AdaptMethod {
 public:
  Adda(const MethodSettings& settings, const MethodContext& context)
      : adversary_(settings, context),
        pretrain_(settings.number("pretrain")),
        encoder_scale_(settings.number("encoder_scale")) {
    GRAFT_CHECK(context.aligned_width == context.feature_width,
                "adda: aligns the head's input; leave --layer out");
  }

  Module* extra() override { return &adversary_; }

  // The loss of the target's features; step() has the discriminator's.
  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const Tensor logits = adversary_.discriminator(pair.target.features);
    const Tensor taken_for_source = Tensor::full(logits.shape(), 1, logits.device());
    return mul(bce_with_logits(logits, taken_for_source),
               static_cast<float>(encoder_scale_ * place.strength));
  }

  void step(AdaptStep& step) override {
    if (step.place().progress < pretrain_) {
      step.update(step.source_loss(step.source_pass()), {Part::features, Part::head});
      return;
    }
    if (adversary_.copied.item() == 0) copy_source(step.model());
    adversary_.source->eval();
    const Tensor source = [&] {
      const NoGrad guard;
      return AdaptStep::pass_through(*adversary_.source, step.source_images()).features;
    }();
    DomainPair pair;
    pair.target = step.target_pass();
    const Tensor apart = domain_loss(adversary_.discriminator(source),
                                     adversary_.discriminator(pair.target.features.detach()));
    step.note("discriminator_loss", apart);
    step.update(apart, {Part::extra});
    const Tensor fooled = transfer_loss(pair, step.place());
    step.note("transfer_loss", fooled);
    step.update(fooled, {Part::features});
  }

 private:
  void copy_source(ImageModel& model) {
    adversary_.source->load_strict(model.state_dict(), "the network");
    adversary_.copied.fill(1);
  }

  Adversary adversary_;
  double pretrain_, encoder_scale_;
};

}  // namespace

MethodInfo adda_method() {
  MethodInfo info{"adda", "features of its own for the target (Tzeng et al. 2017)", {}};
  info.options = domain_head_options(500, 2);
  info.options.push_back({"pretrain", "0.5", "part of the run that trains on the source", 0, 1});
  info.options.push_back(
      {"encoder_scale", "0.1", "of the loss that moves the target's features", 0, 1000});
  info.make = [](const MethodSettings& settings, const MethodContext& context) {
    return std::make_unique<Adda>(settings, context);
  };
  return info;
}

}  // namespace graft
