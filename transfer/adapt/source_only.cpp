// No adaptation: cross-entropy of the source. What every method has to beat, with the same network,
// schedule and number of steps.
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

class SourceOnly : public AdaptMethod {
 public:
  Tensor transfer_loss(const DomainPair&, const StepPlace&) override { return Tensor(); }
};

}  // namespace

MethodInfo source_only_method() {
  MethodInfo info{"source_only", "no adaptation, to compare with", {}};
  info.uses_target = false;
  info.make = [](const MethodSettings&, const MethodContext&) {
    return std::make_unique<SourceOnly>();
  };
  return info;
}

}  // namespace graft
