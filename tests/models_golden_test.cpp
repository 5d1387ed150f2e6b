// Every architecture against PyTorch: logits, loss, the gradient of every parameter and the running
// statistics, on hashed weights; and the published EfficientNet-Lite0 on photographs. The goldens
// are PyTorch's in double precision (tests/data/make_model_goldens.py).
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <unistd.h>

#include "engine/autograd.h"
#include "engine/data/image.h"
#include "engine/data/transform.h"
#include "engine/optim.h"
#include "kernels/device.h"
#include "layers/models/convert.h"
#include "layers/models/zoo.h"
#include "tests/support/hashed_weights.h"
#include "tests/support/test_device.h"

using namespace graft;
using Json = nlohmann::json;

namespace {

const std::filesystem::path kGoldens =
    std::filesystem::path(GRAFT_SOURCE_DIR) / "tests/data/goldens";

Json read_json(const std::filesystem::path& path) {
  std::ifstream file(path);
  REQUIRE_MESSAGE(file.is_open(), path.string());
  return Json::parse(file);
}

// The hashed input, made in PyTorch's layout (n, c, h, w).
Tensor input_of(const Json& golden) {
  const int64_t batch = golden["batch"], size = golden["size"];
  const std::string name = "input " + std::to_string(golden["seed"].get<int>());
  const std::vector<double> u = test::hashed(name, batch * 3 * size * size);
  std::vector<float> values(u.size());
  for (size_t i = 0; i < u.size(); ++i) values[i] = static_cast<float>(std::sqrt(3.0) * u[i]);
  return permute(Tensor::of(values, {batch, 3, size, size}), {0, 2, 3, 1});
}

// Largest difference over the largest golden value.
double relative_error(const std::vector<float>& got, const std::vector<double>& golden) {
  REQUIRE(got.size() == golden.size());
  double worst = 0, largest = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    worst = std::max(worst, std::isfinite(got[i]) ? std::fabs(got[i] - golden[i]) : INFINITY);
    largest = std::max(largest, std::fabs(golden[i]));
  }
  return worst / largest;
}

// The script's summary (norm, projection, four elements) of a tensor of ours: the largest
// difference over the golden norm, or over `least` where that is larger. A projection's factors are
// of order one, so that an error vector of relative size e moves it by about e.
double summary_error(const NamedTensor& entry, const Tensor& tensor, const Json& golden,
                     double least) {
  Tensor copy = tensor.detach();
  const std::vector<float> values =
      to_file_layout({entry.name, &copy, entry.layout}).to_vector<float>();
  const std::vector<double> u =
      test::hashed("projection of " + entry.name, static_cast<int64_t>(values.size()));
  double squares = 0, projection = 0;
  for (size_t i = 0; i < values.size(); ++i) {
    squares += static_cast<double>(values[i]) * values[i];
    projection += values[i] * u[i];
  }
  std::vector<double> got{std::sqrt(squares), projection};
  for (size_t k = 0; k < 4; ++k) got.push_back(values[k * (values.size() - 1) / 3]);
  double worst = 0;
  for (size_t i = 0; i < got.size(); ++i) {
    const double difference = std::fabs(got[i] - golden[i].get<double>());
    worst = std::max(worst, std::isfinite(got[i]) ? difference : INFINITY);
  }
  return worst / std::max(golden[0].get<double>(), least);
}

void check_golden(const std::string& architecture) {
  CAPTURE(architecture);
  const Json golden = read_json(kGoldens / (architecture + ".json"));
  const int64_t classes = golden["classes"], batch = golden["batch"];
  const auto model =
      make_blank_model(architecture, {.classes = classes, .dropout = 0, .drop_path = 0});
  test::fill_with_hashed_weights(*model, golden["damped"]);
  model->to(test::test_device());
  model->train(golden["train"]);
  const Tensor x = input_of(golden).to(test::test_device());

  std::vector<int64_t> target;
  for (int64_t i = 0; i < batch; ++i) target.push_back((7 * i + 3) % classes);
  const std::vector<double> wanted = golden["logits"];

  // The folded path of inference, where batch statistics do not forbid it.
  if (!golden["train"]) {
    const NoGrad guard;
    const double error = relative_error((*model)(x).to_vector<float>(), wanted);
    CHECK_MESSAGE(error < 1e-4, "folded logits ", error);
  }
  const Tensor logits = (*model)(x);
  const double logit_error = relative_error(logits.to_vector<float>(), wanted);
  CHECK_MESSAGE(logit_error < 1e-4, "logits ", logit_error);
  const Tensor loss = cross_entropy(logits, Tensor::of(target).to(x.device()));
  CHECK(loss.item() == doctest::Approx(golden["loss"].get<double>()).epsilon(1e-4));
  backward(loss);

  const Json& gradients = golden["gradients"];
  CHECK(model->named_parameters().size() == gradients.size());
  // A bias in front of a batch norm in training mode has gradient zero but for rounding: such
  // tensors are measured by the model's largest gradient.
  double largest = 0;
  for (const auto& [name, summary] : gradients.items()) {
    largest = std::max(largest, summary[0].get<double>());
  }
  double worst_gradient = 0;
  for (const NamedTensor& entry : model->named_parameters()) {
    REQUIRE_MESSAGE(gradients.contains(entry.name), entry.name);
    REQUIRE_MESSAGE(entry.tensor->grad().defined(), entry.name);
    const double error =
        summary_error(entry, entry.tensor->grad(), gradients[entry.name], 1e-3 * largest);
    worst_gradient = std::max(worst_gradient, error);
    CHECK_MESSAGE(error < 1e-4, entry.name, ": gradient differs by ", error, " of its norm");
  }
  double worst_buffer = 0;
  if (golden.contains("buffers")) {
    for (const NamedTensor& entry : model->named_buffers()) {
      if (entry.layout == FileLayout::counter) {
        CHECK(*entry.tensor->data<int64_t>() == 1);
        continue;
      }
      const double error = summary_error(entry, *entry.tensor, golden["buffers"][entry.name], 0);
      worst_buffer = std::max(worst_buffer, error);
      CHECK_MESSAGE(error < 1e-5, entry.name, ": differs by ", error, " of its norm");
    }
  }
  MESSAGE(architecture, ": logits ", logit_error, ", gradients ", worst_gradient, ", statistics ",
          worst_buffer);
}

// How far each parameter is from the golden's, over its norm; the worst one.
double parameters_error(ImageModel& model, const Json& golden) {
  CHECK(model.named_parameters().size() == golden.size());
  double worst = 0;
  for (const NamedTensor& entry : model.named_parameters()) {
    REQUIRE_MESSAGE(golden.contains(entry.name), entry.name);
    worst = std::max(worst, summary_error(entry, *entry.tensor, golden[entry.name], 0));
  }
  return worst;
}

struct TrainedModel {
  std::unique_ptr<ImageModel> model;
  std::vector<float> losses;  // before each step, and behind the last
};

TrainedModel take_steps(const Json& golden) {
  TrainedModel result;
  result.model =
      make_blank_model(golden["architecture"], {.classes = golden["classes"], .dropout = 0});
  ImageModel& model = *result.model;
  test::fill_with_hashed_weights(model, golden["damped"]);
  model.to(test::test_device());
  model.train();
  const Tensor x = input_of(golden).to(test::test_device());
  std::vector<int64_t> target;
  for (int64_t i = 0; i < x.dim(0); ++i) target.push_back((7 * i + 3) % 10);
  const Tensor labels = Tensor::of(target).to(x.device());
  ParameterGroup group{
      .name = "all", .learning_rate = golden["lr"], .weight_decay = golden["weight_decay"]};
  for (const NamedTensor& entry : model.named_parameters()) {
    group.parameters.push_back({entry.name, *entry.tensor});
  }
  const auto optimizer = make_sgd({group}, {.momentum = golden["momentum"]});
  for (size_t step = 0; step < golden["losses"].size(); ++step) {
    if (step > 0) optimizer->step();
    const Tensor loss = cross_entropy(model(x), labels);
    result.losses.push_back(loss.item());
    if (result.losses.size() == golden["losses"].size()) break;
    optimizer->zero_grad();
    backward(loss);
  }
  return result;
}

std::filesystem::path assets() {
  const char* chosen = std::getenv("GRAFT_ASSETS");
  return chosen != nullptr ? chosen : std::filesystem::path(GRAFT_BINARY_DIR) / "assets";
}

}  // namespace

TEST_CASE("ResNet-18 takes the training steps that PyTorch takes, in any order of threads") {
  const Json golden = read_json(kGoldens / "resnet18_steps.json");
  const TrainedModel first = take_steps(golden);
  const std::vector<double> wanted = golden["losses"];
  for (size_t step = 0; step < wanted.size(); ++step) {
    const double error = std::fabs(first.losses[step] / wanted[step] - 1);
    CHECK_MESSAGE(error < 1e-5, "step ", step, ": loss differs by ", error);
  }
  const double error = parameters_error(*first.model, golden["parameters"]);
  CHECK_MESSAGE(error < 1e-5, "parameters differ by ", error, " of their norms");
  if (test::test_device().is_cpu() || std::getenv("GRAFT_TEST_ONE_ORDER") != nullptr) return;
  for (const auto order : {cuda::ThreadOrder::reverse, cuda::ThreadOrder::random}) {
    cuda::set_thread_order(order, 5);
    const TrainedModel again = take_steps(golden);
    cuda::set_thread_order(cuda::ThreadOrder::forward);
    CHECK(again.losses == first.losses);
    const std::vector<NamedTensor> here = first.model->named_tensors();
    const std::vector<NamedTensor> there = again.model->named_tensors();
    for (size_t i = 0; i < here.size(); ++i) {
      const Tensor a = here[i].tensor->detach().to(kCpu), b = there[i].tensor->detach().to(kCpu);
      CHECK_MESSAGE(std::memcmp(a.raw(), b.raw(), a.bytes()) == 0, here[i].name);
    }
  }
}

TEST_CASE("goldens cover every architecture") {
  for (const std::string& architecture : architectures()) {
    CHECK_MESSAGE(std::filesystem::exists(kGoldens / (architecture + ".json")), architecture);
  }
}

TEST_CASE("small networks agree with PyTorch") {
  check_golden("small_cnn");
  check_golden("mlp");
}
TEST_CASE("ResNet-18 agrees with PyTorch in training mode") { check_golden("resnet18"); }
TEST_CASE("ResNet-34 agrees with PyTorch") { check_golden("resnet34"); }
TEST_CASE("ResNet-50 agrees with PyTorch") { check_golden("resnet50"); }
TEST_CASE("ResNet-101 agrees with PyTorch") { check_golden("resnet101"); }
TEST_CASE("ResNet-152 agrees with PyTorch") { check_golden("resnet152"); }
TEST_CASE("MobileNetV2 agrees with PyTorch") { check_golden("mobilenet_v2"); }
TEST_CASE("MobileNetV2 of half width agrees with PyTorch") { check_golden("mobilenet_v2_x0.5"); }
TEST_CASE("EfficientNet-Lite0 agrees with PyTorch") { check_golden("efficientnet_lite0"); }
TEST_CASE("EfficientNet-Lite1 agrees with PyTorch") { check_golden("efficientnet_lite1"); }
TEST_CASE("EfficientNet-Lite2 agrees with PyTorch at an odd image size") {
  check_golden("efficientnet_lite2");
}
TEST_CASE("EfficientNet-Lite3 agrees with PyTorch") { check_golden("efficientnet_lite3"); }
TEST_CASE("EfficientNet-Lite4 agrees with PyTorch") { check_golden("efficientnet_lite4"); }

TEST_CASE("published EfficientNet-Lite0 sees in photographs what PyTorch sees") {
  const std::filesystem::path weights = assets() / "efficientnet-lite0-57934424.pth";
  if (!std::filesystem::exists(weights)) {
    std::cout << "SKIPPED: " << weights.string()
              << " is not there; tools/test fetches it, or set GRAFT_ASSETS to its folder\n";
    return;
  }
  const std::filesystem::path converted =
      std::filesystem::temp_directory_path() / text("graft-lite0-", getpid(), ".safetensors");
  convert_file(weights, converted, {}, true);
  const LoadedModel loaded = load_model(converted);
  std::filesystem::remove(converted);
  CHECK(loaded.card.architecture == "efficientnet_lite0");
  CHECK(loaded.card.licence == "Apache-2.0");
  REQUIRE(loaded.card.class_names.size() == 1000);

  const auto logits_of = [&](const std::filesystem::path& photo) {
    REQUIRE_MESSAGE(std::filesystem::exists(photo), photo.string());
    const Preprocessing& preprocessing = loaded.card.preprocessing;
    const Image view = eval_view(load_image(photo, 3), preprocessing);
    Tensor x({1, preprocessing.crop, preprocessing.crop, 3});
    normalise(view, preprocessing, x.mutable_data<float>());
    return (*loaded.model)(x);
  };
  struct Expected {
    const char* top;
    double probability;
  };
  const std::map<std::string, Expected> published{{"china.jpg", {"palace", 0.380}},
                                                  {"flower.jpg", {"daisy", 0.305}}};
  const std::filesystem::path ours = std::filesystem::path(GRAFT_SOURCE_DIR) / "tests/data/photos";
  const NoGrad guard;
  const Json goldens = read_json(kGoldens / "efficientnet_lite0_photos.json");
  REQUIRE(goldens.size() == 5);
  for (const auto& [name, golden] : goldens.items()) {
    CAPTURE(name);
    const bool jpeg = published.count(name) != 0;
    const Tensor logits = logits_of((jpeg ? assets() : ours) / name);
    const double error =
        relative_error(logits.to_vector<float>(), golden.get<std::vector<double>>());
    MESSAGE(name, ": logits ", error);
    if (!jpeg) {
      CHECK(error < 1e-4);
      continue;
    }
    // stb_image and Pillow's libjpeg decode one byte of twenty of a JPEG differently, by 1 to 3,
    // which moves these logits by 3e-3. PNG photographs have the same pixels in both.
    CHECK(error < 5e-3);
    const std::vector<float> probabilities = softmax(logits).to_vector<float>();
    const auto top = static_cast<size_t>(
        std::max_element(probabilities.begin(), probabilities.end()) - probabilities.begin());
    CHECK(loaded.card.class_names[top] == published.at(name).top);
    CHECK(std::fabs(probabilities[top] - published.at(name).probability) < 0.002);
  }
}
