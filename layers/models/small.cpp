// Two small networks of our own for small images, tests and first steps.
#include "layers/init.h"
#include "layers/models/families.h"
#include "layers/norm.h"
#include "layers/sequential.h"

namespace graft {
namespace {

// conv1, bn1 ... conv3, bn3, each followed by ReLU and 2x2 max pooling; global average; fc.
class SmallCnn : public HeadedModel {
 public:
  explicit SmallCnn(const ModelOptions& options)
      : HeadedModel(options, 128, 0.0f, "fc", "conv1"),
        conv1_(options.in_channels, 32, kFilter),
        bn1_(32),
        conv2_(32, 64, kFilter),
        bn2_(64),
        conv3_(64, 128, kFilter),
        bn3_(128) {
    child("conv1", conv1_);
    child("bn1", bn1_);
    child("conv2", conv2_);
    child("bn2", bn2_);
    child("conv3", conv3_);
    child("bn3", bn3_);
    child("fc", head_);
  }

  void initialise(RngKey key) override {
    kaiming_normal_fan_out(conv1_.weight, derive(key, 0));
    kaiming_normal_fan_out(conv2_.weight, derive(key, 1));
    kaiming_normal_fan_out(conv3_.weight, derive(key, 2));
    initialise_head(derive(key, 3));
  }

 protected:
  Tensor pooled(const Tensor& x) override {
    GRAFT_CHECK(x.rank() == 4 && x.dim(1) >= 8 && x.dim(2) >= 8,
                "small_cnn: expected images (n, h, w, c) of at least 8 x 8 pixels, got ", x);
    Tensor y = max_pool2d(conv_bn_act(conv1_, bn1_, x, Activation::relu), {});
    y = max_pool2d(conv_bn_act(conv2_, bn2_, y, Activation::relu), {});
    y = max_pool2d(conv_bn_act(conv3_, bn3_, y, Activation::relu), {});
    return global_average(y);
  }

 private:
  static constexpr ConvOptions kFilter{.kernel = 3, .padding = 1};
  Conv2d conv1_;
  BatchNorm2d bn1_;
  Conv2d conv2_;
  BatchNorm2d bn2_;
  Conv2d conv3_;
  BatchNorm2d bn3_;
};

// Pixels pooled to 28 x 28 and flattened channel by channel as nn.Flatten does, fc1, fc2 with ReLU,
// fc.
class Mlp : public HeadedModel {
 public:
  explicit Mlp(const ModelOptions& options)
      : HeadedModel(options, kHidden, 0.0f, "fc", "fc1"),
        fc1_(options.in_channels * kSide * kSide, kHidden),
        fc2_(kHidden, kHidden) {
    child("fc1", fc1_);
    child("fc2", fc2_);
    child("fc", head_);
  }

  void initialise(RngKey key) override {
    fc1_.initialise_as_pytorch(derive(key, 0));
    fc2_.initialise_as_pytorch(derive(key, 1));
    initialise_head(derive(key, 2));
  }

 protected:
  Tensor pooled(const Tensor& x) override {
    GRAFT_CHECK(x.rank() == 4, "mlp: expected images (n, h, w, c), got ", x);
    const Tensor pixels =
        x.dim(1) == kSide && x.dim(2) == kSide ? x : adaptive_avg_pool2d(x, kSide, kSide);
    const Tensor flat = reshape(permute(pixels, {0, 3, 1, 2}), {x.dim(0), -1});
    return relu(fc2_(relu(fc1_(flat))));
  }

 private:
  static constexpr int64_t kSide = 28, kHidden = 256;
  Linear fc1_, fc2_;
};

}  // namespace

std::unique_ptr<ImageModel> build_small_cnn(const ModelOptions& options) {
  return std::make_unique<SmallCnn>(options);
}
std::unique_ptr<ImageModel> build_mlp(const ModelOptions& options) {
  return std::make_unique<Mlp>(options);
}

}  // namespace graft
