#include "layers/models/zoo.h"

#include <cstdlib>

#include "layers/models/families.h"

namespace graft {
namespace {

constexpr const char* kResNet = "resnet";
constexpr const char* kMobileNet = "mobilenet_v2";
constexpr const char* kLite = "efficientnet_lite";

// What follows the prefix, or nullptr.
const char* after(const std::string& name, const std::string& prefix) {
  return name.rfind(prefix, 0) == 0 ? name.c_str() + prefix.size() : nullptr;
}

[[noreturn]] void unknown(const std::string& name) {
  std::string list;
  for (const std::string& known : architectures()) list += (list.empty() ? "" : ", ") + known;
  fail("model: there is no architecture \"", name, "\"; choose one of ", list,
       " (mobilenet_v2_x0.5 and other widths too)");
}

// 0..4, or -1 when this is no EfficientNet-Lite.
int lite_variant(const std::string& name) {
  const char* rest = after(name, kLite);
  return rest != nullptr && rest[0] >= '0' && rest[0] <= '4' && rest[1] == 0 ? rest[0] - '0' : -1;
}

}  // namespace

std::vector<std::string> architectures() {
  return {"resnet18",
          "resnet34",
          "resnet50",
          "resnet101",
          "resnet152",
          "mobilenet_v2",
          "efficientnet_lite0",
          "efficientnet_lite1",
          "efficientnet_lite2",
          "efficientnet_lite3",
          "efficientnet_lite4",
          "small_cnn",
          "mlp"};
}

std::unique_ptr<ImageModel> make_blank_model(const std::string& name, const ModelOptions& options) {
  GRAFT_CHECK(options.classes > 0 && options.in_channels > 0, "model: expected at least one class ",
              "and one channel, got ", options.classes, " and ", options.in_channels);
  if (const char* depth = after(name, kResNet)) {
    for (const int known : {18, 34, 50, 101, 152}) {
      if (depth == std::to_string(known)) return build_resnet(known, options);
    }
  }
  if (const char* rest = after(name, kMobileNet)) {
    if (rest[0] == 0) return build_mobilenet_v2(1.0, options);
    char* end = nullptr;
    const double width = rest[0] == '_' && rest[1] == 'x' ? std::strtod(rest + 2, &end) : 0;
    if (end != nullptr && end != rest + 2 && *end == 0) return build_mobilenet_v2(width, options);
  }
  if (const int variant = lite_variant(name); variant >= 0) {
    return build_efficientnet_lite(variant, options);
  }
  if (name == "small_cnn") return build_small_cnn(options);
  if (name == "mlp") return build_mlp(options);
  unknown(name);
}

std::unique_ptr<ImageModel> make_model(const std::string& architecture, const ModelOptions& options,
                                       RngKey key) {
  std::unique_ptr<ImageModel> model = make_blank_model(architecture, options);
  model->initialise(key);
  return model;
}

void ImageModel::set_precision(Dtype precision) {
  GRAFT_CHECK(is_real(precision), "model: expected a precision of f32 or bf16, got ", precision);
  precision_ = precision;
}

Tensor ImageModel::run_stages(const Tensor& x, size_t first, size_t last) const {
  GRAFT_CHECK(first <= last && last <= stages_.size(), "model: expected stages within 0..",
              stages_.size(), ", got ", first, " to ", last);
  Tensor y = cast(x, precision_);
  for (size_t i = first; i < last; ++i) y = stages_[i](y);
  return y;
}

void ImageModel::add_stage(std::string name, std::vector<Module*> modules, Stage::Run run) {
  stages_.emplace_back(std::move(name), std::move(modules), std::move(run));
}

void ImageModel::add_stage(std::string name, Module& module) {
  add_stage(std::move(name), {&module}, [&module](const Tensor& x) { return module(x); });
}

Preprocessing preprocessing_of(const std::string& architecture) {
  Preprocessing result;  // torchvision's ImageNet presets
  if (const int variant = lite_variant(architecture); variant >= 0) {
    result.crop = efficientnet_lite_resolution(variant);
    result.resize = result.crop + 32;
    result.interpolation = Interpolation::bicubic;
    // The crop that the published probabilities of these weights were computed with.
    result.crop_offset = CropOffset::floor;
    // Pixels (x - 127) / 128.
    result.mean = {127.0f / 255, 127.0f / 255, 127.0f / 255};
    result.stddev = {128.0f / 255, 128.0f / 255, 128.0f / 255};
  } else if (architecture == "small_cnn") {
    result.crop = 64;
    result.resize = 72;
  } else if (architecture == "mlp") {
    result.crop = 28;
    result.resize = 0;
  }
  return result;
}

}  // namespace graft
