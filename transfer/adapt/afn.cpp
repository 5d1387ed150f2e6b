// SAFN: stepwise adaptive feature norms (Xu et al., ICCV 2019).
//
//   CE(source) + weight sum over both domains of mean (|f| - (|f_0| + step))^2
//
// where f_0 is f itself as a constant: every feature vector is asked to grow a little. Small norms
// on the target are what the paper blames for its errors; nothing compares the domains.
//
// Traps. The value of the term is always 2 weight step^2: watch the norms, not the loss. Nothing
// ends the growth but the run; with a large step or many steps logits grow with the features and
// predictions become surer than they are right.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Afn : public AdaptMethod {
 public:
  explicit Afn(const MethodSettings& settings)
      : weight_(settings.number("weight")), step_(static_cast<float>(settings.number("step"))) {}

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    return mul(add(norm_step(pair.source.aligned, step_), norm_step(pair.target.aligned, step_)),
               static_cast<float>(weight_ * place.strength));
  }

 private:
  double weight_;
  float step_;
};

}  // namespace

MethodInfo afn_method() {
  MethodInfo info{"afn", "feature norms that grow (Xu et al. 2019)", {}};
  info.options = {{"weight", "0.05", "of the norms' shortfall", 0, 1000},
                  {"step", "1", "by which each norm is to grow", 0, 1000}};
  info.make = [](const MethodSettings& settings, const MethodContext&) {
    return std::make_unique<Afn>(settings);
  };
  return info;
}

}  // namespace graft
