// CDAN and CDAN+E: conditional adversarial domain adaptation (Long et al., NeurIPS 2018).
//
//   the domain classifier sees  T(f, g) = f (outer) g,  g = softmax(logits),
//   or, where that is wider than random_width,  (R_f f) * (R_g g) / sqrt(random_width)
//   with fixed random R of normal entries;
//   +E: each example's domain loss is weighted by w = 1 + exp(-H(g)), scaled to mean 1 over its
//   domain, so that examples the classifier is sure of count more.
//
// The gradient into T is turned and scaled by lambda(p), as in DANN.
//
// Traps. The gradient goes into f and not into g (as the authors' code has it): through g the
// adversary would teach the classifier to be unsure. The entropy weight is a constant, too. The
// random map keeps inner products in expectation only: small widths are noise.
#include <cmath>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "layers/init.h"
#include "transfer/adapt/domain_head.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

// The domain classifier with its random map, which is a buffer: saved, never trained.
class ConditionalHead : public Module {
 public:
  ConditionalHead(const MethodSettings& settings, const MethodContext& context)
      : width_(context.aligned_width * context.classes > settings.integer("random_width")
                   ? settings.integer("random_width")
                   : 0),
        head_(width_ > 0 ? width_ : context.aligned_width * context.classes,
              domain_head_of(settings), derive(context.key, 0)) {
    child("head", head_);
    if (width_ == 0) return;
    const float scale = std::pow(static_cast<float>(width_), -0.25f);  // squared: 1 / sqrt(width)
    map_features_ = normal({context.aligned_width, width_}, 0, scale, derive(context.key, 1));
    map_classes_ = normal({context.classes, width_}, 0, scale, derive(context.key, 2));
    buffer("map_features", map_features_);
    buffer("map_classes", map_classes_);
  }

  // features (n, d), classes (n, c) -> (n) logits
  Tensor forward(const Tensor&) override { fail("cdan: the head takes features and classes"); }
  Tensor logits(const Tensor& features, const Tensor& classes, float lambda) {
    const int64_t n = features.dim(0);
    const Tensor joint =
        width_ > 0
            ? mul(matmul(features, map_features_), matmul(classes, map_classes_))
            : reshape(mul(reshape(features, {n, -1, 1}), reshape(classes, {n, 1, -1})), {n, -1});
    return head_(grad_reverse(joint, lambda));
  }

 private:
  int64_t width_;  // of the random map; 0: the outer product itself
  DomainHead head_;
  Tensor map_features_, map_classes_;
};

// 1 + exp(-entropy), scaled to mean 1; a constant.
Tensor certainty(const Tensor& probabilities) {
  const NoGrad guard;
  const Tensor entropy = neg(sum(mul(probabilities, log(clamp(probabilities, 1e-7f, 1))), {1}));
  const Tensor weight = add(exp(neg(entropy)), 1);
  return div(weight, mean(weight));
}

class Cdan : public AdaptMethod {
 public:
  Cdan(const MethodSettings& settings, const MethodContext& context, bool entropy)
      : head_(settings, context),
        weight_(settings.number("weight")),
        gamma_(settings.number("gamma")),
        entropy_(entropy) {}

  Module* extra() override { return &head_; }

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const float lambda =
        static_cast<float>(weight_ * adversarial_ramp(gamma_, place.progress) * place.strength);
    const auto loss_of = [&](const DomainPass& pass, float domain) {
      const Tensor classes = softmax(pass.logits.detach());
      const Tensor logits = head_.logits(pass.aligned, classes, lambda);
      const Tensor wanted = Tensor::full(logits.shape(), domain, logits.device());
      if (!entropy_) return bce_with_logits(logits, wanted);
      return mean(mul(bce_with_logits(logits, wanted, Reduction::none), certainty(classes)));
    };
    return mul(add(loss_of(pair.source, 1), loss_of(pair.target, 0)), 0.5f);
  }

 private:
  ConditionalHead head_;
  double weight_, gamma_;
  bool entropy_;
};

MethodInfo conditional(const std::string& name, const std::string& about, bool entropy) {
  MethodInfo info{name, about, {}};
  info.options = domain_head_options(1024, 2);
  info.options.push_back({"weight", "1", "lambda at the end of its ramp", 0, 1000});
  info.options.push_back({"gamma", "10", "steepness of the ramp; 0: no ramp", 0, 1000});
  info.options.push_back(
      {"random_width", "1024",
       "features times classes beyond this go through a random map of this width", 1, 65536});
  info.make = [entropy](const MethodSettings& settings, const MethodContext& context) {
    return std::make_unique<Cdan>(settings, context, entropy);
  };
  return info;
}

}  // namespace

MethodInfo cdan_method() {
  return conditional("cdan", "adversary that sees features and classes (Long et al. 2018)", false);
}
MethodInfo cdan_e_method() {
  return conditional("cdan_e", "cdan with sure examples counting more (Long et al. 2018)", true);
}

}  // namespace graft
