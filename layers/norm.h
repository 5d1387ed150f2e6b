// Batch normalisation as a layer, and its fusion with the convolution before it.
#pragma once

#include <array>
#include <memory>

#include "layers/conv.h"
#include "layers/module.h"

namespace graft {

// x (..., c); names and buffers are nn.BatchNorm2d's.
class BatchNorm2d : public Module {
 public:
  explicit BatchNorm2d(int64_t channels, float epsilon = 1e-5f, float momentum = 0.1f);

  Tensor forward(const Tensor& x) override { return apply(x, Activation::none, Tensor()); }
  // act(norm(x) + residual), one kernel; residual may be undefined.
  Tensor apply(const Tensor& x, Activation activation, const Tensor& residual);

  // Frozen statistics: normalises with the running ones and leaves them alone, in train() too. Says
  // nothing about weight and bias, which keep their own requires_grad.
  void freeze_statistics(bool on) { frozen_ = on; }
  bool statistics_frozen() const { return frozen_; }
  // running = (1 - momentum) running + momentum batch
  void set_momentum(float momentum) { momentum_ = momentum; }
  float momentum() const { return momentum_; }
  bool uses_running_statistics() const { return frozen_ || !training(); }
  float epsilon() const { return epsilon_; }
  // StochNorm (Kou et al., "Stochastic normalization", NeurIPS 2020): where batch statistics are
  // used, each channel is normalised with the running ones instead with this probability, drawn
  // anew for every batch. The running ones move as without it. 0: off.
  void set_stochastic(float probability) { stochastic_ = probability; }
  float stochastic() const { return stochastic_; }

  Tensor weight, bias, running_mean, running_var;  // (channels)
  Tensor num_batches_tracked;                      // i64, rank 0, on the CPU

 private:
  friend Tensor conv_bn_act(Conv2d&, BatchNorm2d&, const Tensor&, Activation, const Tensor&);
  // The filter and bias of the convolution before, with this layer multiplied in; valid as long as
  // the storages they were computed from are the same and unchanged.
  struct Folded {
    std::array<std::pair<std::shared_ptr<Storage>, uint64_t>, 6> sources;
    Tensor filter, bias;
  };
  const Folded& fold_into(const Conv2d& conv);

  Tensor apply_stochastic(const Tensor& x, const BatchNormOptions& options, const Tensor& residual);

  float epsilon_, momentum_, stochastic_ = 0;
  bool frozen_ = false;
  std::unique_ptr<Folded> folded_;
};

// Sets freeze_statistics on every batch norm of a module tree.
void freeze_batch_norm(Module& root, bool on);
// Sets the momentum of every batch norm of a module tree.
void set_batch_norm_momentum(Module& root, float momentum);

// Sets the probability of StochNorm in every batch norm of a module tree.
void set_stochastic_norm(Module& root, float probability);

// act(bn(conv(x)) + residual): the building stone of every convolutional network here. Where a
// gradient is wanted or batch statistics are, a convolution and a fused batch norm; otherwise
// (inference, or a frozen prefix) one convolution with the batch norm folded into its filter. The
// folded filter is kept, so two threads must not run the same module at once. A tapped layer
// (tap.h) is not fused with what comes after it, which may move the last bits.
Tensor conv_bn_act(Conv2d& conv, BatchNorm2d& bn, const Tensor& x, Activation activation,
                   const Tensor& residual = Tensor());

}  // namespace graft
