// EfficientNet-Lite0..4 (Liu 2020: EfficientNet without squeeze-and-excitation, with ReLU6 and a
// stem and head of fixed width), names as the efficientnet_lite_pytorch package's.
//
// Padding is TensorFlow's "SAME" for the image at hand. The package computes it once for its
// nominal image size; at that size both agree.
#include <cmath>
#include <optional>
#include <vector>

#include "layers/init.h"
#include "layers/models/families.h"
#include "layers/norm.h"
#include "layers/sequential.h"

namespace graft {
namespace {

constexpr float kEpsilon = 1e-3f, kMomentum = 0.01f;
constexpr float kDropPath = 0.2f;

struct Variant {
  double width, depth;
  int64_t resolution;
  float dropout;
};
constexpr Variant kVariants[] = {{1.0, 1.0, 224, 0.2f},
                                 {1.0, 1.1, 240, 0.2f},
                                 {1.1, 1.2, 260, 0.3f},
                                 {1.2, 1.4, 280, 0.3f},
                                 {1.4, 1.8, 300, 0.3f}};

const Variant& variant_of(int variant) {
  GRAFT_CHECK(variant >= 0 && variant <= 4, "efficientnet_lite: expected a variant 0 to 4, got ",
              variant);
  return kVariants[variant];
}

// The nearest multiple of 8, never more than 10% below.
int64_t round_channels(int64_t channels, double width) {
  const double scaled = static_cast<double>(channels) * width;
  const int64_t rounded = std::max<int64_t>(8, static_cast<int64_t>(scaled + 4) / 8 * 8);
  return static_cast<double>(rounded) < 0.9 * scaled ? rounded + 8 : rounded;
}

struct BlockShape {
  int64_t in, out, kernel, stride, expand;
};

// Expand 1x1, depthwise, project 1x1 (linear), plus the input where shapes agree.
class Block : public Module, public DropsOut {
 public:
  Block(const BlockShape& shape, float drop_path_rate)
      : shortcut_(shape.stride == 1 && shape.in == shape.out),
        drop_path_(drop_path_rate),
        depthwise_(hidden(shape), hidden(shape),
                   {.kernel = shape.kernel,
                    .stride = shape.stride,
                    .same = true,
                    .groups = hidden(shape)}),
        bn1_(hidden(shape), kEpsilon, kMomentum),
        project_(hidden(shape), shape.out, {}),
        bn2_(shape.out, kEpsilon, kMomentum) {
    if (shape.expand != 1) {
      expand_.emplace(shape.in, hidden(shape), ConvOptions{});
      bn0_.emplace(hidden(shape), kEpsilon, kMomentum);
      child("_expand_conv", *expand_);
      child("_bn0", *bn0_);
    }
    child("_depthwise_conv", depthwise_);
    child("_bn1", bn1_);
    child("_project_conv", project_);
    child("_bn2", bn2_);
  }

  Tensor forward(const Tensor& x) override {
    Tensor y = expand_ ? conv_bn_act(*expand_, *bn0_, x, Activation::relu6) : x;
    y = conv_bn_act(depthwise_, bn1_, y, Activation::relu6);
    if (!shortcut_) return conv_bn_act(project_, bn2_, y, Activation::none);
    if (!training() || drop_path_ == 0) {
      return conv_bn_act(project_, bn2_, y, Activation::none, x);
    }
    y = conv_bn_act(project_, bn2_, y, Activation::none);
    return add(drop_path(y, drop_path_, true, next_key()), x);
  }

  float dropout_probability() const override { return drop_path_; }
  void set_dropout(float probability) override {
    GRAFT_CHECK(probability >= 0 && probability < 1, "model: expected a drop path in [0, 1), got ",
                probability);
    drop_path_ = probability;
  }
  bool drops_paths() const override { return true; }

 private:
  static int64_t hidden(const BlockShape& shape) { return shape.in * shape.expand; }

  bool shortcut_;
  float drop_path_;
  std::optional<Conv2d> expand_;
  std::optional<BatchNorm2d> bn0_;
  Conv2d depthwise_;
  BatchNorm2d bn1_;
  Conv2d project_;
  BatchNorm2d bn2_;
};

std::vector<BlockShape> block_shapes(const Variant& variant) {
  struct Group {
    int64_t repeats, kernel, stride, expand, in, out;
  };
  static constexpr Group kGroups[] = {
      {1, 3, 1, 1, 32, 16},  {2, 3, 2, 6, 16, 24},   {2, 5, 2, 6, 24, 40},  {3, 3, 2, 6, 40, 80},
      {3, 5, 1, 6, 80, 112}, {4, 5, 2, 6, 112, 192}, {1, 3, 1, 6, 192, 320}};
  std::vector<BlockShape> shapes;
  for (const Group& group : kGroups) {
    const bool first = &group == std::begin(kGroups), last = &group + 1 == std::end(kGroups);
    const int64_t in = first ? 32 : round_channels(group.in, variant.width);
    const int64_t out = round_channels(group.out, variant.width);
    const int64_t repeats =
        first || last
            ? group.repeats
            : static_cast<int64_t>(std::ceil(variant.depth * static_cast<double>(group.repeats)));
    for (int64_t i = 0; i < repeats; ++i) {
      shapes.push_back(
          {i == 0 ? in : out, out, group.kernel, i == 0 ? group.stride : 1, group.expand});
    }
  }
  return shapes;
}

class EfficientNetLite : public HeadedModel {
 public:
  EfficientNetLite(const Variant& variant, const ModelOptions& options)
      : HeadedModel(options, 1280, variant.dropout, "_fc", "_conv_stem"),
        stem_(options.in_channels, 32, {.kernel = 3, .stride = 2, .same = true}),
        bn0_(32, kEpsilon, kMomentum),
        last_(round_channels(320, variant.width), 1280, {}),
        bn1_(1280, kEpsilon, kMomentum) {
    child("_conv_stem", stem_);
    child("_bn0", bn0_);
    add_stage("stem", {&stem_, &bn0_},
              [this](const Tensor& x) { return conv_bn_act(stem_, bn0_, x, Activation::relu6); });
    const std::vector<BlockShape> shapes = block_shapes(variant);
    const float rate = options.drop_path < 0 ? kDropPath : options.drop_path;
    for (size_t i = 0; i < shapes.size(); ++i) {
      const float share = static_cast<float>(i) / static_cast<float>(shapes.size());
      add_stage(text("_blocks.", i),
                *blocks_.add(std::make_shared<Block>(shapes[i], rate * share)));
    }
    child("_blocks", blocks_);
    child("_conv_head", last_);
    child("_bn1", bn1_);
    add_stage("top", {&last_, &bn1_},
              [this](const Tensor& x) { return conv_bn_act(last_, bn1_, x, Activation::relu6); });
    add_stage("avgpool", {}, global_average);
    child("_fc", head_);
  }

  void initialise(RngKey key) override {
    uint64_t index = 0;
    for (const auto& [name, module] : named_modules()) {
      if (auto* conv = dynamic_cast<Conv2d*>(module)) {
        conv->initialise_as_pytorch(derive(key, index++));
      }
    }
    initialise_head(derive(key, index));
  }

 private:
  Conv2d stem_;
  BatchNorm2d bn0_;
  Sequential blocks_;
  Conv2d last_;
  BatchNorm2d bn1_;
};

}  // namespace

std::unique_ptr<ImageModel> build_efficientnet_lite(int variant, const ModelOptions& options) {
  return std::make_unique<EfficientNetLite>(variant_of(variant), options);
}

int64_t efficientnet_lite_resolution(int variant) { return variant_of(variant).resolution; }

}  // namespace graft
