// Batch, layer and group normalisation against two-pass references in long double.
#include <cmath>
#include <doctest/doctest.h>
#include <omp.h>

#include "engine/rng.h"
#include "tests/support/op_table.h"

namespace graft::test {
namespace {

struct BatchNormCase {
  bool training = true;
  Activation activation = Activation::none;
  float epsilon = 1e-5f;
};

float running_mean_at(int64_t j) { return 0.25f * static_cast<float>(j % 5) - 0.5f; }
float running_var_at(int64_t j) { return 0.5f + 0.125f * static_cast<float>(j % 7); }

Tensor channel_vector(int64_t channels, float (*value)(int64_t)) {
  std::vector<float> values;
  for (int64_t j = 0; j < channels; ++j) values.push_back(value(j));
  return Tensor::of(values).to(test_device());
}

double activated(double z, Activation activation) {
  if (activation != Activation::none) z = z < 0 ? 0 : z;
  if (activation == Activation::relu6) z = z > 6 ? 6 : z;
  return z;
}

// in: x, weight, bias and perhaps a residual. Channel by channel, two passes.
Array batch_norm_reference(const Arrays& in, const BatchNormCase& setting) {
  const Array& x = in[0];
  const auto c = static_cast<size_t>(x.shape.back());
  const size_t rows = c == 0 ? 0 : x.values.size() / c;
  Array y(x.shape);
  for (size_t j = 0; j < c && rows > 0; ++j) {
    long double mean = 0, variance = 0;
    if (setting.training) {
      for (size_t r = 0; r < rows; ++r) mean += x.values[r * c + j];
      mean /= static_cast<long double>(rows);
      for (size_t r = 0; r < rows; ++r) variance += std::pow(x.values[r * c + j] - mean, 2.0L);
      variance /= static_cast<long double>(rows);
    } else {
      mean = running_mean_at(static_cast<int64_t>(j));
      variance = running_var_at(static_cast<int64_t>(j));
    }
    const long double deviation = std::sqrt(variance + setting.epsilon);
    for (size_t r = 0; r < rows; ++r) {
      const size_t i = r * c + j;
      long double z = (x.values[i] - mean) / deviation * in[1].values[j] + in[2].values[j];
      if (in.size() > 3) z += in[3].values[i];
      y.values[i] = activated(static_cast<double>(z), setting.activation);
    }
  }
  return y;
}

Tensor batch_norm_call(const Tensors& in, const BatchNormCase& setting) {
  const int64_t c = in[0].dim(-1);
  Tensor mean = channel_vector(c, running_mean_at), var = channel_vector(c, running_var_at);
  BatchNormOptions options;
  options.training = setting.training;
  options.activation = setting.activation;
  options.epsilon = setting.epsilon;
  return batch_norm(in[0], in[1], in[2], mean, var, options, in.size() > 3 ? in[3] : Tensor());
}

Input random_input(const Shape& shape, float low, float high, RngKey key) {
  const std::vector<float> values = uniform(shape, low, high, key).to_vector<float>();
  return given(std::vector<double>(values.begin(), values.end()), shape);
}

// Random inputs. With an activation they are drawn again until no number is so near to a kink that
// the numeric gradient would step over it.
std::vector<Input> batch_norm_inputs(const Shape& shape, const BatchNormCase& setting,
                                     bool residual) {
  for (uint64_t seed = 1;; ++seed) {
    std::vector<Input> inputs{random_input(shape, -2, 2, {seed, 0, 0}),
                              random_input({shape.back()}, 0.5, 2.5, {seed, 0, 1}).parameter(),
                              random_input({shape.back()}, -2, 2, {seed, 0, 2}).parameter()};
    if (residual) inputs.push_back(random_input(shape, -2, 2, {seed, 0, 3}));
    if (setting.activation == Activation::none) return inputs;
    Arrays arrays;
    for (const Input& input : inputs) arrays.emplace_back(input.shape, input.values);
    BatchNormCase plain = setting;
    plain.activation = Activation::none;
    double distance = 1;
    for (double z : batch_norm_reference(arrays, plain).values) {
      distance = std::min({distance, std::fabs(z), std::fabs(z - 6)});
    }
    if (distance > 1e-4) return inputs;
  }
}

void batch_norm_row(const Shape& shape, const BatchNormCase& setting, bool residual,
                    const Options& options) {
  const std::string about =
      text(shape, setting.training ? ", training" : ", frozen", ", activation ",
           static_cast<int>(setting.activation), residual ? ", residual" : "");
  CAPTURE(about);
  op_row(
      "batch_norm", batch_norm_inputs(shape, setting, residual),
      [=](const Tensors& in) { return batch_norm_call(in, setting); },
      [=](const Arrays& in) { return batch_norm_reference(in, setting); },
      // Rounding inputs would move them across kinks.
      setting.activation == Activation::none ? options : options.without_bf16());
}

// Numbers around 1 normalised over few rows can have a large slope, hence the floor.
Tolerance norm_tolerance(int64_t rows) { return accumulating(std::max<int64_t>(rows, 16)); }

BatchNormOptions eval_options() {
  BatchNormOptions options;
  options.training = false;
  return options;
}

}  // namespace

TEST_CASE("batch_norm over channel counts and rows") {
  for (bool training : {true, false}) {
    for (int64_t c : {1, 3, 8, 16, 17, 24, 33, 96}) {
      for (int64_t rows : {2, 5, 49}) {
        // Two rows: every result is +1 or -1 up to epsilon; a larger one makes a smoother function.
        const float epsilon = rows == 2 ? 0.5f : 1e-5f;
        batch_norm_row({rows, c}, {training, Activation::none, epsilon}, false,
                       norm_tolerance(rows));
      }
    }
    for (int64_t c : {1, 17, 24, 96}) {
      batch_norm_row({1037, c}, {training, Activation::none}, false, norm_tolerance(1037));
    }
  }
  // Wider than one block of a GPU, in packs and one by one.
  for (int64_t c : {130, 272}) {
    batch_norm_row({70, c}, {true, Activation::relu}, true, norm_tolerance(70));
  }
  // One row and frozen statistics is fine; images; an empty batch.
  batch_norm_row({1, 5}, {false, Activation::none}, false, norm_tolerance(16));
  batch_norm_row({2, 3, 4, 6}, {true, Activation::none}, false, norm_tolerance(24));
  batch_norm_row({0, 4}, {true, Activation::none}, true, {});
  batch_norm_row({3, 0}, {true, Activation::none}, false, {});
}

TEST_CASE("batch_norm with activation and residual") {
  for (bool training : {true, false}) {
    for (Activation activation : {Activation::none, Activation::relu, Activation::relu6}) {
      for (bool residual : {false, true}) {
        batch_norm_row({6, 1}, {training, activation}, residual, norm_tolerance(6));
        batch_norm_row({19, 24}, {training, activation}, residual, norm_tolerance(19));
        batch_norm_row({700, 3}, {training, activation}, residual, norm_tolerance(700));
        batch_norm_row({2, 7, 7, 40}, {training, activation}, residual, norm_tolerance(98));
      }
    }
  }
}

TEST_CASE("batch_norm on more rows than one chunk holds") {
  batch_norm_row({33001, 8}, {true, Activation::none}, false, norm_tolerance(33001));
}

TEST_CASE("batch_norm without weight and bias") {
  op_row(
      "batch_norm", {real({12, 5})},
      [](const Tensors& in) {
        Tensor mean = channel_vector(5, running_mean_at), var = channel_vector(5, running_var_at);
        return batch_norm(in[0], Tensor(), Tensor(), mean, var, {});
      },
      [](const Arrays& in) {
        return batch_norm_reference({in[0], Array({5}, 1.0), Array({5}, 0.0)}, {});
      },
      norm_tolerance(16));
}

TEST_CASE("batch_norm keeps its precision when the mean is far from zero") {
  for (int64_t c : {1, 16, 33}) {
    op_row(
        "batch_norm", {real({2049, c}, 9998.2679, 10001.7321), real({c}, 0.5, 2.5), real({c})},
        [](const Tensors& in) { return batch_norm_call(in, {}); },
        [](const Arrays& in) { return batch_norm_reference(in, {}); },
        Options(norm_tolerance(2049)).without_bf16());
  }
  // One row that stands far out must not spoil the others' variance.
  std::vector<double> values;
  for (int64_t i = 0; i < 600; ++i)
    values.push_back(i == 0 ? 1e4 : std::sin(static_cast<double>(i)));
  for (double& v : values) v = static_cast<double>(static_cast<float>(v));
  op_row(
      "batch_norm", {given(values, {600, 1}), given({1.0}), given({0.0})},
      [](const Tensors& in) { return batch_norm_call(in, {}); },
      [](const Arrays& in) { return batch_norm_reference(in, {}); },
      Options(Tolerance{2e-5, 1e-6, 0, 0}).without_gradients().without_bf16());
}

TEST_CASE("batch_norm of a constant is its bias") {
  op_row(
      "batch_norm",
      {given(std::vector<double>(60, 1234.567871), {20, 3}).frozen(), real({3}).parameter(),
       real({3}).parameter()},
      [](const Tensors& in) { return batch_norm_call(in, {}); },
      [](const Arrays& in) {
        Array y({20, 3});
        for (size_t i = 0; i < 60; ++i) y.values[i] = in[2].values[i % 3];
        return y;
      },
      Options().without_gradients());
}

TEST_CASE("batch_norm moves the running statistics as PyTorch does") {
  const Tensor x = uniform({300, 20}, -3, 5, {11, 0, 0}).to(test_device());
  const std::vector<float> values = x.to_vector<float>();
  Tensor mean = channel_vector(20, running_mean_at), var = channel_vector(20, running_var_at);
  BatchNormOptions options;
  options.momentum = 0.3f;
  const uint64_t version = mean.storage()->version();
  batch_norm(x, Tensor(), Tensor(), mean, var, options);
  CHECK(mean.storage()->version() > version);
  for (int64_t j = 0; j < 20; ++j) {
    long double sum = 0, square = 0;
    for (int64_t r = 0; r < 300; ++r) sum += values[static_cast<size_t>(r * 20 + j)];
    for (int64_t r = 0; r < 300; ++r) {
      square += std::pow(values[static_cast<size_t>(r * 20 + j)] - sum / 300, 2.0L);
    }
    const auto at = static_cast<size_t>(j);
    CHECK(mean.to_vector<float>()[at] ==
          doctest::Approx(0.7 * running_mean_at(j) + 0.3 * static_cast<double>(sum / 300))
              .epsilon(1e-6));
    CHECK(var.to_vector<float>()[at] ==
          doctest::Approx(0.7 * running_var_at(j) + 0.3 * static_cast<double>(square / 299))
              .epsilon(1e-6));
  }
  // With frozen statistics they stay.
  const std::vector<float> before = mean.to_vector<float>();
  batch_norm(x, Tensor(), Tensor(), mean, var, eval_options());
  CHECK(mean.to_vector<float>() == before);
}

TEST_CASE("batch_norm passes NaN on and keeps nothing that a frozen layer does not need") {
  const Device device = test_device();
  Tensor mean = Tensor::zeros({1}).to(device), var = Tensor::full({1}, 1.0f).to(device);
  const Tensor x = Tensor::of<float>({1, NAN, 3}, {3, 1}).to(device);
  for (float v : batch_norm(x, Tensor(), Tensor(), mean, var, {}).to_vector<float>()) {
    CHECK(std::isnan(v));
  }
  CHECK(std::isnan(var.item()));

  mean.fill(0);
  var.fill(1);
  Tensor input = Tensor::of<float>({1, 2, 3}, {3, 1}).to(device);
  input.set_requires_grad();
  const std::weak_ptr<Storage> held = [&] {
    const Tensor inner = mul(input, 2.0f);
    return std::weak_ptr<Storage>(inner.storage());
  }();
  CHECK(held.expired());
  Tensor y;
  std::weak_ptr<Storage> middle;
  {
    const Tensor inner = mul(input, 2.0f);
    middle = inner.storage();
    y = batch_norm(inner, Tensor(), Tensor(), mean, var, eval_options());
  }
  CHECK(middle.expired());
  backward(sum(y));
  CHECK(input.grad().to_vector<float>()[0] == doctest::Approx(2.0 / std::sqrt(1 + 1e-5)));
}

TEST_CASE("batch_norm errors") {
  Tensor mean = Tensor::zeros({3}), var = Tensor::full({3}, 1.0f);
  const Tensor x = Tensor::zeros({4, 3}), none;
  op_error("batch_norm", "expected more than 1 value per channel when training, got f32[1, 3]",
           [&] {
             batch_norm(Tensor::zeros({1, 3}), none, none, mean, var, {});
           });
  op_error("batch_norm", "expected x to be an f32 or bf16 tensor, got an undefined tensor",
           [&] { batch_norm(none, none, none, mean, var, {}); });
  op_error("batch_norm", "at least 2 dimensions",
           [&] { batch_norm(Tensor::zeros({3}), none, none, mean, var, {}); });
  op_error("batch_norm", "expected weight of shape [3], one number a channel, got f32[4]",
           [&] { batch_norm(x, Tensor::zeros({4}), none, mean, var, {}); });
  op_error("batch_norm", "expected running_var of shape [3]", [&] {
    Tensor wrong = Tensor::zeros({2});
    batch_norm(x, none, none, mean, wrong, {});
  });
  op_error("batch_norm", "expected a residual like x, f32[4, 3]", [&] {
    batch_norm(x, none, none, mean, var, {}, Tensor::zeros({3, 4}));
  });
}

namespace {

// x (rows, c) with groups of `width` numbers that share statistics; weight and bias by index % c.
Array grouped_reference(const Arrays& in, const std::vector<std::vector<size_t>>& groups,
                        long double epsilon) {
  const auto c = static_cast<size_t>(in[0].shape.back());
  Array y(in[0].shape);
  for (const std::vector<size_t>& group : groups) {
    long double mean = 0, variance = 0;
    for (size_t i : group) mean += in[0].values[i];
    mean /= static_cast<long double>(group.size());
    for (size_t i : group) variance += std::pow(in[0].values[i] - mean, 2.0L);
    variance /= static_cast<long double>(group.size());
    for (size_t i : group) {
      const long double w = in.size() > 1 ? in[1].values[i % c] : 1;
      const long double b = in.size() > 2 ? in[2].values[i % c] : 0;
      y.values[i] =
          static_cast<double>((in[0].values[i] - mean) / std::sqrt(variance + epsilon) * w + b);
    }
  }
  return y;
}

Array layer_norm_reference(const Arrays& in, double epsilon) {
  const auto c = static_cast<size_t>(in[0].shape.back());
  std::vector<std::vector<size_t>> groups;
  for (size_t i = 0; i < in[0].values.size(); ++i) {
    if (i % c == 0) groups.emplace_back();
    groups.back().push_back(i);
  }
  return grouped_reference(in, groups, epsilon);
}

Array group_norm_reference(const Arrays& in, int64_t count, double epsilon) {
  const Shape& shape = in[0].shape;
  const auto c = static_cast<size_t>(shape.back()), width = c / static_cast<size_t>(count);
  std::vector<std::vector<size_t>> groups(static_cast<size_t>(shape[0] * count));
  const size_t sample = in[0].values.size() / std::max<size_t>(1, static_cast<size_t>(shape[0]));
  for (size_t i = 0; i < in[0].values.size(); ++i) {
    groups[i / sample * static_cast<size_t>(count) + i % c / width].push_back(i);
  }
  return grouped_reference(in, groups, epsilon);
}

void layer_norm_row(const Shape& shape, double low = -2, double high = 2, float epsilon = 1e-5f) {
  const int64_t c = shape.back(), rows = numel_of(shape) / std::max<int64_t>(1, c);
  op_row(
      "layer_norm", {real(shape, low, high), real({c}, 0.5, 2.5), real({c})},
      [=](const Tensors& in) { return layer_norm(in[0], in[1], in[2], epsilon); },
      [=](const Arrays& in) { return layer_norm_reference(in, epsilon); },
      norm_tolerance(std::max(c, rows)));  // the weight's gradient sums over rows
}

void group_norm_row(const Shape& shape, int64_t groups, double low = -2, double high = 2) {
  const int64_t c = shape.back();
  op_row(
      "group_norm", {real(shape, low, high), real({c}, 0.5, 2.5), real({c})},
      [=](const Tensors& in) { return group_norm(in[0], groups, in[1], in[2]); },
      [=](const Arrays& in) { return group_norm_reference(in, groups, 1e-5f); },
      norm_tolerance(numel_of(shape) / std::max<int64_t>(1, shape[0] * groups)));
}

}  // namespace

TEST_CASE("layer_norm") {
  layer_norm_row({4, 8});
  layer_norm_row({3, 5, 17});
  layer_norm_row({33});
  layer_norm_row({7, 2}, -2, 2, 0.5f);
  layer_norm_row({2, 1});
  layer_norm_row({0, 4});
  layer_norm_row({3, 0});
  layer_norm_row({300, 384});
  layer_norm_row({1100, 6});
  // A warp's rows, a block's, and rows that are read again; in packs and one by one.
  for (int64_t c : {600, 1001, 1200, 2051, 2100, 5000, 8204}) layer_norm_row({2, c});
  op_row(
      "layer_norm", {real({6, 40})},
      [](const Tensors& in) { return layer_norm(in[0], Tensor(), Tensor()); },
      [](const Arrays& in) { return layer_norm_reference(in, 1e-5f); }, norm_tolerance(40));
  op_row(
      "layer_norm", {real({6, 40}), real({40})},
      [](const Tensors& in) { return layer_norm(in[0], in[1], Tensor()); },
      [](const Arrays& in) { return layer_norm_reference(in, 1e-5f); }, norm_tolerance(40));
  layer_norm_row({20, 384}, 9998.2679, 10001.7321);
  op_error("layer_norm", "expected weight of shape [3]", [] {
    layer_norm(Tensor::zeros({2, 3}), Tensor::zeros({2}), Tensor());
  });
  op_error("layer_norm", "at least 1 dimension",
           [] { layer_norm(Tensor::scalar(1), Tensor(), Tensor()); });
}

TEST_CASE("group_norm") {
  group_norm_row({2, 3, 3, 6}, 2);
  group_norm_row({2, 5, 8}, 8);
  group_norm_row({3, 4, 8}, 1);
  group_norm_row({3, 16}, 4);
  group_norm_row({1, 9, 9, 33}, 3);
  group_norm_row({4, 14, 14, 48}, 6);
  group_norm_row({2, 40, 40, 16}, 4);
  group_norm_row({2, 100, 130}, 13);
  group_norm_row({0, 3, 4}, 2);
  group_norm_row({2, 0, 4}, 2);
  group_norm_row({2, 300, 8}, 2, 9998.2679, 10001.7321);
  op_row(
      "group_norm", {real({2, 10, 6})},
      [](const Tensors& in) { return group_norm(in[0], 3, Tensor(), Tensor()); },
      [](const Arrays& in) { return group_norm_reference(in, 3, 1e-5f); }, norm_tolerance(20));
  op_error("group_norm", "expected groups that divide the 6 channels, got 4", [] {
    group_norm(Tensor::zeros({2, 6}), 4, Tensor(), Tensor());
  });
  op_error("group_norm", "expected x of shape (n, ..., c)",
           [] { group_norm(Tensor::zeros({6}), 2, Tensor(), Tensor()); });
}

}  // namespace graft::test
