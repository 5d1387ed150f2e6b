#include "layers/conv.h"

#include "layers/init.h"

namespace graft {

Conv2d::Conv2d(int64_t in_channels, int64_t out_channels, const ConvOptions& options,
               std::optional<RngKey> key)
    : options_(options) {
  GRAFT_CHECK(in_channels > 0 && out_channels > 0 && options.groups > 0 &&
                  in_channels % options.groups == 0 && out_channels % options.groups == 0,
              "Conv2d: ", in_channels, " -> ", out_channels, " channels do not divide into ",
              options.groups, " groups");
  weight = Tensor({out_channels, options.kernel, options.kernel, in_channels / options.groups});
  parameter("weight", weight, FileLayout::conv_filter);
  if (options.bias) {
    bias = Tensor({out_channels});
    parameter("bias", bias);
  }
  if (key) initialise_as_pytorch(*key);
}

void Conv2d::initialise_as_pytorch(RngKey key) {
  default_uniform(weight, fan_in_of(weight), derive(key, 0));
  if (bias.defined()) default_uniform(bias, fan_in_of(weight), derive(key, 1));
}

Conv2dOptions Conv2d::options_for(const Tensor& x) const {
  GRAFT_CHECK(x.rank() == 4, "Conv2d: expected images (n, h, w, c), got ", x);
  Conv2dOptions result;
  result.stride_height = result.stride_width = options_.stride;
  result.groups = options_.groups;
  result.padding = options_.same ? same_padding(x.dim(1), x.dim(2), options_.kernel,
                                                options_.kernel, options_.stride, options_.stride)
                                 : Padding::symmetric(options_.padding, options_.padding);
  return result;
}

Tensor Conv2d::forward(const Tensor& x) {
  const Conv2dOptions options = options_for(x);
  const Tensor y = conv2d(x, weight, bias, options);
  const Adapter* adapter = active_adapter();
  if (adapter == nullptr) return y;
  Conv2dOptions pointwise;
  pointwise.groups = options.groups;
  const Tensor low = mul(conv2d(dropped(x), adapter->a, Tensor(), options), adapter->scale);
  return add(y, conv2d(low, adapter->b, Tensor(), pointwise));
}

}  // namespace graft
