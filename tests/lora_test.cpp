// Low-rank adapters: what they compute and learn, where they stand, and that they merge.
#include "layers/lora.h"

#include <cmath>
#include <doctest/doctest.h>
#include <functional>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "layers/attention.h"
#include "layers/conv.h"
#include "layers/linear.h"
#include "layers/models/zoo.h"
#include "layers/norm.h"
#include "tests/support/hashed_weights.h"
#include "tests/support/test_device.h"

namespace graft {
namespace {

using Doubles = std::vector<double>;

Tensor hashed_tensor(const std::string& name, const Shape& shape) {
  const Doubles values = test::hashed(name, numel_of(shape));
  return Tensor::of(std::vector<float>(values.begin(), values.end()), shape);
}
Doubles doubles(const Tensor& tensor) {
  const std::vector<float> values = tensor.to(kCpu).to_vector<float>();
  return {values.begin(), values.end()};
}
void throws_with(const std::string& part, const std::function<void()>& call) {
  CHECK_THROWS_WITH_AS(call(), doctest::Contains(part.c_str()), Error);
}
void check_close(const Doubles& got, const Doubles& expected, double tolerance) {
  REQUIRE(got.size() == expected.size());
  double largest = 0, difference = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    largest = std::max(largest, std::abs(expected[i]));
    difference = std::max(difference, std::abs(got[i] - expected[i]));
  }
  CHECK(largest > 0);
  CHECK(difference <= tolerance * largest);
}

Tensor& parameter_of(Module& module, const std::string& name) {
  for (const NamedTensor& entry : module.named_parameters()) {
    if (entry.name == name) return *entry.tensor;
  }
  fail("no parameter ", name);
}
// As if something had been learnt.
void fill_adapters(Module& module) {
  for (const NamedTensor& entry : module.named_parameters()) {
    if (entry.role != AdapterRole::adapter) continue;
    entry.tensor->copy_from(
        hashed_tensor(entry.name, entry.tensor->shape()).to(entry.tensor->device()));
  }
}

// --- one layer, against double precision

struct Layer {
  const char* name;
  int64_t in, out, kernel, stride, groups, rank;
  int64_t before, after;  // padding
  ConvOptions options;
};
constexpr int64_t kImages = 2, kSide = 5;
constexpr double kScale = 0.75;

// A convolution with the filter w + scale b a, every filter element summed up on its own; a linear
// layer is one of images of a single pixel.
Doubles reference(const Layer& l, int64_t side, const Doubles& x, const Doubles& w,
                  const Doubles& bias, const Doubles& a, const Doubles& b) {
  const int64_t k = l.kernel, in = l.in / l.groups, out = l.out / l.groups;
  const int64_t result = (side + l.before + l.after - k) / l.stride + 1;
  Doubles y;
  for (int64_t n = 0; n < kImages; ++n) {
    for (int64_t row = 0; row < result; ++row) {
      for (int64_t column = 0; column < result; ++column) {
        for (int64_t o = 0; o < l.out; ++o) {
          const int64_t group = o / out;
          double sum = bias.empty() ? 0 : bias[static_cast<size_t>(o)];
          for (int64_t i = 0; i < k * k * in; ++i) {
            const int64_t r = row * l.stride + i / (k * in) - l.before;
            const int64_t c = column * l.stride + i / in % k - l.before;
            if (r < 0 || c < 0 || r >= side || c >= side) continue;
            double filter = w[static_cast<size_t>(o * k * k * in + i)];
            for (int64_t j = 0; j < l.rank; ++j) {
              filter += kScale * b[static_cast<size_t>(o * l.rank + j)] *
                        a[static_cast<size_t>((group * l.rank + j) * k * k * in + i)];
            }
            sum += filter *
                   x[static_cast<size_t>(((n * side + r) * side + c) * l.in + group * in + i % in)];
          }
          y.push_back(sum);
        }
      }
    }
  }
  return y;
}

const std::vector<Layer>& layers() {
  static const std::vector<Layer> all{
      {"linear", 7, 6, 1, 1, 1, 2, 0, 0, {}},
      {"1x1", 6, 8, 1, 1, 1, 3, 0, 0, {.bias = true}},
      {"3x3, stride 2, padding 1",
       4,
       6,
       3,
       2,
       1,
       3,
       1,
       1,
       {.kernel = 3, .stride = 2, .padding = 1}},
      {"3x3, stride 2, SAME", 4, 6, 3, 2, 1, 2, 1, 1, {.kernel = 3, .stride = 2, .same = true}},
      {"4x4, SAME", 3, 5, 4, 1, 1, 2, 1, 2, {.kernel = 4, .same = true}},
      {"3x3, two groups",
       6,
       8,
       3,
       1,
       2,
       2,
       1,
       1,
       {.kernel = 3, .padding = 1, .groups = 2, .bias = true}}};
  return all;
}

std::unique_ptr<AdaptedLayer> make_layer(const Layer& l) {
  std::unique_ptr<AdaptedLayer> layer;
  if (l.name == std::string("linear")) {
    layer = std::make_unique<Linear>(l.in, l.out, RngKey{5});
  } else {
    ConvOptions options = l.options;
    options.groups = l.groups;
    layer = std::make_unique<Conv2d>(l.in, l.out, options, RngKey{5});
  }
  layer->add_adapter(l.rank, static_cast<float>(kScale), 0, {6});
  fill_adapters(*layer);
  layer->weight.set_requires_grad(false);
  layer->to(test::test_device());
  return layer;
}
Tensor input_of(const Layer& l, int64_t side) {
  const Shape shape =
      l.name == std::string("linear") ? Shape{kImages, l.in} : Shape{kImages, side, side, l.in};
  return hashed_tensor("x", shape).to(test::test_device());
}

TEST_CASE(
    "an adapter computes W x + scale B A x, and its gradients are those of double precision") {
  for (const Layer& l : layers()) {
    CAPTURE(l.name);
    const int64_t side = l.name == std::string("linear") ? 1 : kSide;
    const auto layer = make_layer(l);
    Tensor x = input_of(l, side);
    x.set_requires_grad();
    const Tensor y = (*layer)(x);
    Tensor& a = parameter_of(*layer, "lora_A");
    Tensor& b = parameter_of(*layer, "lora_B");
    const Doubles bias = layer->bias.defined() ? doubles(layer->bias) : Doubles();
    // In the order of `reference`: x, weight, a, b.
    const std::vector<Doubles> start{doubles(x), doubles(layer->weight), doubles(a), doubles(b)};
    check_close(doubles(y), reference(l, side, start[0], start[1], bias, start[2], start[3]), 1e-6);

    const Tensor weights = hashed_tensor("loss", y.shape()).to(y.device());
    backward(sum(mul(y, weights)));
    const Doubles w = doubles(weights);
    const auto loss = [&](const std::vector<Doubles>& at) {
      const Doubles values = reference(l, side, at[0], at[1], bias, at[2], at[3]);
      double total = 0;
      for (size_t i = 0; i < values.size(); ++i) total += w[i] * values[i];
      return total;
    };
    const std::vector<std::pair<size_t, Tensor>> gradients{
        {0, x.grad()}, {2, a.grad()}, {3, b.grad()}};
    for (const auto& [which, gradient] : gradients) {
      CAPTURE(which);
      Doubles numeric;
      std::vector<Doubles> at = start;
      for (double& value : at[which]) {
        const double middle = value;
        value = middle + 1e-3;
        const double above = loss(at);
        value = middle - 1e-3;
        numeric.push_back((above - loss(at)) / 2e-3);
        value = middle;
      }
      check_close(doubles(gradient), numeric, 2e-6);
    }
    CHECK_FALSE(layer->weight.grad().defined());
  }
}

// Both ways in inference mode, and that the guard leaves no trace.
void check_merges(Module& model, const Tensor& x, double tolerance) {
  model.eval();
  const NoGrad guard;
  std::map<std::string, const void*> storages;
  for (const NamedTensor& entry : model.named_tensors()) {
    storages[entry.name] = entry.tensor->raw();
  }
  const StateDict before = model.state_dict();
  const Doubles unmerged = doubles(model(x));
  Doubles merged;
  {
    const LoraMerged in_force(model);
    merged = doubles(model(x));
  }
  CHECK(merged != unmerged);  // another order of sums; equal would mean that nothing was merged
  check_close(merged, unmerged, tolerance);
  CHECK(doubles(model(x)) == unmerged);
  for (const NamedTensor& entry : model.named_tensors()) {
    CHECK(entry.tensor->raw() == storages.at(entry.name));
    CHECK(doubles(cast(*entry.tensor, Dtype::f32)) ==
          doubles(cast(entry.layout == FileLayout::counter
                           ? before.at(entry.name)
                           : from_file_layout(before.at(entry.name), entry.layout),
                       Dtype::f32)));
  }
  // For good.
  const StateDict state = merged_state_dict(model);
  merge_adapters(model);
  CHECK_FALSE(has_adapters(model));
  CHECK(doubles(model(x)) == merged);
  const StateDict after = model.state_dict();
  REQUIRE(after.size() == state.size());
  for (const auto& [name, tensor] : after) {
    if (tensor.dtype() == Dtype::f32) CHECK(doubles(tensor) == doubles(state.at(name)));
  }
}

TEST_CASE("merged equals unmerged: layers, attention, whole models") {
  const Device device = test::test_device();
  for (const Layer& l : layers()) {
    CAPTURE(l.name);
    check_merges(*make_layer(l), input_of(l, kSide), 1e-6);
  }
  {
    MultiheadAttention attention(16, 2, RngKey{1});
    const AttachedAdapters attached = attach_adapters(
        attention, {.rank = 3, .alpha = 6, .layers = {"q_proj", "v_proj"}}, {}, {9});
    CHECK(attached.layers == std::vector<std::string>{"q_proj", "v_proj"});
    CHECK(attached.values == 2 * 3 * (16 + 16));
    fill_adapters(attention);
    attention.to(device);
    check_merges(attention, hashed_tensor("x", {2, 5, 16}).to(device), 1e-6);
  }
  const std::vector<std::pair<std::string, int64_t>> models{
      {"small_cnn", 16}, {"mobilenet_v2_x0.25", 32}, {"efficientnet_lite0", 32}};
  for (const auto& [architecture, side] : models) {
    if (!device.is_cpu() && architecture != "small_cnn") continue;
    CAPTURE(architecture);
    const auto model = make_model(architecture, {.classes = 3}, {1});
    test::fill_with_hashed_weights(*model, {{"_bn2.weight", 0.6}});
    const Tensor x = hashed_tensor("x", {2, side, side, 3});
    model->eval();
    const Doubles before = doubles(model->forward(x));
    attach_adapters(*model, {.rank = 2, .alpha = 0.25f}, {model->head_name()}, {9});
    fill_adapters(*model);
    CHECK(doubles(model->forward(x)) != before);
    model->to(device);
    check_merges(*model, x.to(device), 1e-5);
  }
}

TEST_CASE("a new adapter changes no bit, and everything but head and adapters is its base") {
  const auto model = make_model("efficientnet_lite0", {.classes = 3}, {1});
  model->eval();
  const Tensor x = hashed_tensor("x", {1, 32, 32, 3});
  const StateDict before = model->state_dict();
  const auto logits = [&] {
    begin_rng_step(1, 1);
    model->train();
    for (const auto& [name, module] : model->named_modules()) {
      if (auto* norm = dynamic_cast<BatchNorm2d*>(module)) norm->freeze_statistics(true);
    }
    return doubles(model->forward(x));
  };
  const Doubles untouched = logits();
  const AttachedAdapters attached = attach_adapters(*model, {.rank = 4}, {"_fc"}, {9});
  CHECK(logits() == untouched);
  // Depthwise convolutions have no rank to lower.
  CHECK(attached.layers.size() == 33);
  CHECK(attached.left_out.size() == 16);
  for (const std::string& name : attached.left_out) {
    CHECK(name.ends_with("_depthwise_conv"));
  }
  int64_t values = 0;
  for (const NamedTensor& entry : model->named_parameters()) {
    const bool adapter = entry.name.ends_with(".lora_A") || entry.name.ends_with(".lora_B");
    const bool head = entry.name.starts_with("_fc.");
    CHECK(entry.role == (adapter ? AdapterRole::adapter
                         : head  ? AdapterRole::none
                                 : AdapterRole::base));
    CHECK(entry.tensor->requires_grad() == (adapter || head));
    values += adapter ? entry.tensor->numel() : 0;
    if (entry.name.ends_with(".lora_B")) {
      for (const double value : doubles(*entry.tensor)) REQUIRE(value == 0);
    }
  }
  CHECK(values == attached.values);
  for (const auto& [name, tensor] : merged_state_dict(*model)) {
    CHECK(sha256_hex_of(tensor.raw(), tensor.bytes()) ==
          sha256_hex_of(before.at(name).raw(), before.at(name).bytes()));
  }
  // Of one seed, another for every layer and seed.
  const auto again = make_model("efficientnet_lite0", {.classes = 3}, {1});
  attach_adapters(*again, {.rank = 4}, {"_fc"}, {9});
  const auto other = make_model("efficientnet_lite0", {.classes = 3}, {1});
  attach_adapters(*other, {.rank = 4}, {"_fc"}, {10});
  const std::string a = "_blocks.5._project_conv.lora_A", b = "_blocks.6._project_conv.lora_A";
  CHECK(doubles(parameter_of(*model, a)) == doubles(parameter_of(*again, a)));
  CHECK(doubles(parameter_of(*model, a)) != doubles(parameter_of(*other, a)));
  CHECK(doubles(parameter_of(*model, a)) != doubles(parameter_of(*model, b)));
}

TEST_CASE("ranks, patterns and numbers that make no sense are refused with a remedy") {
  const auto attach = [](const LoraOptions& options) {
    const auto model = make_model("efficientnet_lite0", {.classes = 3}, {1});
    attach_adapters(*model, options, {"_fc"}, {9});
  };
  throws_with("a rank from 1, got 0", [&] { attach({.rank = 0}); });
  throws_with("a rank from 1, got -3", [&] { attach({.rank = -3}); });
  throws_with(
      "rank 300 is too large: an adapter of _conv_head is smaller than its weight up to rank "
      "255",
      [&] { attach({.rank = 300}); });
  throws_with("rank 20 is too large: an adapter of _conv_stem",
              [&] { attach({.rank = 20, .layers = {"_conv_stem"}}); });
  throws_with("depthwise", [&] { attach({.rank = 1, .layers = {"*._depthwise_conv"}}); });
  throws_with("did you mean _conv_head", [&] { attach({.rank = 1, .layers = {"_conv_haed"}}); });
  throws_with("beside the head", [&] { attach({.rank = 1, .layers = {"_fc"}}); });
  throws_with("alpha", [&] { attach({.rank = 1, .alpha = -1}); });
  throws_with("alpha", [&] { attach({.rank = 1, .alpha = std::nanf("")}); });
  throws_with("dropout", [&] { attach({.rank = 1, .dropout = 1}); });
  const auto model = make_model("small_cnn", {.classes = 3}, {1});
  attach_adapters(*model, {.rank = 1}, {"fc"}, {9});
  throws_with("adapters already", [&] { attach_adapters(*model, {.rank = 1}, {"fc"}, {9}); });
}

TEST_CASE("dropout thins what adapters see while they train, and nothing else") {
  Linear layer(64, 4, RngKey{1});
  layer.add_adapter(2, 1, 0.5f, {2});
  fill_adapters(layer);
  const Tensor x = hashed_tensor("x", {3, 64});
  begin_rng_step(1, 1);
  layer.train();
  const Doubles first = doubles(layer(x)), second = doubles(layer(x));
  CHECK(first != second);
  begin_rng_step(1, 1);
  CHECK(doubles(layer(x)) == first);
  layer.eval();
  CHECK(doubles(layer(x)) == doubles(layer(x)));
  layer.drop_adapter();
  layer.train();
  CHECK(doubles(layer(x)) == doubles(linear(x, layer.weight, layer.bias)));
}

}  // namespace
}  // namespace graft
