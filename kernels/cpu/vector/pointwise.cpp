// Pointwise kernels: y = f(x), dx = g f'(x), out = f(a, b); formulas in functors.h.
// Layout: contiguous f32 or bf16; broadcast operands by strides, innermost stride 0 or 1 in the
// fast loops. Numerics: f32; a bf16 result is rounded once. Memory-bound: the loops are left to the
// compiler's vectoriser, which the branch-free functors allow; ivdep, because an output may be one
// of the inputs. Determinism: no reductions, so results do not depend on the number of threads.
#include "kernels/cpu/parallel.h"
#include "kernels/element.h"
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
template <class T, class Step>
void run(int64_t n, const T* a, int64_t a_stride, const T* b, int64_t b_stride, const Step& step) {
  if (a_stride == 1 && b_stride == 1) {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, static_cast<float>(a[i]), static_cast<float>(b[i]));
  } else if (a_stride == 1 && b_stride == 0) {
    const auto value = static_cast<float>(b[0]);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, static_cast<float>(a[i]), value);
  } else if (a_stride == 0 && b_stride == 1) {
    const auto value = static_cast<float>(a[0]);
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i) step(i, value, static_cast<float>(b[i]));
  } else {
#pragma GCC ivdep
    for (int64_t i = 0; i < n; ++i)
      step(i, static_cast<float>(a[i * a_stride]), static_cast<float>(b[i * b_stride]));
  }
}

template <class T>
void unary(Unary op, UnaryParams params, T* y, const T* x, int64_t n) {
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        y[i] = static_cast<T>(functor.f(static_cast<float>(x[i]), params));
      }
    });
  });
}

template <class T>
void unary_grad(Unary op, UnaryParams params, T* dx, const T* x, const T* y, const T* g,
                int64_t n) {
  // A functor that reads neither is given g: any readable array will do.
  const T* x_or_g = x != nullptr ? x : g;
  const T* y_or_g = y != nullptr ? y : g;
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        dx[i] = static_cast<T>(static_cast<float>(g[i]) * functor.d(static_cast<float>(x_or_g[i]),
                                                                    static_cast<float>(y_or_g[i]),
                                                                    params));
      }
    });
  });
}

template <class T>
void binary(Binary op, T* out, const T* a, const T* b, int64_t n) {
  visit(op, [=](auto functor) {
    parallel_for(n, 1, [=](int64_t begin, int64_t end) {
#pragma GCC ivdep
      for (int64_t i = begin; i < end; ++i) {
        out[i] = static_cast<T>(functor.f(static_cast<float>(a[i]), static_cast<float>(b[i])));
      }
    });
  });
}

template <class T>
void binary_broadcast(Binary op, T* out, const T* a, const T* b, const BroadcastShape& shape) {
  visit(op, [&](auto functor) {
    const int last = shape.rank - 1;
    parallel_for(count_of(shape), 1, [&](int64_t begin, int64_t end) {
      for_runs(shape, begin, end, [&](int64_t i, int64_t ia, int64_t ib, int64_t n) {
        T* target = out + i;
        run(n, a + ia, shape.a_strides[last], b + ib, shape.b_strides[last],
            [=](int64_t k, float va, float vb) { target[k] = static_cast<T>(functor.f(va, vb)); });
      });
    });
  });
}

template <class T>
void binary_grad(Binary op, T* da, T* db, const T* a, const T* b, const T* g,
                 const BroadcastShape& shape) {
  visit(op, [&](auto functor) {
    const int last = shape.rank - 1;
    parallel_for(count_of(shape), 1, [&](int64_t begin, int64_t end) {
      for_runs(shape, begin, end, [&](int64_t i, int64_t ia, int64_t ib, int64_t n) {
        const T* gi = g + i;
        const auto pass = [&](const auto& step) {
          run(n, a + ia, shape.a_strides[last], b + ib, shape.b_strides[last], step);
        };
        if (da != nullptr && db != nullptr) {
          T *ta = da + i, *tb = db + i;
          pass([=](int64_t k, float va, float vb) {
            const auto gk = static_cast<float>(gi[k]);
            ta[k] = static_cast<T>(gk * functor.da(va, vb));
            tb[k] = static_cast<T>(gk * functor.db(va, vb));
          });
        } else if (da != nullptr) {
          T* ta = da + i;
          pass([=](int64_t k, float va, float vb) {
            ta[k] = static_cast<T>(static_cast<float>(gi[k]) * functor.da(va, vb));
          });
        } else if (db != nullptr) {
          T* tb = db + i;
          pass([=](int64_t k, float va, float vb) {
            tb[k] = static_cast<T>(static_cast<float>(gi[k]) * functor.db(va, vb));
          });
        }
      });
    });
  });
}

}  // namespace

void unary(Unary op, UnaryParams params, Reals y, ConstReals x, int64_t n) {
  visit_real(y.dtype, [&]<class T>(T) { unary(op, params, y.as<T>(), x.as<T>(), n); });
}

void unary_grad(Unary op, UnaryParams params, Reals dx, ConstReals x, ConstReals y, ConstReals g,
                int64_t n) {
  visit_real(dx.dtype, [&]<class T>(T) {
    unary_grad(op, params, dx.as<T>(), x.as<T>(), y.as<T>(), g.as<T>(), n);
  });
}

void binary(Binary op, Reals out, ConstReals a, ConstReals b, int64_t n) {
  visit_real(out.dtype, [&]<class T>(T) { binary(op, out.as<T>(), a.as<T>(), b.as<T>(), n); });
}

void binary_broadcast(Binary op, Reals out, ConstReals a, ConstReals b,
                      const BroadcastShape& shape) {
  visit_real(out.dtype,
             [&]<class T>(T) { binary_broadcast(op, out.as<T>(), a.as<T>(), b.as<T>(), shape); });
}

void binary_grad(Binary op, Reals da, Reals db, ConstReals a, ConstReals b, ConstReals g,
                 const BroadcastShape& shape) {
  visit_real(g.dtype, [&]<class T>(T) {
    binary_grad(op, da.as<T>(), db.as<T>(), a.as<T>(), b.as<T>(), g.as<T>(), shape);
  });
}

}  // namespace graft::cpu::GRAFT_ISA
