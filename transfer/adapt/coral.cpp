// Deep CORAL: correlation alignment (Sun and Saenko, ECCV workshops 2016).
//
//   CE(source) + weight |C_s - C_t|_F^2 / (4 d^2),  C the covariance of a batch's aligned features
//
// Traps. Means are not aligned, only what is left without them: a pure shift goes unnoticed. The
// division by 4 d^2 makes the term tiny for wide features: weights from 1 to 1000 are usual. A
// covariance of d features from fewer than d rows is singular and noisy.
#include "transfer/adapt/discrepancy.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class Coral : public AdaptMethod {
 public:
  explicit Coral(const MethodSettings& settings) : weight_(settings.number("weight")) {}

  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    if (std::min(pair.source.aligned.dim(0), pair.target.aligned.dim(0)) < 2) return Tensor();
    return mul(coral(pair.source.aligned, pair.target.aligned),
               static_cast<float>(weight_ * place.strength));
  }

 private:
  double weight_;
};

}  // namespace

MethodInfo coral_method() {
  MethodInfo info{"coral", "covariances alike (Sun and Saenko 2016)", {}};
  info.options = {{"weight", "1", "of the difference", 0, 1e6}};
  info.make = [](const MethodSettings& settings, const MethodContext&) {
    return std::make_unique<Coral>(settings);
  };
  return info;
}

}  // namespace graft
