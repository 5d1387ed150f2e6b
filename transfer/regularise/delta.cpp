// DELTA (Li et al., "DELTA: deep learning transfer using feature map with attention", ICLR 2019),
// its variant without attention: the feature maps A of the network stay near those of the starting
// one, A0, on the same images,
//
//   weight / 2 * sum over the last stage of every resolution of |A - A0|^2 / (images * positions)
//
// All channels count alike; the paper's weights, the softmax of how much the loss rises without a
// filter, are not computed. Traps: A0 comes from running statistics, so with batch statistics
// (--batch-norm train) the term is not 0 at the start. Every step runs the starting network, too:
// about a third more work, and its weights in memory.
#include <deque>

#include "engine/autograd.h"
#include "layers/tap.h"
#include "transfer/regularise/regulariser.h"

namespace graft {
namespace {

class Delta : public Regulariser {
 public:
  Delta(ImageModel& model, const RegulariseOptions& options, const Start& start)
      : start_(start.model()), weight_(options.delta) {
    start_->to(model.named_parameters().front().tensor->device());
    start_->set_precision(model.precision());
    start_->eval();
    for (const Stage& stage : model.stages()) {
      if (stage.modules().empty()) continue;  // a pooling shows nothing new
      ours_.emplace_back(model, stage.name());
      theirs_.emplace_back(*start_, stage.name());
    }
  }

  Tensor term(const Tensor& images, const Tensor&) override {
    if (!ours_.back().has_output() || !ours_.back().output().requires_grad()) return Tensor();
    {
      const NoGrad no_grad;
      start_->features(images);
    }
    Tensor total;
    for (size_t i = 0; i < ours_.size(); ++i) {
      const Tensor& now = ours_[i].output();
      if (!now.requires_grad() || !last_of_resolution(i)) continue;
      const Tensor before = cast(theirs_[i].output(), Dtype::f32);
      const auto places = static_cast<float>(now.numel() / now.dim(-1));
      const Tensor part =
          mul(mse_loss(cast(now, Dtype::f32), before, Reduction::sum), weight_ / 2 / places);
      total = total.defined() ? add(total, part) : part;
    }
    for (Tap& tap : theirs_) tap.clear();
    return total;
  }
  void clear() override {
    for (Tap& tap : ours_) tap.clear();
  }

 private:
  bool last_of_resolution(size_t i) const {
    if (i + 1 == ours_.size()) return true;
    const Tensor &a = ours_[i].output(), &b = ours_[i + 1].output();
    return a.rank() != b.rank() || a.numel() / a.dim(-1) != b.numel() / b.dim(-1);
  }

  std::unique_ptr<ImageModel> start_;
  float weight_;
  std::deque<Tap> ours_, theirs_;
};

}  // namespace

std::unique_ptr<Regulariser> make_delta(ImageModel& model, const RegulariseOptions& options,
                                        const Start& start) {
  return std::make_unique<Delta>(model, options, start);
}

}  // namespace graft
