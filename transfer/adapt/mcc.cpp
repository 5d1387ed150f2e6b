// MCC: minimum class confusion (Jin et al., ECCV 2020).
//
//   p = softmax(target logits / T);   w = n (1 + exp(-H(p_i))) / sum over rows, a constant
//   C = p^T diag(w) p, its rows scaled to sum 1;   loss = weight * mean off-diagonal mass of a row
//
// Traps. Without a temperature above 1 sure wrong predictions teach nothing. A batch should hold
// several images of most classes: with many classes and small batches C is mostly empty. Nothing
// aligns the domains, and one class for everything has no confusion: watch the health panel.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Mcc : public AdaptMethod {
 public:
  explicit Mcc(const MethodSettings& settings)
      : weight_(settings.number("weight")),
        temperature_(static_cast<float>(settings.number("temperature"))) {}

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    return mul(class_confusion(pair.target.logits, temperature_),
               static_cast<float>(weight_ * place.strength));
  }

 private:
  double weight_;
  float temperature_;
};

}  // namespace

MethodInfo mcc_method() {
  MethodInfo info{"mcc", "little confusion between classes on the target (Jin et al. 2020)", {}};
  info.options = {{"weight", "1", "of the confusion", 0, 1000},
                  {"temperature", "2.5", "of the predictions", 1e-3, 1000}};
  info.make = [](const MethodSettings& settings, const MethodContext&) {
    return std::make_unique<Mcc>(settings);
  };
  return info;
}

}  // namespace graft
