// Stages and taps: the chain of every architecture, the output of a layer inside a model against
// the same layers put together by hand, and that looking changes nothing.
#include "layers/tap.h"

#include <cmath>
#include <doctest/doctest.h>
#include <set>

#include "engine/autograd.h"
#include "layers/linear.h"
#include "layers/models/families.h"
#include "layers/norm.h"
#include "layers/transformer.h"
#include "tests/support/hashed_weights.h"
#include "tests/support/test_device.h"

using namespace graft;
using test::test_device;

namespace {

Tensor images(int64_t batch, int64_t size, const std::string& name = "image") {
  const std::vector<double> u = test::hashed(name, batch * size * size * 3);
  return Tensor::of(std::vector<float>(u.begin(), u.end()), {batch, size, size, 3})
      .to(test_device());
}

std::unique_ptr<ImageModel> hashed_model(const std::string& architecture) {
  auto model = make_blank_model(architecture, {.classes = 4});
  test::fill_with_hashed_weights(*model, {{".weight", 0.5}});
  model->to(test_device());
  model->eval();
  return model;
}

template <class M>
M& module_of(ImageModel& model, const std::string& name) {
  for (const auto& [full_name, module] : model.named_modules()) {
    if (full_name == name) return dynamic_cast<M&>(*module);
  }
  fail("no module ", name);
}

bool same_bits(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.to_vector<float>() == b.to_vector<float>();
}

// Largest difference over the largest value.
double difference(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
  double worst = 0, largest = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    const double d = std::fabs(double{x[i]} - y[i]);
    worst = std::max(worst, std::isfinite(d) ? d : INFINITY);
    largest = std::max(largest, std::fabs(double{y[i]}));
  }
  return worst / largest;
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

}  // namespace

TEST_CASE("stages use every module but the head's once, and their names are its modules' names") {
  for (const std::string& architecture : architectures()) {
    CAPTURE(architecture);
    const auto model = make_blank_model(architecture, {.classes = 4});
    std::set<std::string> names;
    std::multiset<const Tensor*> used;
    for (const Stage& stage : model->stages()) {
      CHECK_MESSAGE(names.insert(stage.name()).second, stage.name());
      for (Module* module : stage.modules()) {
        for (const NamedTensor& entry : module->named_tensors()) used.insert(entry.tensor);
      }
      for (const auto& [name, module] : model->named_modules()) {
        if (name != stage.name()) continue;
        CHECK_MESSAGE(stage.modules() == std::vector<Module*>{module}, name);
      }
    }
    size_t features = 0;
    for (const NamedTensor& entry : model->named_tensors()) {
      const bool head = entry.name.starts_with(model->head_name() + ".");
      features += !head;
      CHECK_MESSAGE(used.count(entry.tensor) == (head ? 0 : 1), entry.name);
    }
    CHECK(used.size() == features);
  }
}

TEST_CASE("stages run one by one are the model") {
  for (const char* architecture : {"small_cnn", "mlp", "mobilenet_v2_x0.5"}) {
    CAPTURE(architecture);
    const auto model = hashed_model(architecture);
    const NoGrad guard;
    const Tensor x = images(2, 28), logits = model->forward(x);
    const size_t count = model->stages().size();
    Tensor y = x;
    for (size_t i = 0; i < count; ++i) {
      CHECK(same_bits(model->forward_after(i, y), logits));
      y = model->run_stages(y, i, i + 1);
    }
    CHECK(y.shape() == Shape{2, model->feature_width()});
    CHECK(same_bits(model->features(x), y));
    CHECK(same_bits(model->forward_after(count, y), logits));
    CHECK_THROWS_AS(model->run_stages(x, 1, count + 1), Error);
  }
}

TEST_CASE("the first layers of ResNet-18 give what their formulas give") {
  const auto model = hashed_model("resnet18");
  auto& conv = module_of<Conv2d>(*model, "conv1");
  auto& bn = module_of<BatchNorm2d>(*model, "bn1");
  const Tensor x = images(2, 32);
  Tap conv_tap(*model, "conv1"), bn_tap(*model, "bn1"), relu_tap(*model, "relu");
  Tap pool_tap(*model, "maxpool");
  CHECK(message_of([&] { conv_tap.output(); }) == "tap: conv1 has not run; run the model first");
  const NoGrad guard;
  model->forward(x);
  const Tensor filtered = conv2d(x, conv.weight, Tensor(), conv.options_for(x));
  CHECK(difference(conv_tap.output(), filtered) == 0);
  const Tensor scale = div(bn.weight, sqrt(add(bn.running_var, bn.epsilon())));
  const Tensor normalised = add(mul(sub(filtered, bn.running_mean), scale), bn.bias);
  CHECK(difference(bn_tap.output(), normalised) < 1e-5);
  CHECK(difference(relu_tap.output(), relu(normalised)) < 1e-5);
  CHECK(difference(pool_tap.output(),
                   max_pool2d(relu(normalised), {.kernel_height = 3,
                                                 .kernel_width = 3,
                                                 .padding = Padding::symmetric(1, 1)})) < 1e-5);
}

TEST_CASE("inside a residual block: before the sum, the shortcut, and after") {
  const auto model = hashed_model("resnet18");
  Tap before(*model, "layer2.0.bn2"), shortcut(*model, "layer2.0.downsample");
  Tap shortcut_bn(*model, "layer2.0.downsample.1"), block(*model, "layer2.0");
  Tap group(*model, "layer2"), last(*model, "layer2.1"), pooled(*model, "avgpool");
  Tap head(*model, "fc");
  const NoGrad guard;
  const Tensor logits = model->forward(images(2, 32));
  CHECK(difference(block.output(), relu(add(before.output(), shortcut.output()))) < 1e-6);
  CHECK(same_bits(shortcut.output(), shortcut_bn.output()));
  CHECK(same_bits(group.output(), last.output()));
  CHECK(same_bits(head.output(), logits));
  CHECK(pooled.output().shape() == Shape{2, 512});
}

TEST_CASE("a Sequential within a block ends before the sum") {
  const auto model = hashed_model("mobilenet_v2_x0.5");
  // features.3 has a shortcut: its output is conv's plus its input.
  Tap in(*model, "features.2"), inner(*model, "features.3.conv"), out(*model, "features.3");
  Tap expanded(*model, "features.3.conv.0"), expanded_bn(*model, "features.3.conv.0.1");
  Tap all(*model, "features"), last(*model, "features.18");
  const NoGrad guard;
  model->forward(images(2, 32));
  CHECK(difference(out.output(), add(inner.output(), in.output())) < 1e-6);
  CHECK(difference(expanded.output(), relu6(expanded_bn.output())) == 0);
  CHECK(same_bits(all.output(), last.output()));
}

namespace {

// A small ViT: patches of 4 x 4 pixels, one block with its norms last, the mean of the tokens.
class Patches : public HeadedModel {
 public:
  Patches() : HeadedModel({.classes = 4}, 8, 0.0f, "fc", "conv") {
    child("conv", conv_);
    child("block", block_);
    child("fc", head_);
    add_stage("patches", {&conv_}, [this](const Tensor& x) {
      return reshape(conv_(x), {x.dim(0), x.dim(1) * x.dim(2) / 16, 8});
    });
    add_stage("block", block_);
    add_stage("mean", {}, [](const Tensor& x) { return mean(x, {1}); });
  }
  void initialise(RngKey) override {}

 private:
  Conv2d conv_{3, 8, {.kernel = 4, .stride = 4}};
  TransformerBlock block_{{.width = 8, .heads = 2, .hidden = 16, .norm_first = false}};
};

}  // namespace

TEST_CASE("inside a transformer's block, whose norms are fused with the sums before them") {
  Patches model;
  test::fill_with_hashed_weights(model, {});
  model.to(test_device());
  Tap in(model, "conv"), attention(model, "block.self_attn"), norm1(model, "block.norm1");
  Tap value(model, "block.self_attn.v_proj"), wide(model, "block.linear1");
  Tap narrow(model, "block.linear2"), norm2(model, "block.norm2"), block(model, "block");
  const NoGrad guard;
  model.forward(images(2, 16));
  CHECK(value.output().shape() == Shape{2, 16, 8});
  auto& first = module_of<LayerNorm>(model, "block.norm1");
  auto& second = module_of<LayerNorm>(model, "block.norm2");
  const Tensor tokens = reshape(in.output(), {2, 16, 8});
  CHECK(difference(norm1.output(), first.forward(add(tokens, attention.output()))) < 1e-5);
  CHECK(difference(norm2.output(), second.forward(add(norm1.output(), narrow.output()))) < 1e-5);
  CHECK(difference(narrow.output(),
                   module_of<Linear>(model, "block.linear2").forward(gelu(wide.output()))) < 1e-5);
  CHECK(same_bits(block.output(), norm2.output()));
}

TEST_CASE("taps agree in inference and training, and a step with them is the same step") {
  for (const bool training : {false, true}) {
    CAPTURE(training);
    const auto tapped = hashed_model("small_cnn"), plain = hashed_model("small_cnn");
    const Tensor x = images(4, 16), target = Tensor::of<int64_t>({0, 1, 2, 3}).to(test_device());
    const auto step = [&](ImageModel& model) {
      model.train(training);
      const Tensor logits = model.forward(x);
      backward(cross_entropy(logits, target));
      return logits;
    };
    Tap conv(*tapped, "conv2"), block(*tapped, "block3"), bn(*tapped, "bn3");
    const Tensor ours = step(*tapped), theirs = step(*plain);
    CHECK(conv.output().requires_grad());
    CHECK(difference(ours, theirs) < 1e-6);
    const auto a = tapped->named_parameters(), b = plain->named_parameters();
    for (size_t i = 0; i < a.size(); ++i) {
      CHECK_MESSAGE(difference(a[i].tensor->grad(), b[i].tensor->grad()) < 1e-5, a[i].name);
    }
    for (const char* name : {"bn3.running_mean", "bn3.running_var"}) {
      CHECK(difference(tapped->state_dict().at(name), plain->state_dict().at(name)) < 1e-6);
    }
    CHECK(tapped->state_dict().at("bn3.num_batches_tracked").to_vector<int64_t>()[0] ==
          plain->state_dict().at("bn3.num_batches_tracked").to_vector<int64_t>()[0]);
  }
}

// d/dw of sum(conv(x; w)^2) / 2 by the tap, and by the layer alone.
TEST_CASE("a loss on a tapped layer has the gradient of the layers before it") {
  const auto model = hashed_model("small_cnn");
  const Tensor x = images(2, 16);
  auto& conv = module_of<Conv2d>(*model, "conv1");
  Tap tap(*model, "conv1");
  model->forward(x);
  backward(mul(sum(mul(tap.output(), tap.output())), 0.5f));
  const Tensor through_tap = conv.weight.grad();
  model->zero_grad();
  const Tensor alone = conv(x);
  backward(mul(sum(mul(alone, alone)), 0.5f));
  CHECK(same_bits(through_tap, conv.weight.grad()));
  CHECK_FALSE(module_of<Conv2d>(*model, "conv2").weight.grad().defined());
}

TEST_CASE("without taps nothing is different, and a tap that is gone leaves nothing") {
  const auto model = hashed_model("resnet18");
  const NoGrad guard;
  const Tensor x = images(2, 32), before = model->forward(x);
  {
    Tap first(*model, "bn1"), second(*model, "bn1");
    model->forward(x);
    CHECK(same_bits(first.output(), second.output()));
    first.clear();
    CHECK_FALSE(first.has_output());
  }
  CHECK_FALSE(module_of<BatchNorm2d>(*model, "bn1").tapped());
  CHECK(same_bits(model->forward(x), before));
}

TEST_CASE("every listed layer can be tapped and runs") {
  for (const char* architecture : {"small_cnn", "mlp", "mobilenet_v2_x0.5", "resnet18"}) {
    CAPTURE(architecture);
    const auto model = hashed_model(architecture);
    const NoGrad guard;
    for (const std::string& name : layer_names(*model)) {
      Tap tap(*model, name);
      model->forward(images(1, 32));
      CHECK_MESSAGE(tap.has_output(), name);
    }
  }
}

TEST_CASE("an unknown layer is answered with names") {
  const auto model = make_blank_model("resnet18", {.classes = 4});
  const std::string near = message_of([&] { Tap(*model, "layer1.2"); });
  CHECK(near.starts_with("tap: there is no layer \"layer1.2\"; did you mean layer1"));
  CHECK(near.find("layer1.1") != std::string::npos);
  const std::string far = message_of([&] { Tap(*model, "something else"); });
  CHECK(far.find("there are") != std::string::npos);
  CHECK(far.find("layer4.1") != std::string::npos);
  CHECK(far.find("avgpool") != std::string::npos);
  CHECK_THROWS_AS(Tap(*model, ""), Error);
}
