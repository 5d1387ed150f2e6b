// Pointwise kernels. y = f(x), dx = g f'(x); formulas in functors.h. Memory-bound: the loops are left
// to the compiler's vectoriser, which the branch-free functors allow. No reductions, so results do
// not depend on the number of threads.
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {

void unary(Unary op, UnaryParams params, float* y, const float* x, int64_t n) {
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) y[i] = functor.f(x[i], params);
    });
  });
}

void unary_grad(Unary op, UnaryParams params, float* dx, const float* x, const float* y,
                const float* g, int64_t n) {
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) dx[i] = g[i] * functor.d(x[i], y[i], params);
    });
  });
}

}  // namespace graft::cpu::GRAFT_ISA
