// ResNet v1.5 (He et al. 2015; stride in the 3x3 convolution), names as torchvision's.
#include <vector>

#include "layers/init.h"
#include "layers/models/families.h"
#include "layers/norm.h"
#include "layers/sequential.h"

namespace graft {
namespace {

// conv1, bn1, conv2, bn2 (, conv3, bn3) with ReLU between, then ReLU(sum with the input), the input
// going through downsample.0 and .1 where the shape changes.
class ResidualBlock : public Module {
 public:
  ResidualBlock(int64_t in, int64_t width, int64_t stride, bool bottleneck) {
    const int64_t out = bottleneck ? 4 * width : width;
    if (bottleneck) {
      add(in, width, {.kernel = 1});
      add(width, width, {.kernel = 3, .stride = stride, .padding = 1});
      add(width, out, {.kernel = 1});
    } else {
      add(in, width, {.kernel = 3, .stride = stride, .padding = 1});
      add(width, width, {.kernel = 3, .padding = 1});
    }
    if (stride != 1 || in != out) {
      auto downsample = std::make_shared<Sequential>();
      shortcut_conv_ =
          downsample->add(std::make_shared<Conv2d>(in, out, ConvOptions{.stride = stride}));
      shortcut_norm_ = downsample->add(std::make_shared<BatchNorm2d>(out));
      child("downsample", downsample);
    }
  }

  Tensor forward(const Tensor& x) override {
    const Tensor identity =
        shortcut_conv_ ? conv_bn_act(*shortcut_conv_, *shortcut_norm_, x, Activation::none) : x;
    Tensor y = x;
    for (size_t i = 0; i < convs_.size(); ++i) {
      const bool last = i + 1 == convs_.size();
      y = conv_bn_act(*convs_[i], *norms_[i], y, Activation::relu, last ? identity : Tensor());
    }
    return y;
  }

 private:
  void add(int64_t in, int64_t out, const ConvOptions& options) {
    convs_.push_back(std::make_shared<Conv2d>(in, out, options));
    norms_.push_back(std::make_shared<BatchNorm2d>(out));
    const std::string number = std::to_string(convs_.size());
    child("conv" + number, convs_.back());
    child("bn" + number, norms_.back());
  }

  std::vector<std::shared_ptr<Conv2d>> convs_;
  std::vector<std::shared_ptr<BatchNorm2d>> norms_;
  std::shared_ptr<Conv2d> shortcut_conv_;
  std::shared_ptr<BatchNorm2d> shortcut_norm_;
};

class ResNet : public HeadedModel {
 public:
  ResNet(const std::vector<int64_t>& blocks, bool bottleneck, const ModelOptions& options)
      : HeadedModel(options, bottleneck ? 2048 : 512, 0.0f, "fc", "conv1"),
        conv1_(options.in_channels, 64, {.kernel = 7, .stride = 2, .padding = 3}),
        bn1_(64) {
    child("conv1", conv1_);
    child("bn1", bn1_);
    add_stage("relu", {&conv1_, &bn1_},
              [this](const Tensor& x) { return conv_bn_act(conv1_, bn1_, x, Activation::relu); });
    add_stage("maxpool", {}, [](const Tensor& x) {
      return max_pool2d(
          x, {.kernel_height = 3, .kernel_width = 3, .padding = Padding::symmetric(1, 1)});
    });
    int64_t channels = 64;
    for (int64_t group = 0; group < 4; ++group) {
      const std::string layer = text("layer", group + 1);
      const int64_t width = int64_t{64} << group;
      for (int64_t i = 0; i < blocks[static_cast<size_t>(group)]; ++i) {
        const int64_t stride = group > 0 && i == 0 ? 2 : 1;
        add_stage(text(layer, ".", i), *layers_[group].add(std::make_shared<ResidualBlock>(
                                           channels, width, stride, bottleneck)));
        channels = bottleneck ? 4 * width : width;
      }
      child(layer, layers_[group]);
    }
    add_stage("avgpool", {}, global_average);
    child("fc", head_);
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

 private:
  Conv2d conv1_;
  BatchNorm2d bn1_;
  Sequential layers_[4];
};

}  // namespace

std::unique_ptr<ImageModel> build_resnet(int depth, const ModelOptions& options) {
  switch (depth) {
    case 18:
      return std::make_unique<ResNet>(std::vector<int64_t>{2, 2, 2, 2}, false, options);
    case 34:
      return std::make_unique<ResNet>(std::vector<int64_t>{3, 4, 6, 3}, false, options);
    case 50:
      return std::make_unique<ResNet>(std::vector<int64_t>{3, 4, 6, 3}, true, options);
    case 101:
      return std::make_unique<ResNet>(std::vector<int64_t>{3, 4, 23, 3}, true, options);
    case 152:
      return std::make_unique<ResNet>(std::vector<int64_t>{3, 8, 36, 3}, true, options);
    default:
      fail("resnet: expected a depth of 18, 34, 50, 101 or 152, got ", depth);
  }
}

}  // namespace graft
