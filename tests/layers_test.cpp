// Modules, batch-norm policies and folding, initial weights, cards, and adapting a model to a new
// task.
#include <cmath>
#include <doctest/doctest.h>
#include <filesystem>
#include <unistd.h>

#include "engine/autograd.h"
#include "layers/models/zoo.h"
#include "layers/norm.h"
#include "tests/support/hashed_weights.h"
#include "tests/support/test_device.h"

using namespace graft;
using test::test_device;

namespace {

Tensor image(int64_t batch, int64_t size, int64_t channels) {
  const std::vector<double> u = test::hashed("image", batch * size * size * channels);
  return Tensor::of(std::vector<float>(u.begin(), u.end()), {batch, size, size, channels})
      .to(test_device());
}

std::shared_ptr<ImageModel> model_here(const std::string& architecture, RngKey key) {
  std::shared_ptr<ImageModel> model = make_model(architecture, {.classes = 4}, key);
  model->to(test_device());
  return model;
}

double largest_difference(const Tensor& a, const Tensor& b) {
  REQUIRE(a.shape() == b.shape());
  const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
  double worst = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    worst = std::max(worst, std::isnan(x[i]) ? INFINITY : std::fabs(double{x[i]} - y[i]));
  }
  return worst;
}

// A file that deletes itself.
struct TemporaryFile {
  std::filesystem::path path;
  explicit TemporaryFile(const std::string& name)
      : path(std::filesystem::temp_directory_path() / text("graft-", getpid(), "-", name)) {}
  ~TemporaryFile() { std::filesystem::remove(path); }
};

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

void write_model(ImageModel& model, const std::string& architecture,
                 const std::filesystem::path& path, std::vector<std::string> names = {}) {
  const ModelCard card{.architecture = architecture,
                       .classes = model.classes(),
                       .class_names = std::move(names),
                       .preprocessing = preprocessing_of(architecture)};
  write_safetensors(path, model.state_dict(), to_metadata(card));
}

}  // namespace

TEST_CASE("state_dict has PyTorch's names, order and layout") {
  const auto model = make_blank_model("resnet18", {.classes = 7});
  const std::vector<NamedTensor> tensors = model->named_tensors();
  CHECK(tensors.size() == 122);
  CHECK(tensors[0].name == "conv1.weight");
  CHECK(tensors[5].name == "bn1.num_batches_tracked");
  CHECK(tensors.back().name == "fc.bias");
  test::fill_with_hashed_weights(*model, {});
  const StateDict state = model->state_dict();
  CHECK(state.at("conv1.weight").shape() == Shape{64, 3, 7, 7});
  CHECK(state.at("layer2.0.downsample.0.weight").shape() == Shape{128, 64, 1, 1});
  CHECK(state.at("bn1.num_batches_tracked").dtype() == Dtype::i64);
  CHECK(state.at("bn1.num_batches_tracked").rank() == 0);
  // Element (o, i, h, w) of the file is element (o, h, w, i) in memory.
  const Tensor& memory = *tensors[0].tensor;
  CHECK(state.at("conv1.weight").to_vector<float>()[(5 * 3 + 2) * 49 + 3 * 7 + 4] ==
        memory.to_vector<float>()[((5 * 7 + 3) * 7 + 4) * 3 + 2]);

  const auto copy = make_blank_model("resnet18", {.classes = 7});
  copy->load_strict(state, "test");
  for (const auto& [name, tensor] : copy->state_dict()) {
    if (tensor.dtype() != Dtype::f32) continue;
    CHECK_MESSAGE(largest_difference(tensor, state.at(name)) == 0, name);
  }
}

TEST_CASE("loading reports every difference and changes nothing that does not fit") {
  const auto model = make_model("small_cnn", {.classes = 4}, {1});
  StateDict state = model->state_dict();
  state["fc.weight"] = Tensor::zeros({5, 128});
  state["extra"] = Tensor::zeros({1});
  state.erase("conv2.weight");
  state.erase("bn1.num_batches_tracked");
  const Tensor head = model->state_dict().at("fc.weight");
  const LoadReport report = model->load_state_dict(state);
  CHECK(report.missing == std::vector<std::string>{"conv2.weight"});
  CHECK(report.unexpected == std::vector<std::string>{"extra"});
  REQUIRE(report.mismatched.size() == 1);
  CHECK(report.mismatched[0] == "fc.weight: the model wants [4, 128], the file has [5, 128]");
  CHECK(largest_difference(head, model->state_dict().at("fc.weight")) == 0);
  const std::string message = message_of([&] { model->load_strict(state, "some.pt"); });
  for (const char* part : {"some.pt", "conv2.weight", "extra", "fc.weight", "graft convert"}) {
    CHECK_MESSAGE(contains(message, part), part);
  }
}

TEST_CASE("half and double precision are cast on loading") {
  const auto model = make_model("small_cnn", {.classes = 4}, {1});
  StateDict state = model->state_dict();
  for (const Dtype dtype : {Dtype::f16, Dtype::bf16, Dtype::f64}) {
    state["fc.bias"] = cast(Tensor::of<float>({0.5f, -2, 3, 0.125f}), dtype);
    model->load_strict(state, "test");
    CHECK(model->state_dict().at("fc.bias").to_vector<float>() ==
          std::vector<float>{0.5f, -2, 3, 0.125f});
  }
}

TEST_CASE("folded inference equals convolution and batch norm, and follows every change") {
  Conv2d conv(3, 8, {.kernel = 3, .padding = 1, .bias = true}, RngKey{3});
  BatchNorm2d bn(8, 1e-3f);
  test::fill_with_hashed_weights(bn, {});
  conv.to(test_device());
  bn.to(test_device());
  conv.eval();
  bn.eval();
  const Tensor x = image(2, 9, 3), residual = image(2, 9, 8);
  const auto compare = [&] {
    const Tensor plain = relu6(add(bn.forward(conv(x)), residual)).detach();
    const NoGrad guard;
    CHECK(largest_difference(conv_bn_act(conv, bn, x, Activation::relu6, residual), plain) < 2e-6);
  };
  compare();
  bn.running_mean.fill(0.7f);
  compare();
  conv.weight.copy_from(mul(conv.weight, 0.5f).detach());
  compare();
  bn.weight = Tensor::full({8}, 2.0f, test_device()).set_requires_grad();
  compare();
  conv.bias.fill(-0.25f);
  compare();
}

TEST_CASE("a frozen prefix records nothing, also while gradients are on") {
  const auto model = model_here("small_cnn", {1});
  for (const NamedTensor& entry : model->named_parameters()) {
    entry.tensor->set_requires_grad(entry.name.rfind("fc.", 0) == 0);
  }
  model->train();
  freeze_batch_norm(*model, true);
  const int64_t before = recorded_nodes();
  const Tensor features = model->features(image(2, 16, 3));
  CHECK(recorded_nodes() == before);
  CHECK(!features.requires_grad());
  backward(sum(model->head(features)));
  for (const NamedTensor& entry : model->named_parameters()) {
    CHECK(entry.tensor->grad().defined() == (entry.name.rfind("fc.", 0) == 0));
  }
}

TEST_CASE("frozen statistics stay put in training mode, live ones move") {
  const auto model = model_here("small_cnn", {1});
  const StateDict before = model->state_dict();
  model->train();
  freeze_batch_norm(*model, true);
  (*model)(image(4, 16, 3));
  StateDict after = model->state_dict();
  CHECK(largest_difference(after["bn2.running_mean"], before.at("bn2.running_mean")) == 0);
  CHECK(*after["bn2.num_batches_tracked"].data<int64_t>() == 0);
  freeze_batch_norm(*model, false);
  (*model)(image(4, 16, 3));
  after = model->state_dict();
  CHECK(largest_difference(after["bn2.running_mean"], before.at("bn2.running_mean")) > 0);
  CHECK(*after["bn2.num_batches_tracked"].data<int64_t>() == 1);
  // With momentum 1 one batch replaces the statistics: the same images again change nothing.
  set_batch_norm_momentum(*model, 1.0f);
  (*model)(image(4, 16, 3));
  const StateDict replaced = model->state_dict();
  CHECK(largest_difference(replaced.at("bn1.running_mean"), after["bn1.running_mean"]) > 0);
  (*model)(image(4, 16, 3));
  CHECK(largest_difference(model->state_dict()["bn1.running_mean"],
                           replaced.at("bn1.running_mean")) == 0);
  model->eval();
  (*model)(image(4, 16, 3));
  CHECK(*model->state_dict()["bn2.num_batches_tracked"].data<int64_t>() == 3);
}

TEST_CASE("initial weights follow PyTorch's distributions and the key") {
  const auto a = make_model("mobilenet_v2_x0.5", {.classes = 10}, {5});
  const auto b = make_model("mobilenet_v2_x0.5", {.classes = 10}, {5});
  const auto c = make_model("mobilenet_v2_x0.5", {.classes = 10}, {6});
  StateDict first = a->state_dict(), second = b->state_dict(), third = c->state_dict();
  const std::string name = "features.15.conv.0.0.weight";
  CHECK(largest_difference(first[name], second[name]) == 0);
  CHECK(largest_difference(first[name], third[name]) > 0.01);
  CHECK(largest_difference(first[name], first["features.16.conv.0.0.weight"]) > 0.01);
  const auto deviation = [](const Tensor& x) {
    double squares = 0;
    for (const float value : x.to_vector<float>()) squares += double{value} * value;
    return std::sqrt(squares / static_cast<double>(x.numel()));
  };
  // kaiming_normal, fan_out: sqrt(2 / out)
  const double out = static_cast<double>(first[name].dim(0));
  CHECK(deviation(first[name]) == doctest::Approx(std::sqrt(2 / out)).epsilon(0.03));
  CHECK(deviation(first["classifier.1.weight"]) == doctest::Approx(0.01).epsilon(0.03));
  CHECK(deviation(first["classifier.1.bias"]) == 0);
  // nn.Conv2d's own: uniform +-1 / sqrt(fan_in), of deviation 1 / sqrt(3 fan_in)
  const auto lite = make_model("efficientnet_lite0", {.classes = 10}, {5});
  CHECK(deviation(lite->state_dict()["_conv_head.weight"]) ==
        doctest::Approx(1 / std::sqrt(3.0 * 320)).epsilon(0.02));
}

TEST_CASE("EfficientNet-Lite's dropped paths depend on the step alone") {
  const auto model = model_here("efficientnet_lite0", {1});
  freeze_batch_norm(*model, true);
  const NoGrad guard;
  const Tensor x = image(4, 32, 3);
  const auto run = [&](uint64_t step) {
    begin_rng_step(9, step);
    return (*model)(x);
  };
  const Tensor first = run(1);
  CHECK(largest_difference(first, run(1)) == 0);
  CHECK(largest_difference(first, run(2)) > 0);
}

TEST_CASE("unknown architectures name the known ones") {
  const std::string message = message_of([] { make_model("resnet19", {}, {}); });
  CHECK(contains(message, "resnet19"));
  CHECK(contains(message, "resnet18"));
  CHECK(contains(message, "efficientnet_lite4"));
  for (const char* name : {"", "mobilenet_v2_x", "mobilenet_v2_x0.5a", "mobilenet_v2_xnan",
                           "efficientnet_lite5", "efficientnet_lite00"}) {
    CHECK_MESSAGE(!message_of([&] { make_blank_model(name, {}); }).empty(), name);
  }
  CHECK(
      contains(message_of([] { make_blank_model("mlp", {.classes = 0}); }), "at least one class"));
}

TEST_CASE("the card survives the trip through metadata") {
  ModelCard card{.architecture = "efficientnet_lite2",
                 .classes = 3,
                 .in_channels = 1,
                 .class_names = {"a \"b\"", "ü", "c,d"},
                 .preprocessing = preprocessing_of("efficientnet_lite2"),
                 .licence = "Apache-2.0",
                 .source = "x.pth",
                 .source_sha256 = "00ff"};
  WeightFile file;
  file.metadata = to_metadata(card);
  const ModelCard back = card_of(file);
  CHECK(back.architecture == card.architecture);
  CHECK(back.classes == 3);
  CHECK(back.in_channels == 1);
  CHECK(back.class_names == card.class_names);
  CHECK(back.preprocessing == card.preprocessing);
  CHECK(back.preprocessing.crop == 260);
  CHECK(back.licence == card.licence);
  CHECK(back.source == card.source);
  CHECK(back.source_sha256 == card.source_sha256);

  for (const auto& [key, value] : Metadata{{"graft.classes", "many"},
                                           {"graft.classes", "-1"},
                                           {"graft.class_names", "[\"one\"]"},
                                           {"graft.preprocessing", "{}"},
                                           {"graft.preprocessing", "[[[["}}) {
    file.metadata = to_metadata(card);
    file.metadata[key] = value;
    CHECK_MESSAGE(contains(message_of([&] { card_of(file); }), key), key, " ", value);
  }
}

TEST_CASE("a model for a new task: new head, and a stem that sees grey as it saw colour") {
  for (const std::string architecture : {"small_cnn", "mlp", "efficientnet_lite0"}) {
    CAPTURE(architecture);
    const TemporaryFile file(architecture + ".safetensors");
    const auto model = make_model(architecture, {.classes = 5}, {1});
    write_model(*model, architecture, file.path, {"a", "b", "c", "d", "e"});
    AdaptedModel adapted = load_for_task(file.path, 2, 1, 0.0f, {2});
    CHECK(adapted.changes.size() == 2);
    CHECK(adapted.card.classes == 2);
    CHECK(adapted.card.in_channels == 1);
    CHECK(adapted.card.class_names.empty());
    CHECK(adapted.card.preprocessing.mean[0] == adapted.card.preprocessing.mean[2]);
    CHECK(adapted.model->classes() == 2);
    model->eval();
    model->to(test_device());
    adapted.model->eval();
    adapted.model->to(test_device());
    const NoGrad guard;
    const Tensor grey = image(2, 28, 1);
    const Tensor colour = concat({grey, grey, grey}, 3);
    CHECK(largest_difference(adapted.model->features(grey), model->features(colour)) < 1e-5);
    CHECK((*adapted.model)(grey).shape() == Shape{2, 2});

    const AdaptedModel same = load_for_task(file.path, 5, 3, -1.0f, {2});
    CHECK(same.changes.empty());
    CHECK(same.card.class_names.size() == 5);
    same.model->eval();
    same.model->to(test_device());
    CHECK(largest_difference((*same.model)(colour), (*model)(colour)) == 0);
    const LoadedModel loaded = load_model(file.path);
    loaded.model->to(test_device());
    CHECK(largest_difference((*loaded.model)(colour), (*model)(colour)) == 0);
  }
}

TEST_CASE("a file that is no model says what to do") {
  const TemporaryFile file("plain.safetensors");
  write_safetensors(file.path, {{"x", Tensor::zeros({2})}});
  CHECK(contains(message_of([&] { load_model(file.path); }), "graft convert"));
  const auto model = make_model("small_cnn", {.classes = 5}, {1});
  StateDict state = model->state_dict();
  state.erase("bn3.weight");
  state["left"] = Tensor::zeros({1});
  write_safetensors(file.path, state, to_metadata({.architecture = "small_cnn", .classes = 5}));
  for (const int64_t classes : {5, 2}) {
    const std::string message = message_of([&] { load_for_task(file.path, classes, 3, 0, {}); });
    CHECK(contains(message, "bn3.weight"));
    CHECK(contains(message, "left"));
  }
  CHECK(contains(message_of([&] { load_for_task(file.path, 5, 4, 0, {}); }), "3 channels"));
}
