// The architectures behind zoo.h, one constructor function each. Weights are left unset.
#pragma once

#include <memory>
#include <string>

#include "layers/dropout.h"
#include "layers/linear.h"
#include "layers/models/zoo.h"

namespace graft {

// torchvision's ResNet; depth is 18, 34, 50, 101 or 152.
std::unique_ptr<ImageModel> build_resnet(int depth, const ModelOptions& options);
// torchvision's MobileNetV2.
std::unique_ptr<ImageModel> build_mobilenet_v2(double width, const ModelOptions& options);
// The efficientnet_lite_pytorch package's EfficientNet-Lite; variant is 0 to 4.
std::unique_ptr<ImageModel> build_efficientnet_lite(int variant, const ModelOptions& options);
int64_t efficientnet_lite_resolution(int variant);
// Three 3x3 convolutions of 32, 64 and 128 channels with batch norm, ReLU and 2x2 max pooling.
std::unique_ptr<ImageModel> build_small_cnn(const ModelOptions& options);
// Two hidden layers of 256 over 28 x 28 pixels.
std::unique_ptr<ImageModel> build_mlp(const ModelOptions& options);

// What the families share: a chain of stages that ends in (n, feature_width), dropout, and a linear
// head under the name the family gives it.
class HeadedModel : public ImageModel, public DropsOut {
 public:
  Tensor features_after(size_t done, const Tensor& x) override;
  Tensor head(const Tensor& features) override;
  int64_t feature_width() const override { return head_.weight.dim(1); }
  int64_t classes() const override { return head_.weight.dim(0); }
  std::string head_name() const override { return head_name_; }
  std::string stem_name() const override { return stem_name_; }
  void replace_head(int64_t classes, RngKey key) override;
  float dropout_probability() const override { return dropout_; }
  void set_dropout(float probability) override;

 protected:
  // The derived class registers head_ as its last child (named head_name, or inside a container).
  HeadedModel(const ModelOptions& options, int64_t feature_width, float own_dropout,
              std::string head_name, std::string stem_name);
  virtual void initialise_head(RngKey key) { head_.initialise_as_pytorch(key); }

  Linear head_;

 private:
  float dropout_ = 0;
  std::string head_name_, stem_name_;
};

// (n, h, w, c) -> (n, c)
Tensor global_average(const Tensor& x);

}  // namespace graft
