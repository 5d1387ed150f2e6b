// Tests of the tests: ops with one deliberate mistake each, which the op table must reject, and for
// each the same op without the mistake, which it must accept.
#include <cmath>
#include <limits>
#include <omp.h>

#include "engine/running.h"
#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

// 2 x, by hand, with a mistake switched on by its number.
enum class Bug {
  none,
  tail_not_written,  // off by one
  writes_past_end,
  changes_input,
  last_row_only,   // = where += is meant
  wrong_sign,      // of the derivative
  forgets_factor,  // in the derivative
  saves_too_late,  // a gradient from the wrong values
  no_gradient,
  gradient_of_other,  // two inputs' gradients swapped
  biased,             // variance over n - 1
  thread_dependent,
  not_repeatable,
  one_bad_element,
  wrong_type,
  wrong_shape,
  nameless,            // when memory runs out
  end_of_every_chunk,  // a product's GELU, taken of parts of its sums
  slope_of_result,     // GELU's derivative where y is, not x
  bias_behind_gelu,    // a bias's gradient without the GELU in front of it
};

// Doubles x; gradient 2 g.
Tensor twice(const Tensor& x, Bug bug) {
  if (bug == Bug::wrong_shape) return view_as(mul(x, 2.0f), {x.numel(), 1});
  Tensor y = empty_like(x);
  float* out = y.mutable_data<float>();
  const float* in = x.data<float>();
  const int64_t n = x.numel();
  for (int64_t i = 0; i < (bug == Bug::tail_not_written ? n - 1 : n); ++i) out[i] = 2 * in[i];
  if (bug == Bug::writes_past_end) out[n] = 0;
  if (bug == Bug::changes_input) const_cast<float*>(in)[0] += 1;
  if (bug == Bug::one_bad_element) out[n / 2] *= 1.0001f;
  static int calls = 0;
  if (bug == Bug::not_repeatable) out[0] = std::nextafter(out[0], ++calls % 2 == 0 ? 9.0f : -9.0f);
  if (bug == Bug::thread_dependent && omp_get_max_threads() == 1) {
    out[0] = std::nextafter(out[0], 9.0f);
  }
  if (bug == Bug::wrong_type) return cast(y, Dtype::f64);
  if (bug == Bug::no_gradient) return y;
  return record("twice", {x}, y, [bug](const Tensor& g, const Needs&) -> Grads {
    return {mul(g, bug == Bug::wrong_sign ? -2.0f : (bug == Bug::forgets_factor ? 1.0f : 2.0f))};
  });
}

// The column sums of a matrix.
Tensor column_sum(const Tensor& x, Bug bug) {
  Tensor y = Tensor::zeros({x.dim(1)});
  float* out = y.mutable_data<float>();
  const float* in = x.data<float>();
  for (int64_t row = 0; row < x.dim(0); ++row) {
    for (int64_t k = 0; k < x.dim(1); ++k) {
      const float value = in[row * x.dim(1) + k];
      out[k] = bug == Bug::last_row_only ? value : out[k] + value;
    }
  }
  return record("column_sum", {x}, y, [shape = x.shape()](const Tensor& g, const Needs&) -> Grads {
    return {mul(Tensor::full(shape, 1.0f), g)};
  });
}

Tensor variance(const Tensor& x, Bug bug) {
  const Tensor centred = sub(x, mean(x));
  const auto n = static_cast<float>(x.numel());
  return div(sum(mul(centred, centred)), bug == Bug::biased ? n - 1 : n);
}

// a b c, whose gradients to a and b differ.
Tensor product(const Tensor& a, const Tensor& b, Bug bug) {
  const Tensor y = mul(a.detach(), b.detach());
  return record("product", {a, b}, y,
                [bug, a = Saved(a), b = Saved(b)](const Tensor& g, const Needs&) -> Grads {
                  const Tensor da = mul(g, b.get("product")), db = mul(g, a.get("product"));
                  return bug == Bug::gradient_of_other ? Grads{db, da} : Grads{da, db};
                });
}

Tensor cube(const Tensor& x, Bug bug) {
  const Tensor y = mul(x.detach(), mul(x.detach(), x.detach()));
  return record("cube", {x}, y,
                [bug, x = Saved(x), y = Saved(y)](const Tensor& g, const Needs&) -> Grads {
                  const Tensor& kept = bug == Bug::saves_too_late ? y.get("cube") : x.get("cube");
                  return {mul(g, mul(mul(kept, kept), 3.0f))};
                });
}

Tensor gelu_slope(const Tensor& x) {
  const Tensor s = sigmoid(mul(add(x, mul(pow(x, 3), 0.044715f)), 1.5957691f));
  const Tensor inner = mul(add(mul(mul(x, x), 0.134145f), 1), 1.5957691f);
  return add(s, mul(mul(x, inner), mul(s, add(neg(s), 1))));
}

// gelu(x w^T + b), by tanh.
Tensor layer(const Tensor& x, const Tensor& w, const Tensor& b, Bug bug) {
  const Tensor left = x.detach(), right = w.detach();
  const Tensor pre = linear(left, right, b.detach());
  Tensor y = gelu_tanh(pre);
  if (bug == Bug::end_of_every_chunk) {
    const int64_t k = x.dim(1), half = k / 2;
    y = add(gelu_tanh(linear(slice(left, 1, 0, half), slice(right, 1, 0, half))),
            gelu_tanh(linear(slice(left, 1, half, k - half), slice(right, 1, half, k - half), b)))
            .detach();
  }
  return record("layer", {x, w, b}, y,
                [bug, x = Saved(x), w = Saved(w), pre = Saved(pre), y = Saved(y)](
                    const Tensor& g, const Needs&) -> Grads {
                  const Tensor& at =
                      bug == Bug::slope_of_result ? y.get("layer") : pre.get("layer");
                  const Tensor dpre = mul(g, gelu_slope(at));
                  return {matmul(dpre, w.get("layer")), matmul(dpre, x.get("layer"), true),
                          sum(bug == Bug::bias_behind_gelu ? g : dpre, {0})};
                });
}

bool rejected(Bug bug) {
  const auto doubled = [](const Arrays& in) { return map(in[0], [](double x) { return 2 * x; }); };
  std::vector<std::string> problems;
  const auto add_row = [&](const std::vector<Input>& inputs, const Call& call,
                           const Reference& reference, const Tolerance& tolerance = kPointwise) {
    const Call named = [&](const Tensors& in) {
      const RunningOp running(bug == Bug::nameless ? "unseeded" : "seeded");
      return call(in);
    };
    for (const std::string& line : run_row("seeded", inputs, named, reference, tolerance)) {
      problems.push_back(line);
    }
  };
  add_row(
      {real({64})}, [&](const Tensors& in) { return twice(in[0], bug); }, doubled);
  add_row(
      {real({7, 9})}, [&](const Tensors& in) { return column_sum(in[0], bug); },
      [](const Arrays& in) {
        Array y({9});
        for (int64_t i = 0; i < 63; ++i) {
          y.values[static_cast<size_t>(i % 9)] += in[0].values[static_cast<size_t>(i)];
        }
        return y;
      },
      accumulating(7));
  add_row(
      {real({50})}, [&](const Tensors& in) { return variance(in[0], bug); },
      [](const Arrays& in) {
        // Mean of the squared differences of all pairs, halved.
        double total = 0;
        for (double a : in[0].values) {
          for (double b : in[0].values) total += (a - b) * (a - b);
        }
        const auto n = static_cast<double>(in[0].size());
        return Array({}, total / (2 * n * n));
      },
      accumulating(50));
  add_row(
      {real({5}), real({5})}, [&](const Tensors& in) { return product(in[0], in[1], bug); },
      [](const Arrays& in) { return zip(in[0], in[1], [](double a, double b) { return a * b; }); });
  add_row(
      {real({6})}, [&](const Tensors& in) { return cube(in[0], bug); },
      [](const Arrays& in) { return map(in[0], [](double x) { return x * x * x; }); });
  add_row(
      {real({4, 6}), real({5, 6}), real({5})},
      [&](const Tensors& in) { return layer(in[0], in[1], in[2], bug); },
      [](const Arrays& in) {
        Array y({4, 5});
        for (int64_t i = 0; i < 20; ++i) {
          double v = in[2].at({i % 5});
          for (int64_t k = 0; k < 6; ++k) v += in[0].at({i / 5, k}) * in[1].at({i % 5, k});
          const double u = std::sqrt(2 / std::acos(-1.0)) * (v + 0.044715 * v * v * v);
          y.values[static_cast<size_t>(i)] = v / 2 * (1 + std::tanh(u));
        }
        return y;
      },
      accumulating(24));
  if (bug == Bug::none) {
    for (const std::string& line : problems) MESSAGE(line);
  }
  return !problems.empty();
}

}  // namespace

TEST_CASE("correct ops are accepted") { CHECK_FALSE(rejected(Bug::none)); }

TEST_CASE("ops with a mistake are rejected") {
  CHECK(rejected(Bug::tail_not_written));
  CHECK(rejected(Bug::writes_past_end));
  CHECK(rejected(Bug::changes_input));
  CHECK(rejected(Bug::last_row_only));
  CHECK(rejected(Bug::wrong_sign));
  CHECK(rejected(Bug::forgets_factor));
  CHECK(rejected(Bug::saves_too_late));
  CHECK(rejected(Bug::no_gradient));
  CHECK(rejected(Bug::gradient_of_other));
  CHECK(rejected(Bug::biased));
  CHECK(rejected(Bug::thread_dependent));
  CHECK(rejected(Bug::not_repeatable));
  CHECK(rejected(Bug::one_bad_element));
  CHECK(rejected(Bug::wrong_type));
  CHECK(rejected(Bug::wrong_shape));
  CHECK(rejected(Bug::nameless));
  CHECK(rejected(Bug::end_of_every_chunk));
  CHECK(rejected(Bug::slope_of_result));
  CHECK(rejected(Bug::bias_behind_gelu));
}

TEST_CASE("the comparison is per element and knows what is not finite") {
  const double inf = std::numeric_limits<double>::infinity(), nan = std::nan("");
  const auto same = [](std::vector<double> a, std::vector<double> b, double rtol) {
    const auto n = static_cast<int64_t>(a.size());
    return compare(Array({n}, std::move(a)), Array({n}, std::move(b)), rtol, 0).empty();
  };
  CHECK(same({1, inf, nan}, {1, inf, nan}, 0));
  CHECK(same({inf}, {1e39}, 0));  // beyond f32
  CHECK_FALSE(same({inf}, {-inf}, 1));
  CHECK_FALSE(same({nan}, {1}, 1));
  CHECK_FALSE(same({1}, {nan}, 1));
  CHECK_FALSE(same({1}, {inf}, 1));
  CHECK_FALSE(same({inf}, {1}, 1));
  CHECK(same({1.001}, {1}, 1e-2));
  CHECK_FALSE(same({1.1, 1, 1, 1}, {1, 1, 1, 1}, 1e-2));
  CHECK(compare(Array({2, 2}, {1, 2, 3, 5}), Array({2, 2}, {1, 2, 3, 4}), 0, 0) ==
        "element [1, 1] is 5, the reference has 4");
}
