// 2-d convolution as a layer.
#pragma once

#include <optional>

#include "layers/adapted.h"

namespace graft {

struct ConvOptions {
  int64_t kernel = 1;  // square
  int64_t stride = 1;
  int64_t padding = 0;  // on all four sides
  bool same = false;    // TensorFlow's "SAME" padding for the input at hand, instead of `padding`
  int64_t groups = 1;
  bool bias = false;
};

// x (n, h, w, in) -> (n, oh, ow, out).
class Conv2d : public AdaptedLayer {
 public:
  // Without a key the weights are left unset, for a caller who fills them (from a file, or with
  // another distribution); with one they are drawn as nn.Conv2d draws them.
  Conv2d(int64_t in_channels, int64_t out_channels, const ConvOptions& options,
         std::optional<RngKey> key = std::nullopt);

  Tensor forward(const Tensor& x) override;
  // The options for an input of this size.
  Conv2dOptions options_for(const Tensor& x) const;
  void initialise_as_pytorch(RngKey key);
  int64_t groups() const override { return options_.groups; }
  // weight is (out, kernel, kernel, in / groups), bias (out) or undefined

 private:
  ConvOptions options_;
};

}  // namespace graft
