// MobileNetV2 (Sandler et al. 2018), names as torchvision's.
#include <algorithm>
#include <vector>

#include "layers/init.h"
#include "layers/models/families.h"
#include "layers/norm.h"
#include "layers/sequential.h"

namespace graft {
namespace {

// The nearest multiple of 8, never more than 10% below.
int64_t make_divisible(double channels) {
  const int64_t rounded = std::max<int64_t>(8, static_cast<int64_t>(channels + 4) / 8 * 8);
  return static_cast<double>(rounded) < 0.9 * channels ? rounded + 8 : rounded;
}

// "0": convolution, "1": batch norm, then ReLU6.
class ConvBnRelu6 : public Module {
 public:
  ConvBnRelu6(int64_t in, int64_t out, const ConvOptions& options)
      : conv_(in, out, options), norm_(out) {
    child("0", conv_);
    child("1", norm_);
  }
  Tensor forward(const Tensor& x) override {
    return conv_bn_act(conv_, norm_, x, Activation::relu6);
  }

 private:
  Conv2d conv_;
  BatchNorm2d norm_;
};

// Expand 1x1, depthwise 3x3, project 1x1 (linear), plus the input where shapes agree.
class InvertedResidual : public Module {
 public:
  InvertedResidual(int64_t in, int64_t out, int64_t stride, int64_t expand)
      : shortcut_(stride == 1 && in == out) {
    const int64_t hidden = in * expand;
    auto parts = std::make_shared<Sequential>();
    if (expand != 1) wide_.push_back(parts->add(relu6_block(in, hidden, {})));
    wide_.push_back(parts->add(relu6_block(
        hidden, hidden, {.kernel = 3, .stride = stride, .padding = 1, .groups = hidden})));
    project_ = parts->add(std::make_shared<Conv2d>(hidden, out, ConvOptions{}));
    norm_ = parts->add(std::make_shared<BatchNorm2d>(out));
    child("conv", parts);
  }
  Tensor forward(const Tensor& x) override {
    Tensor y = x;
    for (const auto& part : wide_) y = (*part)(y);
    return conv_bn_act(*project_, *norm_, y, Activation::none, shortcut_ ? x : Tensor());
  }

 private:
  static std::shared_ptr<ConvBnRelu6> relu6_block(int64_t in, int64_t out,
                                                  const ConvOptions& options) {
    return std::make_shared<ConvBnRelu6>(in, out, options);
  }

  bool shortcut_;
  std::vector<std::shared_ptr<ConvBnRelu6>> wide_;
  std::shared_ptr<Conv2d> project_;
  std::shared_ptr<BatchNorm2d> norm_;
};

int64_t last_width(double width) { return make_divisible(1280 * std::max(1.0, width)); }

class MobileNetV2 : public HeadedModel {
 public:
  MobileNetV2(double width, const ModelOptions& options)
      : HeadedModel(options, last_width(width), 0.2f, "classifier.1", "features.0.0") {
    struct Group {
      int64_t expand, channels, repeats, stride;
    };
    static constexpr Group kGroups[] = {{1, 16, 1, 1}, {6, 24, 2, 2},  {6, 32, 3, 2}, {6, 64, 4, 2},
                                        {6, 96, 3, 1}, {6, 160, 3, 2}, {6, 320, 1, 1}};
    int64_t channels = make_divisible(32 * width);
    add(std::make_shared<ConvBnRelu6>(options.in_channels, channels,
                                      ConvOptions{.kernel = 3, .stride = 2, .padding = 1}));
    for (const Group& group : kGroups) {
      const int64_t out = make_divisible(static_cast<double>(group.channels) * width);
      for (int64_t i = 0; i < group.repeats; ++i) {
        add(std::make_shared<InvertedResidual>(channels, out, i == 0 ? group.stride : 1,
                                               group.expand));
        channels = out;
      }
    }
    add(std::make_shared<ConvBnRelu6>(channels, last_width(width), ConvOptions{}));
    add_stage("avgpool", {}, global_average);
    child("features", features_);
    child("classifier.1", head_);  // "0" is the dropout
  }

  void initialise(RngKey key) override {
    uint64_t index = 0;
    for (const auto& [name, module] : named_modules()) {
      if (auto* conv = dynamic_cast<Conv2d*>(module)) {
        kaiming_normal_fan_out(conv->weight, derive(key, index++));
      }
    }
    initialise_head(derive(key, index));
  }

 protected:
  void initialise_head(RngKey key) override {
    head_.weight.copy_from(normal(head_.weight.shape(), 0.0f, 0.01f, key));
    head_.bias.fill(0.0f);
  }

 private:
  template <class M>
  void add(std::shared_ptr<M> part) {
    add_stage(text("features.", stages().size()), *features_.add(std::move(part)));
  }

  Sequential features_;
};

}  // namespace

std::unique_ptr<ImageModel> build_mobilenet_v2(double width, const ModelOptions& options) {
  GRAFT_CHECK(width >= 0.1 && width <= 4, "mobilenet_v2: expected a width from 0.1 to 4, got ",
              width);
  return std::make_unique<MobileNetV2>(width, options);
}

}  // namespace graft
