// Every pointwise formula and its derivative, once, for the CPU and for CUDA. Branch-free where a
// compiler has to vectorise it.
//
// A unary functor has  f(x, p): the value,  and  d(x, y, p): dy/dx given x and y = f(x).
// A binary functor has f(a, b), da(a, b) and db(a, b).
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/isa.h"
#include "kernels/types.h"

namespace graft {

// The numbers some formulas take: slope, bounds, exponent, factor.
struct UnaryParams {
  float a = 0, b = 0;
};

// One line adds a formula: the enum, the visitor and both backends follow from this list. The third
// column says what the derivative reads, and so what the tape keeps: x, y or none. y where there is
// a choice: the next op mostly keeps it anyway.
// clang-format off
#define GRAFT_UNARY_LIST(X)          \
  X(neg, Neg, none)                  \
  X(exp, Exp, y)                     \
  X(log, Log, x)                     \
  X(sqrt, Sqrt, y)                   \
  X(pow, Pow, x)                     \
  X(abs, Abs, x)                     \
  X(clamp, Clamp, x)                 \
  X(relu, Relu, y)                   \
  X(relu6, Relu6, y)                 \
  X(leaky_relu, LeakyRelu, x)        \
  X(gelu, Gelu, x)                   \
  X(gelu_tanh, GeluTanh, x)          \
  X(silu, Silu, x)                   \
  X(sigmoid, Sigmoid, y)             \
  X(tanh, Tanh, y)                   \
  X(hardswish, Hardswish, x)         \
  X(hardsigmoid, Hardsigmoid, x)     \
  X(shift, Shift, none)              \
  X(scale, Scale, none)              \
  X(divide, Divide, none)            \
  X(grad_reverse, GradReverse, none)
// clang-format on
#define GRAFT_BINARY_LIST(X) X(add, Add) X(sub, Sub) X(mul, Mul) X(div, Div)

enum class Unary : uint8_t {
#define GRAFT_ENUM(name, type, reads) name,
  GRAFT_UNARY_LIST(GRAFT_ENUM)
#undef GRAFT_ENUM
};
enum class Binary : uint8_t {
#define GRAFT_ENUM(name, type) name,
  GRAFT_BINARY_LIST(GRAFT_ENUM)
#undef GRAFT_ENUM
};

enum class Reads : uint8_t { none, x, y };

inline namespace GRAFT_ISA_NAMESPACE {
namespace fn {

// e^x, relative error below 2e-7: Cody-Waite reduction by ln 2 and a degree-6 minimax polynomial
// (the coefficients of Cephes' expf). Vectorises; 0 below -104, infinity above 88.73.
GRAFT_HD inline float fast_exp(float x) {
#ifdef __CUDA_ARCH__
  return expf(x);
#else
  const float clamped = x < -104.0f ? -104.0f : (x > 89.0f ? 89.0f : x);
  const float n = std::floor(clamped * 1.44269504088896341f + 0.5f);
  float r = clamped - n * 0.693359375f;
  r = r + n * 2.12194440e-4f;
  float p = 1.9875691500e-4f;
  p = p * r + 1.3981999507e-3f;
  p = p * r + 8.3334519073e-3f;
  p = p * r + 4.1665795894e-2f;
  p = p * r + 1.6666665459e-1f;
  p = p * r + 5.0000001201e-1f;
  p = p * r * r + r + 1.0f;
  // 2^n in two factors, so that results down to the denormals and up to infinity are right.
  const int32_t k = static_cast<int32_t>(n), half = k >> 1;
  const float low = __builtin_bit_cast(float, (half + 127) << 23);
  const float high = __builtin_bit_cast(float, (k - half + 127) << 23);
  const float y = p * low * high;
  return x != x ? x : y;
#endif
}

// tanh and erf: two polynomial pieces, both computed and one chosen, so that loops vectorise. A few
// units in the last place off (ops_pointwise_test.cpp sweeps them).
GRAFT_HD inline float fast_tanh(float x) {
  const float size = std::fabs(x), z = x * x;
  float p = -5.70498872745e-3f;  // Cephes' tanhf, |x| < 0.625
  p = p * z + 2.06390887954e-2f;
  p = p * z - 5.37397155531e-2f;
  p = p * z + 1.33314422036e-1f;
  p = p * z - 3.33332819422e-1f;
  const float near = p * z * x + x;
  const float far = std::copysign(1.0f - 2.0f / (fast_exp(2.0f * size) + 1.0f), x);
  return size < 0.625f ? near : (x != x ? x : far);
}
GRAFT_HD inline float fast_erf(float x) {
  const float t = std::fabs(x), s = x * x;
  // erf(x) = 1 - e^q(x) for large x, odd polynomial for small (N. Juffa, 2017).
  float q = -1.72853470e-5f * t + 3.83197126e-4f;
  q = q * s + (-3.88396438e-3f * t + 2.42546219e-2f);
  q = q * t - 1.06777877e-1f;
  q = q * t - 6.34846687e-1f;
  q = q * t - 1.28717512e-1f;
  q = q * t - t;
  const float far = std::copysign(1.0f - fast_exp(q), x);
  float p = -5.96761703e-4f;
  p = p * s + 4.99119423e-3f;
  p = p * s - 2.67681349e-2f;
  p = p * s + 1.12819925e-1f;
  p = p * s - 3.76125336e-1f;
  p = p * s + 1.28379166e-1f;
  const float near = p * x + x;
  return t > 0.927734375f ? (x != x ? x : far) : near;
}

GRAFT_HD inline float logistic(float x) {
  // e^-|x| never overflows.
  const float e = fast_exp(x < 0 ? x : -x);
  const float d = 1.0f / (1.0f + e);
  return x < 0 ? e * d : d;
}

struct Neg {
  GRAFT_HD static float f(float x, UnaryParams) { return -x; }
  GRAFT_HD static float d(float, float, UnaryParams) { return -1.0f; }
};
struct Exp {
  GRAFT_HD static float f(float x, UnaryParams) { return fast_exp(x); }
  GRAFT_HD static float d(float, float y, UnaryParams) { return y; }
};
struct Log {
  GRAFT_HD static float f(float x, UnaryParams) { return std::log(x); }
  GRAFT_HD static float d(float x, float, UnaryParams) { return 1.0f / x; }
};
struct Sqrt {
  GRAFT_HD static float f(float x, UnaryParams) { return std::sqrt(x); }
  GRAFT_HD static float d(float, float y, UnaryParams) { return 0.5f / y; }
};
struct Pow {  // x^a
  GRAFT_HD static float f(float x, UnaryParams p) { return std::pow(x, p.a); }
  GRAFT_HD static float d(float x, float, UnaryParams p) {
    return p.a == 0 ? 0.0f : p.a * std::pow(x, p.a - 1.0f);
  }
};
struct Abs {
  GRAFT_HD static float f(float x, UnaryParams) { return std::fabs(x); }
  GRAFT_HD static float d(float x, float, UnaryParams) {
    return x > 0 ? 1.0f : (x < 0 ? -1.0f : 0.0f);
  }
};
struct Clamp {  // to [a, b]; NaN stays
  GRAFT_HD static float f(float x, UnaryParams p) { return x < p.a ? p.a : (x > p.b ? p.b : x); }
  GRAFT_HD static float d(float x, float, UnaryParams p) {
    return x >= p.a && x <= p.b ? 1.0f : 0.0f;
  }
};
struct Relu {
  GRAFT_HD static float f(float x, UnaryParams) { return x < 0 ? 0.0f : x; }
  GRAFT_HD static float d(float, float y, UnaryParams) { return y > 0 ? 1.0f : 0.0f; }
};
struct Relu6 {
  GRAFT_HD static float f(float x, UnaryParams) { return x < 0 ? 0.0f : (x > 6 ? 6.0f : x); }
  GRAFT_HD static float d(float, float y, UnaryParams) { return y > 0 && y < 6 ? 1.0f : 0.0f; }
};
struct LeakyRelu {  // slope a
  GRAFT_HD static float f(float x, UnaryParams p) { return x < 0 ? p.a * x : x; }
  GRAFT_HD static float d(float x, float, UnaryParams p) { return x > 0 ? 1.0f : p.a; }
};
struct Sigmoid {
  GRAFT_HD static float f(float x, UnaryParams) { return logistic(x); }
  GRAFT_HD static float d(float, float y, UnaryParams) { return y * (1.0f - y); }
};
struct Tanh {
  GRAFT_HD static float f(float x, UnaryParams) { return fast_tanh(x); }
  GRAFT_HD static float d(float, float y, UnaryParams) { return 1.0f - y * y; }
};
struct Gelu {  // exact (Hendrycks and Gimpel 2016)
  GRAFT_HD static float f(float x, UnaryParams) {
    return 0.5f * x * (1.0f + fast_erf(x * 0.70710678f));
  }
  GRAFT_HD static float d(float x, float, UnaryParams) {
    const float density = 0.39894228f * fast_exp(-0.5f * x * x);
    return 0.5f * (1.0f + fast_erf(x * 0.70710678f)) + x * density;
  }
};
struct GeluTanh {
  GRAFT_HD static float inner(float x) { return 0.79788456f * (x + 0.044715f * x * x * x); }
  GRAFT_HD static float f(float x, UnaryParams) {
    // 1 + tanh(u) = 2 sigmoid(2u)
    return x * logistic(2.0f * inner(x));
  }
  GRAFT_HD static float d(float x, float, UnaryParams) {
    const float s = logistic(2.0f * inner(x));
    return s + x * s * (1.0f - s) * 2.0f * 0.79788456f * (1.0f + 3.0f * 0.044715f * x * x);
  }
};
struct Silu {
  GRAFT_HD static float f(float x, UnaryParams) { return x * logistic(x); }
  GRAFT_HD static float d(float x, float, UnaryParams) {
    const float s = logistic(x);
    return s * (1.0f + x * (1.0f - s));
  }
};
struct Hardsigmoid {
  GRAFT_HD static float f(float x, UnaryParams) {
    return x < -3 ? 0.0f : (x > 3 ? 1.0f : x / 6.0f + 0.5f);
  }
  GRAFT_HD static float d(float x, float, UnaryParams) {
    return x > -3 && x < 3 ? 1.0f / 6.0f : 0.0f;
  }
};
struct Hardswish {
  GRAFT_HD static float f(float x, UnaryParams p) { return x * Hardsigmoid::f(x, p); }
  GRAFT_HD static float d(float x, float, UnaryParams) {
    return x < -3 ? 0.0f : (x > 3 ? 1.0f : (2.0f * x + 3.0f) / 6.0f);
  }
};
struct Shift {  // x + a
  GRAFT_HD static float f(float x, UnaryParams p) { return x + p.a; }
  GRAFT_HD static float d(float, float, UnaryParams) { return 1.0f; }
};
struct Scale {  // a x
  GRAFT_HD static float f(float x, UnaryParams p) { return p.a * x; }
  GRAFT_HD static float d(float, float, UnaryParams p) { return p.a; }
};
struct Divide {  // x / a
  GRAFT_HD static float f(float x, UnaryParams p) { return x / p.a; }
  GRAFT_HD static float d(float, float, UnaryParams p) { return 1.0f / p.a; }
};
struct GradReverse {  // identity; the derivative is declared to be -a
  GRAFT_HD static float f(float x, UnaryParams) { return x; }
  GRAFT_HD static float d(float, float, UnaryParams p) { return -p.a; }
};

struct Add {
  GRAFT_HD static float f(float a, float b) { return a + b; }
  GRAFT_HD static float da(float, float) { return 1.0f; }
  GRAFT_HD static float db(float, float) { return 1.0f; }
};
struct Sub {
  GRAFT_HD static float f(float a, float b) { return a - b; }
  GRAFT_HD static float da(float, float) { return 1.0f; }
  GRAFT_HD static float db(float, float) { return -1.0f; }
};
struct Mul {
  GRAFT_HD static float f(float a, float b) { return a * b; }
  GRAFT_HD static float da(float, float b) { return b; }
  GRAFT_HD static float db(float a, float) { return a; }
};
struct Div {
  GRAFT_HD static float f(float a, float b) { return a / b; }
  GRAFT_HD static float da(float, float b) { return 1.0f / b; }
  GRAFT_HD static float db(float a, float b) { return -a / (b * b); }
};

}  // namespace fn

inline Unary unary_of(Gelu form) { return form == Gelu::exact ? Unary::gelu : Unary::gelu_tanh; }

// What the derivative of a formula reads.
inline Reads reads_of(Unary op) {
  switch (op) {
#define GRAFT_CASE(name, type, reads) \
  case Unary::name:                   \
    return Reads::reads;
    GRAFT_UNARY_LIST(GRAFT_CASE)
#undef GRAFT_CASE
  }
  return Reads::none;
}

// Calls use(functor) with the functor that an enum value names.
template <class Use>
void visit(Unary op, const Use& use) {
  switch (op) {
#define GRAFT_CASE(name, type, reads) \
  case Unary::name:                   \
    return use(fn::type{});
    GRAFT_UNARY_LIST(GRAFT_CASE)
#undef GRAFT_CASE
  }
}
template <class Use>
void visit(Binary op, const Use& use) {
  switch (op) {
#define GRAFT_CASE(name, type) \
  case Binary::name:           \
    return use(fn::type{});
    GRAFT_BINARY_LIST(GRAFT_CASE)
#undef GRAFT_CASE
  }
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
