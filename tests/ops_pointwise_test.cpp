// add, sub, mul, div with broadcasting, and every op of one tensor.
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
constexpr double kHuge = 3e38, kTiny = 1e-42;  // kTiny is a denormal

using UnaryOp = std::function<Tensor(const Tensor&)>;
using BinaryOp = std::function<Tensor(const Tensor&, const Tensor&)>;
using Formula = std::function<double(double)>;
using BinaryFormula = std::function<double(double, double)>;

struct UnaryCase {
  UnaryOp op;
  Formula formula;
  double low = -4, high = 4;
  std::vector<double> kinks = {};
  // Inputs beyond the ordinary ones; results follow from the formula.
  std::vector<double> extremes = {kInf,  -kInf,  kNan, kHuge, -kHuge,
                                  kTiny, -kTiny, 0.0,  88.0,  -100.0};
  Tolerance tolerance = kPointwise;
};

void unary_rows(const std::string& name, const UnaryCase& c) {
  const auto call = [&](const Tensors& in) { return c.op(in[0]); };
  const auto reference = [&](const Arrays& in) { return map(in[0], c.formula); };
  for (const Shape& shape :
       {Shape{}, Shape{0}, Shape{1}, Shape{2, 0, 3}, Shape{37}, Shape{3, 5, 7}, Shape{40009}}) {
    CAPTURE(shape);
    op_row(name, {real(shape, c.low, c.high).away_from(c.kinks, 1e-3)}, call, reference,
           c.tolerance);
  }
  op_row(name, {given(c.extremes)}, call, reference, Options(c.tolerance).without_gradients());
  op_error(name, "to be an f32 or bf16 tensor, got an undefined tensor", [&] { c.op(Tensor()); });
  op_error(name, "to be an f32 or bf16 tensor, got i64[2]", [&] {
    c.op(Tensor::of<int64_t>({1, 2}));
  });
}

void binary_rows(const std::string& name, const BinaryOp& op, const BinaryFormula& formula,
                 double b_low) {
  const auto call = [&](const Tensors& in) { return op(in[0], in[1]); };
  const auto reference = [&](const Arrays& in) { return zip(in[0], in[1], formula); };
  const std::vector<std::pair<Shape, Shape>> shapes{
      {{}, {}},
      {{0}, {0}},
      {{1}, {1}},
      {{3, 5}, {3, 5}},
      {{20011}, {20011}},
      {{}, {4}},  // a scalar against anything
      {{3, 1}, {}},
      {{2, 3, 5}, {5}},  // a row
      {{5}, {2, 3, 5}},
      {{2, 3, 5}, {3, 1}},  // a column
      {{2, 1, 5}, {3, 1}},  // both sides
      {{2, 3, 4, 5}, {2, 1, 1, 5}},
      {{1, 7, 1, 2}, {3, 1, 4, 1}},
      {{0, 3}, {1, 3}},
      {{4, 1, 3, 1, 2, 1}, {1, 2, 1, 2, 1, 2}},
      {{130, 257}, {257}},  // more than one thread's share
      {{130, 257}, {130, 1}},
      {{2, 90, 3, 65}, {90, 1, 65}},
  };
  uint64_t seed = 1;
  for (const auto& [a, b] : shapes) {
    CAPTURE(a);
    CAPTURE(b);
    const int64_t repeats = std::max<int64_t>(1, numel_of(a) + numel_of(b));
    Tolerance tolerance = kPointwise;
    tolerance.grad_atol = accumulating(repeats).grad_atol;
    op_row(name, {real(a), real(b, b_low, 2.5)}, call, reference,
           Options(tolerance).with_seed(seed++));
  }
  const std::vector<double> extremes{kInf, -kInf, kNan, kHuge, kTiny, 0.0, -1.0};
  op_row(name, {given(extremes, {7, 1}), given(extremes)}, call, reference,
         Options(kPointwise).without_gradients());
  op_error(name, "shapes [2, 3] and [2, 4] do not broadcast", [&] {
    op(Tensor::zeros({2, 3}), Tensor::zeros({2, 4}));
  });
  op_error(name, "shapes [3] and [0] do not broadcast",
           [&] { op(Tensor::zeros({3}), Tensor::zeros({0})); });
  op_error(name, "to be an f32 or bf16 tensor, got an undefined tensor",
           [&] { op(Tensor::zeros({3}), Tensor()); });
  op_error(name, "to be an f32 or bf16 tensor, got u8[3]", [&] {
    op(Tensor::of<uint8_t>({1, 2, 3}), Tensor::zeros({3}));
  });
  op_error(name, "alternates over more than 6 dimensions", [&] {
    op(Tensor::zeros({2, 1, 2, 1, 2, 1, 2, 1}), Tensor::zeros({1, 2, 1, 2, 1, 2, 1, 2}));
  });
}

double logistic(double x) { return 1.0 / (1.0 + std::exp(-x)); }
double clip(double x, double low, double high) {
  return std::isnan(x) ? x : std::min(std::max(x, low), high);
}

}  // namespace

TEST_CASE("add") {
  binary_rows(
      "add", [](const Tensor& a, const Tensor& b) { return add(a, b); },
      [](double a, double b) { return a + b; }, -2.5);
  unary_rows("add",
             {[](const Tensor& x) { return add(x, 2.5f); }, [](double x) { return x + 2.5; }});
}
TEST_CASE("sub") {
  binary_rows(
      "sub", [](const Tensor& a, const Tensor& b) { return sub(a, b); },
      [](double a, double b) { return a - b; }, -2.5);
  unary_rows("sub",
             {[](const Tensor& x) { return sub(x, 2.5f); }, [](double x) { return x - 2.5; }});
}
TEST_CASE("mul") {
  binary_rows(
      "mul", [](const Tensor& a, const Tensor& b) { return mul(a, b); },
      [](double a, double b) { return a * b; }, -2.5);
  unary_rows("mul",
             {[](const Tensor& x) { return mul(x, -1.25f); }, [](double x) { return -1.25 * x; }});
}
TEST_CASE("div") {
  binary_rows(
      "div", [](const Tensor& a, const Tensor& b) { return div(a, b); },
      [](double a, double b) { return a / b; }, 0.5);
  unary_rows("div",
             {[](const Tensor& x) { return div(x, 3.0f); }, [](double x) { return x / 3.0; }});
  // Dividing by a denormal is not multiplying by its reciprocal.
  CHECK(div(Tensor::scalar(1e-40f), 1e-40f).item() == 1.0f);
}
TEST_CASE("one tensor as both operands") {
  const auto square = [](const Arrays& in) { return map(in[0], [](double x) { return x * x; }); };
  op_row(
      "mul", {real({3, 5})}, [](const Tensors& in) { return mul(in[0], in[0]); }, square);
  op_row(
      "div", {real({3, 5}, 0.5, 2)}, [](const Tensors& in) { return div(in[0], in[0]); },
      [](const Arrays& in) { return map(in[0], [](double) { return 1.0; }); });
  op_row(
      "add", {real({3, 5})}, [](const Tensors& in) { return add(in[0], in[0]); },
      [](const Arrays& in) { return map(in[0], [](double x) { return 2 * x; }); });
}

TEST_CASE("neg") {
  unary_rows("neg", {[](const Tensor& x) { return neg(x); }, [](double x) { return -x; }});
}
TEST_CASE("exp") {
  unary_rows("exp", {[](const Tensor& x) { return exp(x); }, [](double x) { return std::exp(x); }});
}
TEST_CASE("log") {
  unary_rows("log", {[](const Tensor& x) { return log(x); }, [](double x) { return std::log(x); },
                     0.1, 5});
}
TEST_CASE("sqrt") {
  unary_rows("sqrt", {[](const Tensor& x) { return sqrt(x); },
                      [](double x) { return std::sqrt(x); }, 0.1, 5});
}
TEST_CASE("pow") {
  for (float exponent : {2.0f, 3.0f, 0.5f, -1.5f, 0.0f, 1.0f}) {
    CAPTURE(exponent);
    unary_rows("pow",
               {[=](const Tensor& x) { return pow(x, exponent); },
                [=](double x) { return std::pow(x, static_cast<double>(exponent)); }, 0.3, 3});
  }
  // A whole exponent has a derivative at negative numbers too.
  op_row(
      "pow", {real({3, 5}, -2, -0.5)}, [](const Tensors& in) { return pow(in[0], 3); },
      [](const Arrays& in) { return map(in[0], [](double x) { return x * x * x; }); });
}
TEST_CASE("abs") {
  unary_rows(
      "abs",
      {[](const Tensor& x) { return abs(x); }, [](double x) { return std::fabs(x); }, -4, 4, {0}});
}
TEST_CASE("clamp") {
  unary_rows("clamp", {[](const Tensor& x) { return clamp(x, -1, 2.5f); },
                       [](double x) { return clip(x, -1, 2.5); },
                       -4,
                       4,
                       {-1, 2.5}});
  op_error("clamp", "expected low <= high, got 2 and 1", [] { clamp(Tensor::zeros({2}), 2, 1); });
}
TEST_CASE("relu") {
  unary_rows("relu", {[](const Tensor& x) { return relu(x); },
                      [](double x) { return clip(x, 0, kInf); },
                      -4,
                      4,
                      {0}});
}
TEST_CASE("relu6") {
  unary_rows("relu6", {[](const Tensor& x) { return relu6(x); },
                       [](double x) { return clip(x, 0, 6); },
                       -3,
                       9,
                       {0, 6}});
}
TEST_CASE("leaky_relu") {
  for (float slope : {0.01f, 0.3f, -0.5f}) {
    unary_rows("leaky_relu", {[=](const Tensor& x) { return leaky_relu(x, slope); },
                              [=](double x) { return x < 0 ? static_cast<double>(slope) * x : x; },
                              -4,
                              4,
                              {0}});
  }
}
TEST_CASE("gelu") {
  // erf's rounding is of absolute size, as in every implementation of this formula.
  Tolerance tolerance = kPointwise;
  tolerance.atol = 4e-7;
  unary_rows("gelu", {[](const Tensor& x) { return gelu(x); },
                      [](double x) { return x * 0.5 * std::erfc(-x / std::numbers::sqrt2); },
                      -5,
                      5,
                      {},
                      {kInf, kNan, kHuge, -kHuge, kTiny, 0.0, 12.0, -12.0},
                      tolerance});
}
TEST_CASE("gelu_tanh") {
  unary_rows("gelu_tanh", {[](const Tensor& x) { return gelu_tanh(x); },
                           [](double x) {
                             const double u =
                                 std::sqrt(2 / std::numbers::pi) * (x + 0.044715 * x * x * x);
                             return 0.5 * x * (1 + std::tanh(u));
                           },
                           -5,
                           5,
                           {},
                           {kInf, kNan, kTiny, 0.0, 12.0, -12.0}});
}
TEST_CASE("silu") {
  unary_rows("silu", {[](const Tensor& x) { return silu(x); },
                      [](double x) { return x * logistic(x); },
                      -6,
                      6,
                      {},
                      {kInf, kNan, kHuge, kTiny, 0.0, 80.0, -80.0}});
}
TEST_CASE("sigmoid") {
  unary_rows("sigmoid", {[](const Tensor& x) { return sigmoid(x); }, logistic, -6, 6});
}
TEST_CASE("tanh") {
  unary_rows("tanh",
             {[](const Tensor& x) { return tanh(x); }, [](double x) { return std::tanh(x); }});
}
TEST_CASE("hardswish") {
  unary_rows("hardswish", {[](const Tensor& x) { return hardswish(x); },
                           [](double x) { return x * clip(x + 3, 0, 6) / 6; },
                           -5,
                           5,
                           {-3, 3},
                           {kInf, kNan, 1e38, -1e38, kTiny, 0.0, 4.0, -4.0}});
}
TEST_CASE("hardsigmoid") {
  unary_rows("hardsigmoid", {[](const Tensor& x) { return hardsigmoid(x); },
                             [](double x) { return clip(x + 3, 0, 6) / 6; },
                             -5,
                             5,
                             {-3, 3}});
}

TEST_CASE("grad_reverse") {
  // Its derivative is declared, not computed: the numeric gradient of the identity does not apply.
  const auto identity = [](const Arrays& in) { return in[0]; };
  for (const Shape& shape : {Shape{}, Shape{0}, Shape{1}, Shape{3, 5}, Shape{40009}}) {
    op_row(
        "grad_reverse", {real(shape)}, [](const Tensors& in) { return grad_reverse(in[0], 0.5f); },
        identity, Options(kExact).without_gradients());
    Tensor x = Tensor::zeros(shape).set_requires_grad();
    Tensor g = uniform(shape, -1, 1, {3, 0, 0});
    backward(grad_reverse(x, 0.5f), g);
    CHECK(x.grad().to_vector<float>() == mul(g, -0.5f).to_vector<float>());
  }
  op_row(
      "grad_reverse", {given({kInf, -kInf, kNan, kHuge, kTiny})},
      [](const Tensors& in) { return grad_reverse(in[0]); }, identity,
      Options(kExact).without_gradients());
  op_error("grad_reverse", "to be an f32 or bf16 tensor", [] { grad_reverse(Tensor()); });
}

TEST_CASE("declared derivatives at the kinks") {
  const auto slope = [](const UnaryOp& op, float at) {
    Tensor x = Tensor::scalar(at).set_requires_grad();
    backward(op(x));
    return x.grad().item();
  };
  CHECK(slope([](const Tensor& x) { return abs(x); }, 0) == 0);
  CHECK(slope([](const Tensor& x) { return relu(x); }, 0) == 0);
  CHECK(slope([](const Tensor& x) { return relu6(x); }, 0) == 0);
  CHECK(slope([](const Tensor& x) { return relu6(x); }, 6) == 0);
  CHECK(slope([](const Tensor& x) { return clamp(x, -1, 2); }, -1) == 1);
  CHECK(slope([](const Tensor& x) { return clamp(x, -1, 2); }, 2) == 1);
  CHECK(slope([](const Tensor& x) { return clamp(x, -1, 2); }, 2.001f) == 0);
  CHECK(slope([](const Tensor& x) { return pow(x, 0); }, 0) == 0);
  CHECK(slope([](const Tensor& x) { return pow(x, 1); }, 0) == 1);
  CHECK(slope([](const Tensor& x) { return pow(x, 2); }, 0) == 0);
}

// The polynomial formulas against the C library in double, over a dense sweep of all magnitudes.
TEST_CASE("exp, tanh and sigmoid are right to a few units in the last place") {
  std::vector<float> xs;
  for (uint32_t bits = 0x20000000u; bits < 0x42B00000u; bits += 997) {  // 1e-19 to 88
    const float x = __builtin_bit_cast(float, bits);
    xs.push_back(x);
    xs.push_back(-x);
  }
  const Tensor x = Tensor::of(xs);
  const auto worst = [&](const Tensor& y, const Formula& formula) {
    const std::vector<float> got = y.to_vector<float>();
    double most = 0;
    for (size_t i = 0; i < xs.size(); ++i) {
      const double wanted = formula(static_cast<double>(xs[i]));
      // Below the normal numbers precision fades by design of the format.
      if (std::fabs(wanted) < 1.2e-38) continue;
      most = std::max(most, std::fabs(static_cast<double>(got[i]) - wanted) / std::fabs(wanted));
    }
    return most / 0x1p-24;  // half units in the last place, roughly
  };
  CHECK(worst(exp(x), [](double v) { return std::exp(v); }) < 4);
  CHECK(worst(tanh(x), [](double v) { return std::tanh(v); }) < 6);
  CHECK(worst(sigmoid(x), logistic) < 8);
}
