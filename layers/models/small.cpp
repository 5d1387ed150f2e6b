// Two small networks of our own for small images, tests and first steps.
#include "layers/init.h"
#include "layers/models/families.h"
#include "layers/norm.h"
#include "layers/sequential.h"

namespace graft {
namespace {

// conv1, bn1 ... conv3, bn3, each followed by ReLU and 2x2 max pooling (stages block1 ... block3);
// global average; fc.
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
    add_block(1, conv1_, bn1_);
    add_block(2, conv2_, bn2_);
    add_block(3, conv3_, bn3_);
    add_stage("avgpool", {}, global_average);
    child("fc", head_);
  }

  void initialise(RngKey key) override {
    kaiming_normal_fan_out(conv1_.weight, derive(key, 0));
    kaiming_normal_fan_out(conv2_.weight, derive(key, 1));
    kaiming_normal_fan_out(conv3_.weight, derive(key, 2));
    initialise_head(derive(key, 3));
  }

 private:
  void add_block(int number, Conv2d& conv, BatchNorm2d& bn) {
    child(text("conv", number), conv);
    child(text("bn", number), bn);
    add_stage(text("block", number), {&conv, &bn}, [&conv, &bn, number](const Tensor& x) {
      GRAFT_CHECK(number > 1 || (x.rank() == 4 && x.dim(1) >= 8 && x.dim(2) >= 8),
                  "small_cnn: expected images (n, h, w, c) of at least 8 x 8 pixels, got ", x);
      return max_pool2d(conv_bn_act(conv, bn, x, Activation::relu), {});
    });
  }

  static constexpr ConvOptions kFilter{.kernel = 3, .padding = 1};
  Conv2d conv1_;
  BatchNorm2d bn1_;
  Conv2d conv2_;
  BatchNorm2d bn2_;
  Conv2d conv3_;
  BatchNorm2d bn3_;
};

// Pixels pooled to 28 x 28 and flattened channel by channel as nn.Flatten does, fc1, fc2 with ReLU
// (stages hidden1, hidden2), fc.
class Mlp : public HeadedModel {
 public:
  explicit Mlp(const ModelOptions& options)
      : HeadedModel(options, kHidden, 0.0f, "fc", "fc1"),
        fc1_(options.in_channels * kSide * kSide, kHidden),
        fc2_(kHidden, kHidden) {
    child("fc1", fc1_);
    child("fc2", fc2_);
    add_stage("hidden1", {&fc1_}, [this](const Tensor& x) { return relu(fc1_(flattened(x))); });
    add_stage("hidden2", {&fc2_}, [this](const Tensor& x) { return relu(fc2_(x)); });
    child("fc", head_);
  }

  void initialise(RngKey key) override {
    fc1_.initialise_as_pytorch(derive(key, 0));
    fc2_.initialise_as_pytorch(derive(key, 1));
    initialise_head(derive(key, 2));
  }

 private:
  static Tensor flattened(const Tensor& x) {
    GRAFT_CHECK(x.rank() == 4, "mlp: expected images (n, h, w, c), got ", x);
    const Tensor pixels =
        x.dim(1) == kSide && x.dim(2) == kSide ? x : adaptive_avg_pool2d(x, kSide, kSide);
    return reshape(permute(pixels, {0, 3, 1, 2}), {x.dim(0), -1});
  }

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
