// sum, mean, max and argmax over every kind of axes.
#include <algorithm>
#include <cmath>
#include <limits>
#include <map>

#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

constexpr double kInf = std::numeric_limits<double>::infinity();
constexpr double kNan = std::numeric_limits<double>::quiet_NaN();

// Sends every element to its result by index arithmetic, then folds each result's elements, in
// order.
Array reduce(const Array& x, const Axes& axes, bool keep_dims,
             const std::function<double(const std::vector<double>&)>& fold) {
  const auto rank = static_cast<int64_t>(x.shape.size());
  std::vector<bool> reduced(x.shape.size(), axes.empty());
  for (int64_t axis : axes) reduced[static_cast<size_t>((axis + rank) % rank)] = true;
  Shape kept, dropped;
  std::vector<int64_t> strides(x.shape.size());
  int64_t stride = 1;
  for (size_t d = x.shape.size(); d-- > 0;) {
    strides[d] = reduced[d] ? 0 : stride;
    if (!reduced[d]) stride *= x.shape[d];
  }
  for (size_t d = 0; d < x.shape.size(); ++d) {
    kept.push_back(reduced[d] ? 1 : x.shape[d]);
    if (!reduced[d]) dropped.push_back(x.shape[d]);
  }
  Array y(keep_dims ? kept : dropped);
  std::vector<std::vector<double>> groups(y.values.size());
  for (int64_t i = 0; i < x.size(); ++i) {
    int64_t target = 0, rest = i;
    for (size_t d = x.shape.size(); d-- > 0;) {
      target += rest % x.shape[d] * strides[d];
      rest /= x.shape[d];
    }
    groups[static_cast<size_t>(target)].push_back(x.values[static_cast<size_t>(i)]);
  }
  for (size_t k = 0; k < groups.size(); ++k) y.values[k] = fold(groups[k]);
  return y;
}

double fold_sum(const std::vector<double>& values) {
  double sum = 0;
  for (double value : values) sum += value;
  return sum;
}
double fold_mean(const std::vector<double>& values) {
  return fold_sum(values) / static_cast<double>(values.size());
}
double fold_max(const std::vector<double>& values) {
  for (double value : values) {
    if (std::isnan(value)) return value;
  }
  return *std::max_element(values.begin(), values.end());
}

struct Case {
  Shape shape;
  Axes axes;
};
const std::vector<Case> kCases{
    {{}, {}},
    {{1}, {}},
    {{1}, {0}},
    {{1, 1, 1}, {1}},
    {{37}, {}},
    {{3, 5}, {0}},
    {{3, 5}, {-1}},
    {{3, 5}, {0, 1}},
    {{2, 3, 5}, {1}},
    {{2, 3, 4, 5}, {0, 1, 2}},  // per channel
    {{2, 3, 4, 5}, {1, 2}},     // global pooling
    {{2, 3, 4, 5}, {0, 2}},     // two groups of axes
    {{2, 3, 4, 5}, {-1, 1}},
    {{2, 3, 2, 3, 2}, {4, 0, 2}},
    {{5, 1, 3}, {1}},  // nothing to add up
    {{0, 3}, {1}},
    {{100003}, {}},  // cut into chunks
    {{41, 1003}, {1}},
    {{1003, 41}, {0}},
    {{3, 1003, 41}, {1}},
    {{2, 9, 4099}, {1}},  // wide rows
    {{20, 41, 53}, {0, 2}},
    {{3, 5, 8}, {1}},  // sizes that vector loads like
    {{5, 12}, {1}},
    {{3, 1028}, {1}},
    {{2, 5, 1028}, {1}},
    {{2, 4101, 12}, {1}},
    {{2, 50000}, {1}},
};

using ReduceOp = Tensor (*)(const Tensor&, const Axes&, bool);

void reduce_rows(const std::string& name, ReduceOp op,
                 const std::function<double(const std::vector<double>&)>& fold, bool unique) {
  for (const Case& c : kCases) {
    for (bool keep_dims : {false, true}) {
      CAPTURE(c.axes);
      CAPTURE(keep_dims);
      const Input input = unique ? distinct(c.shape) : real(c.shape);
      // Exact to f32's rounding: the sums gather in double.
      Tolerance tolerance = kPointwise;
      tolerance.atol = 2e-6;
      op_row(
          name, {input}, [&](const Tensors& in) { return op(in[0], c.axes, keep_dims); },
          [&](const Arrays& in) { return reduce(in[0], c.axes, keep_dims, fold); }, tolerance);
    }
  }
  const std::vector<std::vector<double>> extremes{{kInf, 1, 2}, {-kInf, -kInf}, {kNan, 1, kInf},
                                                  {1, kNan, 2}, {3e38, 3e38},   {1e-42, 1e-42}};
  for (const std::vector<double>& values : extremes) {
    op_row(
        name, {given(values)}, [&](const Tensors& in) { return op(in[0], {}, false); },
        [&](const Arrays& in) { return reduce(in[0], {}, false, fold); },
        Options(kPointwise).without_gradients());
  }
  op_error(name, "tensor, got an undefined tensor", [&] { op(Tensor(), {}, false); });
  op_error(name, "tensor, got i64[2]", [&] { op(Tensor::of<int64_t>({1, 2}), {}, false); });
  op_error(name, "axis 2 is outside f32[3, 4]", [&] { op(Tensor::zeros({3, 4}), {2}, false); });
  op_error(name, "axis -3 is outside f32[3, 4]", [&] { op(Tensor::zeros({3, 4}), {-3}, false); });
  op_error(name, "axis -1 is named twice in [1, -1]", [&] {
    op(Tensor::zeros({3, 4}), {1, -1}, false);
  });
}

}  // namespace

TEST_CASE("sum") {
  reduce_rows("sum", sum, fold_sum, false);
  // An empty sum is 0, along an axis of nothing too.
  op_row(
      "sum", {real({0})}, [](const Tensors& in) { return sum(in[0]); },
      [](const Arrays&) { return Array({}, 0.0); });
  op_row(
      "sum", {real({3, 0, 2})}, [](const Tensors& in) { return sum(in[0], {1}); },
      [](const Arrays&) {
        return Array({3, 2}, 0.0);
      });
}

TEST_CASE("mean") {
  reduce_rows("mean", mean, fold_mean, false);
  // The mean of nothing is not a number, as in NumPy and PyTorch.
  op_row(
      "mean", {real({3, 0})}, [](const Tensors& in) { return mean(in[0], {1}); },
      [](const Arrays&) { return Array({3}, kNan); }, Options().without_gradients());
}

TEST_CASE("max") {
  reduce_rows("max", max, fold_max, true);
  op_error("max", "expected at least one element along axes [1], got f32[3, 0]", [] {
    max(Tensor::zeros({3, 0}), {1});
  });
  op_error("max", "expected at least one element", [] { max(Tensor::zeros({0})); });
  op_error("max", "expected at least one element", [] {
    max(Tensor::zeros({2, 3, 0, 2}), {0, 2});
  });
}

TEST_CASE("max: the gradient goes to the first of equal values") {
  Tensor x = Tensor::of<float>({1, 7, 3, 7, 7, 2}, {2, 3}).set_requires_grad();
  backward(max(x));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{0, 1, 0, 0, 0, 0});
  x.zero_grad();
  backward(sum(max(x, {1})));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{0, 1, 0, 1, 0, 0});
  // Over axes apart from each other "first" still means row-major order.
  Tensor y = Tensor::of<float>({0, 5, 0, 0, 5, 5, 5, 5}, {2, 2, 2}).set_requires_grad();
  backward(sum(max(y, {0, 2})));
  CHECK(y.grad().to_vector<float>() == std::vector<float>{0, 1, 0, 0, 0, 0, 1, 0});
}

TEST_CASE("argmax") {
  const auto reference = [](const Array& x, int64_t axis) {
    Array y = reduce(x, {axis}, false, [](const std::vector<double>& values) {
      for (size_t i = 0; i < values.size(); ++i) {
        if (std::isnan(values[i])) return static_cast<double>(i);
      }
      return static_cast<double>(std::max_element(values.begin(), values.end()) - values.begin());
    });
    y.dtype = Dtype::i64;
    return y;
  };
  const std::vector<std::pair<Shape, int64_t>> cases{
      {{1}, 0},       {{7}, -1},    {{0, 3}, 1},     {{3, 5}, 0},    {{3, 5}, 1},
      {{2, 3, 5}, 1}, {{40009}, 0}, {{301, 127}, 1}, {{127, 301}, 0}};
  for (const auto& [shape, axis] : cases) {
    CAPTURE(shape);
    op_row(
        "argmax", {real(shape).frozen()},
        [&, a = axis](const Tensors& in) { return argmax(in[0], a); },
        [&, a = axis](const Arrays& in) { return reference(in[0], a); }, kExact);
  }
  for (const std::vector<double>& values : {std::vector<double>{1, 3, 3},
                                            {kNan, kInf},
                                            {1, kNan, kNan},
                                            {-kInf, -kInf},
                                            {-1, -0.0, 0.0},
                                            {0, kInf, kInf}}) {
    op_row(
        "argmax", {given(values).frozen()}, [](const Tensors& in) { return argmax(in[0]); },
        [&](const Arrays& in) { return reference(in[0], 0); }, kExact);
  }
  op_error("argmax", "expected an f32 tensor", [] { argmax(Tensor()); });
  op_error("argmax", "axis 0 is outside f32[]", [] { argmax(Tensor::scalar(1), 0); });
  op_error("argmax", "expected at least one element along axis 1, got f32[2, 0]", [] {
    argmax(Tensor::zeros({2, 0}), 1);
  });
}

TEST_CASE("a long sum keeps its precision") {
  // Sixteen million ones and a half: a running f32 sum would stop at 2^24.
  const int64_t n = (int64_t{1} << 24) + 4097;
  CHECK(sum(Tensor::full({n}, 1.0f)).item() == static_cast<float>(n));
  CHECK(mean(Tensor::full({n}, 0.1f)).item() == 0.1f);
}
