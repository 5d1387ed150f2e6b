#include "layers/norm.h"

#include "engine/autograd.h"

namespace graft {

namespace {

Tensor activated(const Tensor& x, Activation activation) {
  if (activation == Activation::relu) return relu(x);
  return activation == Activation::relu6 ? relu6(x) : x;
}

}  // namespace

BatchNorm2d::BatchNorm2d(int64_t channels, float epsilon, float momentum)
    : weight(Tensor::full({channels}, 1.0f)),
      bias(Tensor::zeros({channels})),
      running_mean(Tensor::zeros({channels})),
      running_var(Tensor::full({channels}, 1.0f)),
      num_batches_tracked(Tensor::zeros({}, Dtype::i64)),
      epsilon_(epsilon),
      momentum_(momentum) {
  parameter("weight", weight);
  parameter("bias", bias);
  buffer("running_mean", running_mean);
  buffer("running_var", running_var);
  buffer("num_batches_tracked", num_batches_tracked, FileLayout::counter);
}

Tensor BatchNorm2d::apply(const Tensor& x, Activation activation, const Tensor& residual) {
  const bool batch_statistics = !uses_running_statistics();
  BatchNormOptions options;
  options.training = batch_statistics;
  options.momentum = momentum_;
  options.epsilon = epsilon_;
  options.activation = activation;
  Tensor result = batch_statistics && stochastic_ > 0
                      ? apply_stochastic(x, options, residual)
                      : batch_norm(x, weight, bias, running_mean, running_var, options, residual);
  if (batch_statistics) ++*num_batches_tracked.mutable_data<int64_t>();
  return result;
}

Tensor BatchNorm2d::apply_stochastic(const Tensor& x, const BatchNormOptions& options,
                                     const Tensor& residual) {
  BatchNormOptions batch = options;
  batch.activation = Activation::none;
  BatchNormOptions running = batch;
  running.training = false;
  // With the running statistics as they were before this batch.
  const Tensor by_running = batch_norm(x, weight, bias, running_mean, running_var, running);
  const Tensor by_batch = batch_norm(x, weight, bias, running_mean, running_var, batch);
  // 1 where a channel keeps the batch's statistics: dropout scales what it keeps by 1 or more.
  const Tensor ones = Tensor::full({x.dim(-1)}, 1.0f, x.device());
  const Tensor kept = clamp(dropout(ones, stochastic_, true, next_key()), 0, 1);
  const Tensor dropped = sub(ones, kept);
  Tensor y = add(mul(by_batch, cast(kept, x.dtype())), mul(by_running, cast(dropped, x.dtype())));
  if (residual.defined()) y = add(y, residual);
  return activated(y, options.activation);
}

const BatchNorm2d::Folded& BatchNorm2d::fold_into(const Conv2d& conv) {
  const auto source = [](const Tensor& tensor) {
    return std::pair(tensor.storage(), tensor.defined() ? tensor.storage()->version() : 0);
  };
  const decltype(Folded::sources) sources{source(conv.weight),  source(conv.bias),
                                          source(weight),       source(bias),
                                          source(running_mean), source(running_var)};
  if (folded_ && folded_->sources == sources) return *folded_;

  const NoGrad guard;
  const Tensor scale = div(weight, sqrt(add(running_var, epsilon_)));
  const Tensor centre = conv.bias.defined() ? sub(running_mean, conv.bias) : running_mean;
  auto fresh = std::make_unique<Folded>();
  fresh->filter = mul(conv.weight, reshape(scale, {scale.numel(), 1, 1, 1}));
  fresh->bias = sub(bias, mul(centre, scale));
  fresh->sources = sources;
  folded_ = std::move(fresh);
  return *folded_;
}

namespace {

template <class Change>
void change_batch_norms(Module& root, const Change& change) {
  for (const auto& [name, module] : root.named_modules()) {
    if (auto* norm = dynamic_cast<BatchNorm2d*>(module)) change(*norm);
  }
}

}  // namespace

void freeze_batch_norm(Module& root, bool on) {
  change_batch_norms(root, [on](BatchNorm2d& norm) { norm.freeze_statistics(on); });
}

void set_batch_norm_momentum(Module& root, float momentum) {
  change_batch_norms(root, [momentum](BatchNorm2d& norm) { norm.set_momentum(momentum); });
}

void set_stochastic_norm(Module& root, float probability) {
  change_batch_norms(root, [probability](BatchNorm2d& norm) { norm.set_stochastic(probability); });
}

Tensor conv_bn_act(Conv2d& conv, BatchNorm2d& bn, const Tensor& x, Activation activation,
                   const Tensor& residual) {
  if (bn.tapped()) {
    // Its own output is wanted: what would be fused into it comes after.
    Tensor y = bn(conv(x));
    if (residual.defined()) y = add(y, residual);
    return activated(y, activation);
  }
  const bool gradient =
      any_requires_grad({&x, &conv.weight, &conv.bias, &bn.weight, &bn.bias, &residual});
  if (gradient || !bn.uses_running_statistics() || conv.tapped() || conv.adapted()) {
    return bn.apply(conv(x), activation, residual);
  }
  const BatchNorm2d::Folded& folded = bn.fold_into(conv);
  return conv2d_fused(x, folded.filter, folded.bias, conv.options_for(x), activation, residual);
}

}  // namespace graft
