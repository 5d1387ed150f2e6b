// Softmax and losses against references in double, and cross entropy against PyTorch's own numbers.
#include <cmath>
#include <doctest/doctest.h>
#include <limits>

#include "tests/support/op_table.h"

namespace graft::test {
namespace {

constexpr double kInfinity = std::numeric_limits<double>::infinity();

// log(e^a + e^b)
long double log_add(long double a, long double b) {
  const long double high = std::max(a, b), low = std::min(a, b);
  return std::isinf(low) && low < 0 ? high : high + std::log1p(std::exp(low - high));
}

// log of the softmax along `axis`: the log of the sum is gathered one term at a time.
Array log_softmax_reference(const Array& x, int64_t axis) {
  const size_t at =
      static_cast<size_t>(axis < 0 ? axis + static_cast<int64_t>(x.shape.size()) : axis);
  size_t inner = 1;
  for (size_t d = at + 1; d < x.shape.size(); ++d) inner *= static_cast<size_t>(x.shape[d]);
  const auto length = static_cast<size_t>(x.shape[at]);
  Array y(x.shape);
  for (size_t i = 0; i < x.values.size(); ++i) {
    if (i / inner % length != 0) continue;
    long double sum = -std::numeric_limits<long double>::infinity();
    bool nan = false;
    for (size_t j = 0; j < length; ++j) {
      nan = nan || !(x.values[i + j * inner] < kInfinity);
      sum = log_add(sum, x.values[i + j * inner]);
    }
    for (size_t j = 0; j < length; ++j) {
      const long double value = nan ? NAN : x.values[i + j * inner] - sum;
      y.values[i + j * inner] = static_cast<double>(value);
    }
  }
  return y;
}
Array softmax_reference(const Array& x, int64_t axis) {
  return map(log_softmax_reference(x, axis), [](double v) { return std::exp(v); });
}

void softmax_row(const Input& input, int64_t axis, const Options& options = {}) {
  op_row(
      "softmax", {input}, [=](const Tensors& in) { return softmax(in[0], axis); },
      [=](const Arrays& in) { return softmax_reference(in[0], axis); }, options);
  op_row(
      "log_softmax", {input}, [=](const Tensors& in) { return log_softmax(in[0], axis); },
      [=](const Arrays& in) { return log_softmax_reference(in[0], axis); }, options);
}

}  // namespace

TEST_CASE("softmax and log_softmax") {
  const Options sums = accumulating(16);
  softmax_row(real({1}), 0, sums);
  softmax_row(real({4, 7}), -1, sums);
  softmax_row(real({4, 7}), 0, sums);
  softmax_row(real({3, 5, 2}), 1, sums);
  softmax_row(real({2, 1, 3}), -2, sums);
  softmax_row(real({0, 3}), -1, sums);
  softmax_row(real({3, 0}), -1, sums);
  softmax_row(real({2, 3, 300}), 1, sums);
  softmax_row(real({90, 64}), -1, sums);
  softmax_row(real({3, 1000}, -8, 8), -1, accumulating(100));
  for (int64_t length : {3, 8, 130, 197, 260, 513, 1028, 1030}) {
    softmax_row(real({3, length}, -8, 8), -1, accumulating(100));
  }
  op_row(
      "softmax", {real({3, 4})}, [](const Tensors& in) { return softmax(in[0]); },
      [](const Arrays& in) { return softmax_reference(in[0], -1); }, sums);
}

TEST_CASE("softmax and log_softmax of extreme logits") {
  const Options values = Options(accumulating(4)).without_gradients();
  softmax_row(given({1e4, -1e4, 0, 9999, 1e4, 1e4, -1e4, -1e4, -9999}, {3, 3}), -1, values);
  softmax_row(given({1e4, -1e4, 0, 9999, 1e4, 1e4, -1e4, -1e4, -9999}, {3, 3}), 0, values);
  softmax_row(given({-kInfinity, 1, 2}, {1, 3}), -1, values);
  std::vector<double> masked(1300, -kInfinity);
  masked[1200] = 1;
  masked[3] = 2;
  softmax_row(given(masked, {1, 1300}), -1, values);
  softmax_row(given(masked, {1300, 1}), 0, values);
  // As PyTorch: NaN for +inf, NaN or nothing but -inf.
  for (const std::vector<double>& row :
       {std::vector<double>{kInfinity, 0}, {NAN, 0}, {-kInfinity, -kInfinity}}) {
    const auto nan = [](const Arrays& in) { return Array(in[0].shape, NAN); };
    op_row(
        "softmax", {given(row, {1, 2})}, [](const Tensors& in) { return softmax(in[0]); }, nan,
        values);
    op_row(
        "softmax", {given(row, {2, 1})}, [](const Tensors& in) { return softmax(in[0], 0); }, nan,
        values);
  }
}

TEST_CASE("softmax and log_softmax errors") {
  op_error("softmax", "axis 2 is outside f32[3, 4]", [] { softmax(Tensor::zeros({3, 4}), 2); });
  op_error("log_softmax", "axis -3 is outside f32[3, 4]", [] {
    log_softmax(Tensor::zeros({3, 4}), -3);
  });
  op_error("softmax", "expected an f32 tensor", [] { softmax(Tensor()); });
}

namespace {

struct CrossEntropyCase {
  bool weighted = false;
  float smoothing = 0;
  Reduction reduction = Reduction::mean;
};

// in: logits, target (labels or probabilities) and perhaps class weights. Each row's target becomes
// a vector of weights on -log p.
Array cross_entropy_reference(const Arrays& in, const CrossEntropyCase& setting) {
  const Array &x = in[0], &target = in[1];
  const int64_t rows = x.shape[0], classes = x.shape[1];
  const Array log_p = log_softmax_reference(x, 1);
  const double s = static_cast<double>(setting.smoothing);
  Array loss({rows});
  double sum = 0, divisor = 0;
  for (int64_t r = 0; r < rows; ++r) {
    const bool soft = target.dtype == Dtype::f32;
    const int64_t label = soft ? 0 : static_cast<int64_t>(target.at({r}));
    if (!soft && label == -100) continue;
    double row = 0;
    for (int64_t c = 0; c < classes; ++c) {
      const double w = setting.weighted ? in[2].at({c}) : 1;
      const double own = soft ? target.at({r, c}) : (c == label ? 1 : 0);
      const double share = s / static_cast<double>(classes);
      const double t = w * ((1 - s) * own + share);
      if (t != 0) row -= t * log_p.at({r, c});
    }
    loss.at({r}) = row;
    sum += row;
    divisor += soft ? 1 : (setting.weighted ? in[2].at({label}) : 1);
  }
  if (setting.reduction == Reduction::none) return loss;
  return Array({}, {setting.reduction == Reduction::mean ? sum / divisor : sum});
}

void cross_entropy_row(const Input& logits, const Input& target, const CrossEntropyCase& setting,
                       const Options& options) {
  std::vector<Input> inputs{logits, target.frozen()};
  if (setting.weighted) inputs.push_back(real({logits.shape[1]}, 0.25, 2).frozen());
  op_row(
      "cross_entropy", inputs,
      [=](const Tensors& in) {
        CrossEntropyOptions o;
        if (setting.weighted) o.class_weights = in[2];
        o.label_smoothing = setting.smoothing;
        o.reduction = setting.reduction;
        return cross_entropy(in[0], in[1], o);
      },
      [=](const Arrays& in) { return cross_entropy_reference(in, setting); }, options);
}

}  // namespace

TEST_CASE("cross_entropy") {
  for (bool weighted : {false, true}) {
    for (float smoothing : {0.0f, 0.1f}) {
      for (Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
        const CrossEntropyCase setting{weighted, smoothing, reduction};
        cross_entropy_row(real({6, 5}), index({6}, 5), setting, accumulating(30));
        cross_entropy_row(real({4, 3}), given({2, -100, 0, -100}, {4}, Dtype::i64), setting,
                          accumulating(12));
        cross_entropy_row(real({5, 7}), real({5, 7}, 0, 0.3), setting, accumulating(35));
      }
    }
  }
  cross_entropy_row(real({1, 1}), index({1}, 1), {}, accumulating(1));
  cross_entropy_row(real({0, 3}), index({0}, 3), {}, accumulating(1));
  cross_entropy_row(real({0, 3}), index({0}, 3), {false, 0, Reduction::sum}, accumulating(1));
  cross_entropy_row(real({3, 5}), given({-100, -100, -100}, {3}, Dtype::i64),
                    {false, 0.1f, Reduction::sum}, accumulating(5));
  cross_entropy_row(real({70, 1000}, -6, 6), index({70}, 1000), {true, 0.1f}, accumulating(1000));
  for (int64_t classes : {1030, 2052}) {
    cross_entropy_row(real({3, classes}), index({3}, classes), {true, 0.1f}, accumulating(1000));
    cross_entropy_row(real({3, classes}), real({3, classes}, 0, 0.01), {true, 0.1f},
                      accumulating(1000));
  }
}

TEST_CASE("cross_entropy of extreme logits") {
  const Options values = Options(accumulating(4)).without_gradients();
  const CrossEntropyCase none{false, 0, Reduction::none};
  cross_entropy_row(given({1e4, -1e4, -1e4, 1e4, 0, 0}, {3, 2}), given({0, 0, 1}, {3}, Dtype::i64),
                    none, values);
  cross_entropy_row(given({-kInfinity, 1, 2}, {1, 3}), given({1}, {1}, Dtype::i64), none, values);
  // The gradient of a sure and wrong answer is exactly -1 and 1.
  Tensor x = Tensor::of<float>({1e4f, -1e4f}, {1, 2});
  x.set_requires_grad();
  backward(cross_entropy(x, Tensor::of<int64_t>({1})));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{1, -1});
}

TEST_CASE("cross_entropy with every row ignored is NaN and sends no gradient") {
  Tensor x = Tensor::zeros({2, 3});
  x.set_requires_grad();
  const Tensor loss = cross_entropy(x, Tensor::of<int64_t>({-100, -100}));
  CHECK(std::isnan(loss.item()));
  backward(loss);
  CHECK(x.grad().to_vector<float>() == std::vector<float>(6, 0.0f));
  CrossEntropyOptions options;
  options.ignore_index = 1;
  CHECK(std::isnan(cross_entropy(x, Tensor::of<int64_t>({1, 1}), options).item()));
}

// PyTorch 2.15, torch.nn.functional.cross_entropy(x, target, weight, label_smoothing=s) with the
// inputs below: mean, sum, and the mean's gradient in rows 0 and 3.
TEST_CASE("cross_entropy equals PyTorch's") {
  const std::vector<float> x{1.5f, -0.3f, 0.2f, 2.0f, 0.1f,  0.9f,  -1.2f, 0.4f,  -2.0f, 3.0f,
                             0.5f, 0.0f,  0.7f, 0.7f, -0.1f, -3.0f, 2.5f,  -1.5f, 1.0f,  0.3f};
  const Tensor labels = Tensor::of<int64_t>({3, 1, -100, 0, 2});
  const Tensor soft = Tensor::of<float>(
      {0.126f, 0.239f, 0.337f, 0.298f, 0.483f, 0.243f, 0.145f, 0.129f, 0.086f, 0.165f,
       0.313f, 0.436f, 0.486f, 0.285f, 0.143f, 0.086f, 0.096f, 0.138f, 0.265f, 0.501f},
      {5, 4});
  const Tensor weights = Tensor::of<float>({0.5f, 2.0f, 1.0f, 0.25f});
  struct Golden {
    bool soft, weighted;
    float smoothing, mean, sum;
    std::vector<float> grad;
  };
  const std::vector<Golden> goldens{
      {false,
       false,
       0,
       1.0283083f,
       4.1132331f,
       {0.08099652f, 0.01338864f, 0.02207413f, -0.1164593f, -0.1489512f, 0.1010488f, 0.04540414f,
        0.002498283f}},
      {false,
       false,
       0.1f,
       1.1170583f,
       4.4682331f,
       {0.07474652f, 0.007138635f, 0.01582413f, -0.09770929f, -0.1302012f, 0.09479878f, 0.03915414f,
        -0.003751718f}},
      {false,
       true,
       0,
       1.0582842f,
       3.9685657f,
       {0.02159907f, 0.003570303f, 0.005886435f, -0.03105581f, -0.07944065f, 0.05389269f,
        0.02421554f, 0.001332417f}},
      {false,
       true,
       0.1f,
       1.1581199f,
       4.3429499f,
       {0.02420548f, -0.008781197f, 0.0008385366f, -0.01626283f, -0.06472503f, 0.04527496f,
        0.01966773f, -0.000217663f}},
      {true,
       false,
       0,
       1.9445082f,
       9.7225409f,
       {0.03959721f, -0.03708909f, -0.0497407f, 0.04723255f, -0.01636096f, 0.02383904f,
        0.007723317f, -0.01520137f}},
      {true,
       false,
       0.1f,
       1.9584183f,
       9.7920914f,
       {0.03711722f, -0.03730909f, -0.0480007f, 0.04819256f, -0.01164097f, 0.02453903f, 0.00558331f,
        -0.01848137f}},
      {true,
       true,
       0,
       1.6105402f,
       8.052701f,
       {0.04911935f, -0.08539786f, -0.05057951f, 0.08685801f, 0.03042015f, -0.03497985f,
        0.006906039f, -0.002346343f}},
      {true,
       true,
       0.1f,
       1.6349182f,
       8.1745911f,
       {0.04778215f, -0.08585393f, -0.048866f, 0.08693777f, 0.03245679f, -0.0339032f, 0.004620743f,
        -0.003174338f}},
  };
  for (const Golden& golden : goldens) {
    Tensor logits = Tensor::of(x, {5, 4});
    logits.set_requires_grad();
    CrossEntropyOptions options;
    if (golden.weighted) options.class_weights = weights;
    options.label_smoothing = golden.smoothing;
    const Tensor& target = golden.soft ? soft : labels;
    const Tensor loss = cross_entropy(logits, target, options);
    CHECK(loss.item() == doctest::Approx(golden.mean).epsilon(5e-7));
    backward(loss);
    const std::vector<float> grad = logits.grad().to_vector<float>();
    for (size_t j = 0; j < 8; ++j) {
      CHECK(std::fabs(grad[j < 4 ? j : j + 8] - golden.grad[j]) < 3e-8f);
    }
    options.reduction = Reduction::sum;
    CHECK(cross_entropy(logits, target, options).item() ==
          doctest::Approx(golden.sum).epsilon(5e-7));
  }
}

TEST_CASE("cross_entropy: labels are checked on the host, on a device they make their row NaN") {
  Tensor x = Tensor::zeros({3, 4}).to(test_device());
  x.set_requires_grad();
  CrossEntropyOptions options;
  options.class_weights = Tensor::full({4}, 1.0f).to(test_device());
  options.reduction = Reduction::none;
  const Tensor host_loss = cross_entropy(x, Tensor::of<int64_t>({0, 3, 2}), options);
  CHECK(host_loss.device() == test_device());
  CHECK(host_loss.to_vector<float>() == std::vector<float>(3, std::log(4.0f)));
  for (int64_t label : {int64_t{4}, int64_t{-1}, int64_t{1} << 60}) {
    const Tensor wrong = Tensor::of<int64_t>({0, label, 2});
    op_error("cross_entropy", "the label of row 1 is", [&] { cross_entropy(x, wrong, options); });
    if (test_device().is_cpu()) continue;
    x.zero_grad();
    const Tensor loss = cross_entropy(x, wrong.to(test_device()), options);
    backward(loss, Tensor::full({3}, 1.0f).to(test_device()));
    const std::vector<float> rows = loss.to_vector<float>(), grad = x.grad().to_vector<float>();
    for (size_t i = 0; i < 3; ++i) CHECK(std::isnan(rows[i]) == (i == 1));
    for (size_t i = 0; i < 12; ++i) CHECK(std::isnan(grad[i]) == (i / 4 == 1));
  }
}

TEST_CASE("cross_entropy errors") {
  const Tensor x = Tensor::zeros({3, 4});
  op_error("cross_entropy", "the label of row 1 is 4, expected 0..3 or ignore_index (-100)", [&] {
    cross_entropy(x, Tensor::of<int64_t>({0, 4, 1}));
  });
  op_error("cross_entropy", "the label of row 2 is -1", [&] {
    cross_entropy(x, Tensor::of<int64_t>({0, 3, -1}));
  });
  op_error("cross_entropy", "expected i64 labels of shape [3], one a row of logits, got i64[2]",
           [&] {
             cross_entropy(x, Tensor::of<int64_t>({0, 1}));
           });
  op_error("cross_entropy", "expected class probabilities of shape [3, 4], got f32[3]",
           [&] { cross_entropy(x, Tensor::zeros({3})); });
  op_error("cross_entropy", "expected logits of shape (n, classes), got f32[3]", [] {
    cross_entropy(Tensor::zeros({3}), Tensor::of<int64_t>({0, 1, 2}));
  });
  op_error("cross_entropy", "the target is an undefined tensor",
           [&] { cross_entropy(x, Tensor()); });
  CrossEntropyOptions options;
  options.class_weights = Tensor::zeros({3});
  op_error("cross_entropy", "expected class_weights of shape [4]", [&] {
    cross_entropy(x, Tensor::of<int64_t>({0, 1, 2}), options);
  });
  options = {};
  options.label_smoothing = 1.5f;
  op_error("cross_entropy", "expected label_smoothing in 0..1, got 1.5", [&] {
    cross_entropy(x, Tensor::of<int64_t>({0, 1, 2}), options);
  });
}

namespace {

using Pair = std::function<double(double, double)>;

Array reduced(const Arrays& in, const Pair& f, Reduction reduction) {
  Array each(in[0].shape);
  for (size_t i = 0; i < each.values.size(); ++i) {
    each.values[i] = f(in[0].values[i], in[1].values[i]);
  }
  if (reduction == Reduction::none) return each;
  long double sum = 0;
  for (size_t i = each.values.size(); i-- > 0;) sum += each.values[i];
  if (reduction == Reduction::mean) sum /= static_cast<long double>(each.size());
  return Array({}, {static_cast<double>(sum)});
}

// Rows for a loss of two arrays whose values come from the ranges of `x` and `target`.
void pair_loss_rows(const std::string& op, const Pair& f,
                    const std::function<Tensor(const Tensor&, const Tensor&, Reduction)>& call,
                    const Input& x, const Input& target) {
  for (Reduction reduction : {Reduction::none, Reduction::mean, Reduction::sum}) {
    std::vector<Shape> shapes{{}, {1}, {5, 7}, {0}};
    if (reduction == Reduction::mean) shapes.push_back({3, 4, 3000});
    for (const Shape& shape : shapes) {
      Input a = x, b = target;
      a.shape = b.shape = shape;
      op_row(
          op, {a, b}, [=](const Tensors& in) { return call(in[0], in[1], reduction); },
          [=](const Arrays& in) { return reduced(in, f, reduction); }, accumulating(4));
    }
  }
}

}  // namespace

TEST_CASE("bce_with_logits") {
  const Pair f = [](double x, double t) {
    return -t * std::log(1 / (1 + std::exp(-x))) - (1 - t) * std::log(1 / (1 + std::exp(x)));
  };
  pair_loss_rows("bce_with_logits", f, bce_with_logits, real({}, -4, 4), real({}, 0, 1).frozen());
  op_row(
      "bce_with_logits", {given({1e4, -1e4, 1e4, -1e4}), given({1, 0, 0, 1}).frozen()},
      [](const Tensors& in) { return bce_with_logits(in[0], in[1], Reduction::none); },
      [](const Arrays&) {
        return Array({4}, {0, 0, 1e4, 1e4});
      },
      Options(kPointwise).without_gradients());
  Tensor sure = Tensor::of<float>({1e4f, -1e4f, 1e4f, -1e4f});
  sure.set_requires_grad();
  backward(bce_with_logits(sure, Tensor::of<float>({1, 0, 0, 1}), Reduction::sum));
  CHECK(sure.grad().to_vector<float>() == std::vector<float>{0, 0, 1, -1});
  Tensor target = Tensor::zeros({2});
  target.set_requires_grad();
  CHECK_FALSE(bce_with_logits(Tensor::zeros({2}), target).requires_grad());
  op_error("bce_with_logits", "expected a target of the same shape as x, [2], got [3]",
           [] { bce_with_logits(Tensor::zeros({2}), Tensor::zeros({3})); });
}

TEST_CASE("mse_loss, l1_loss and huber_loss") {
  pair_loss_rows(
      "mse_loss", [](double x, double t) { return (x - t) * (x - t); }, mse_loss, real({}),
      real({}));
  // Kinks at x - target = 0 (and +-delta): x and target lie in ranges that keep away from them.
  pair_loss_rows(
      "l1_loss", [](double x, double t) { return std::fabs(x - t); }, l1_loss, real({}, 1, 3),
      real({}, -2, 0.9));
  pair_loss_rows(
      "l1_loss", [](double x, double t) { return std::fabs(x - t); }, l1_loss, real({}, -3, -1),
      real({}, -0.9, 2));
  const auto huber = [](double delta) {
    return [delta](double x, double t) {
      const double d = std::fabs(x - t), inside = std::min(d, delta);
      return inside * inside / 2 + delta * (d - inside);
    };
  };
  const auto call = [](float delta) {
    return [delta](const Tensor& x, const Tensor& t, Reduction r) {
      return huber_loss(x, t, delta, r);
    };
  };
  // All inside delta, then all outside, on either side.
  pair_loss_rows("huber_loss", huber(5), call(5), real({}), real({}));
  pair_loss_rows("huber_loss", huber(0.5), call(0.5f), real({}, 1, 3), real({}, -2, 0.4));
  pair_loss_rows("huber_loss", huber(0.5), call(0.5f), real({}, -3, -1), real({}, -0.4, 2));
  const auto error = [](const std::string& op, const auto& loss) {
    op_error(op, "expected a target of the same shape as x, [2], got [1, 2]", [&] {
      loss(Tensor::zeros({2}), Tensor::zeros({1, 2}));
    });
  };
  op_error("mse_loss", "expected an f32 tensor as target",
           [] { mse_loss(Tensor::zeros({2}), Tensor()); });
  op_error("l1_loss", "expected an f32 tensor as x", [] { l1_loss(Tensor(), Tensor()); });
  op_error("huber_loss", "expected delta above 0, got 0",
           [] { huber_loss(Tensor::zeros({2}), Tensor::zeros({2}), 0); });
  error("mse_loss", [](const Tensor& x, const Tensor& t) { return mse_loss(x, t); });
  error("l1_loss", [](const Tensor& x, const Tensor& t) { return l1_loss(x, t); });
  error("huber_loss", [](const Tensor& x, const Tensor& t) { return huber_loss(x, t); });
}

}  // namespace graft::test
