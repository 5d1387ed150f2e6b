// The losses of two arrays and their slopes in x, for CPU and CUDA alike, with d = x - target:
//   mse d^2;  l1 |d|;  huber d^2 / 2 up to delta, then delta (|d| - delta / 2)
//   bce_with_logits max(x, 0) - x t + log(1 + e^-|x|)
#pragma once

#include <cmath>

#include "kernels/functors.h"
#include "kernels/types.h"

namespace graft {
inline namespace GRAFT_ISA_NAMESPACE {

template <PairLoss kKind>
struct PairFormula {
  GRAFT_HD static float value(float x, float target, [[maybe_unused]] float delta) {
    const float d = x - target;
    if constexpr (kKind == PairLoss::mse) {
      return d * d;
    } else if constexpr (kKind == PairLoss::l1) {
      return std::fabs(d);
    } else if constexpr (kKind == PairLoss::huber) {
      const float size = std::fabs(d);
      return size <= delta ? 0.5f * d * d : delta * (size - 0.5f * delta);
    } else {
      return (x > 0 ? x : 0.0f) - x * target + std::log1p(fn::fast_exp(-std::fabs(x)));
    }
  }
  GRAFT_HD static float slope(float x, float target, [[maybe_unused]] float delta) {
    const float d = x - target;
    if constexpr (kKind == PairLoss::mse) {
      return 2 * d;
    } else if constexpr (kKind == PairLoss::l1) {
      return d > 0 ? 1.0f : (d < 0 ? -1.0f : 0.0f);
    } else if constexpr (kKind == PairLoss::huber) {
      return d > delta ? delta : (d < -delta ? -delta : d);
    } else {
      return fn::logistic(x) - target;
    }
  }
};

// Calls use(formula) with the formula of a kind.
template <class Use>
void visit(PairLoss kind, const Use& use) {
  switch (kind) {
    case PairLoss::mse:
      return use(PairFormula<PairLoss::mse>{});
    case PairLoss::l1:
      return use(PairFormula<PairLoss::l1>{});
    case PairLoss::huber:
      return use(PairFormula<PairLoss::huber>{});
    case PairLoss::bce_with_logits:
      return use(PairFormula<PairLoss::bce_with_logits>{});
  }
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
