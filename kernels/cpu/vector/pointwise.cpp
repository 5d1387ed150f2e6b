// Pointwise kernels: y = f(x), dx = g f'(x), out = f(a, b); formulas in functors.h.
// Layout: contiguous f32; broadcast operands by strides, innermost stride 0 or 1 in the fast loops.
// Numerics: f32. Memory-bound: the loops are left to the compiler's vectoriser, which the
// branch-free functors allow; ivdep, because an output may be one of the inputs.
// Determinism: no reductions, so results do not depend on the number of threads.
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

// Calls body(out_start, a_start, b_start, length) for each run of the innermost dimension (or part
// of one) that covers the result's elements begin..end-1.
template <class Body>
void for_runs(const BroadcastShape& s, int64_t begin, int64_t end, const Body& body) {
  const int last = s.rank - 1;
  int64_t at[kMaxBroadcastRank] = {}, a = 0, b = 0;
  int64_t rest = begin;
  for (int d = last; d >= 0; --d) {
    at[d] = rest % s.sizes[d];
    rest /= s.sizes[d];
    a += at[d] * s.a_strides[d];
    b += at[d] * s.b_strides[d];
  }
  for (int64_t i = begin; i < end;) {
    const int64_t length = std::min(s.sizes[last] - at[last], end - i);
    body(i, a, b, length);
    i += length;
    a += length * s.a_strides[last];
    b += length * s.b_strides[last];
    at[last] += length;
    for (int d = last; d > 0 && at[d] == s.sizes[d]; --d) {
      a += s.a_strides[d - 1] - s.sizes[d] * s.a_strides[d];
      b += s.b_strides[d - 1] - s.sizes[d] * s.b_strides[d];
      at[d] = 0;
      ++at[d - 1];
    }
  }
}

int64_t count_of(const BroadcastShape& s) {
  int64_t n = 1;
  for (int d = 0; d < s.rank; ++d) n *= s.sizes[d];
  return n;
}

// One loop per pair of innermost strides, so that the common ones vectorise.
// step(i, a_value, b_value).
template <class Step>
void run(int64_t n, const float* a, int64_t a_stride, const float* b, int64_t b_stride,
         const Step& step) {
  if (a_stride == 1 && b_stride == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, a[i], b[i]);
  } else if (a_stride == 1 && b_stride == 0) {
    const float value = b[0];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, a[i], value);
  } else if (a_stride == 0 && b_stride == 1) {
    const float value = a[0];
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, value, b[i]);
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, a[i * a_stride], b[i * b_stride]);
  }
}

}  // namespace

void unary(Unary op, UnaryParams params, float* y, const float* x, int64_t n) {
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) y[i] = functor.f(x[i], params);
    });
  });
}

void unary_grad(Unary op, UnaryParams params, float* dx, const float* x, const float* y,
                const float* g, int64_t n) {
  // A functor that reads neither is given g: any readable array will do.
  const float* x_or_g = x != nullptr ? x : g;
  const float* y_or_g = y != nullptr ? y : g;
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        dx[i] = g[i] * functor.d(x_or_g[i], y_or_g[i], params);
      }
    });
  });
}

void binary(Binary op, float* out, const float* a, const float* b, int64_t n) {
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) out[i] = functor.f(a[i], b[i]);
    });
  });
}

void binary_broadcast(Binary op, float* out, const float* a, const float* b,
                      const BroadcastShape& shape) {
  visit(op, [&](auto functor) {
    const int last = shape.rank - 1;
    parallel_for(count_of(shape), 1, [&](int64_t begin, int64_t end) {
      for_runs(shape, begin, end, [&](int64_t i, int64_t ia, int64_t ib, int64_t n) {
        float* target = out + i;
        run(n, a + ia, shape.a_strides[last], b + ib, shape.b_strides[last],
            [=](int64_t k, float va, float vb) { target[k] = functor.f(va, vb); });
      });
    });
  });
}

void binary_grad(Binary op, float* da, float* db, const float* a, const float* b, const float* g,
                 const BroadcastShape& shape) {
  visit(op, [&](auto functor) {
    const int last = shape.rank - 1;
    parallel_for(count_of(shape), 1, [&](int64_t begin, int64_t end) {
      for_runs(shape, begin, end, [&](int64_t i, int64_t ia, int64_t ib, int64_t n) {
        const float* gi = g + i;
        const auto pass = [&](const auto& step) {
          run(n, a + ia, shape.a_strides[last], b + ib, shape.b_strides[last], step);
        };
        if (da != nullptr && db != nullptr) {
          float *ta = da + i, *tb = db + i;
          pass([=](int64_t k, float va, float vb) {
            const float gk = gi[k];
            ta[k] = gk * functor.da(va, vb);
            tb[k] = gk * functor.db(va, vb);
          });
        } else if (da != nullptr) {
          float* ta = da + i;
          pass([=](int64_t k, float va, float vb) { ta[k] = gi[k] * functor.da(va, vb); });
        } else if (db != nullptr) {
          float* tb = db + i;
          pass([=](int64_t k, float va, float vb) { tb[k] = gi[k] * functor.db(va, vb); });
        }
      });
    });
  });
}

}  // namespace graft::cpu::GRAFT_ISA
