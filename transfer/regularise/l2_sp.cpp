// L2-SP (Li, Grandvalet and Davoine, "Explicit inductive bias for transfer learning with
// convolutional networks", ICML 2018): weights are pulled towards their start instead of 0,
//
//   alpha / 2 |w - w_start|^2 over the features + beta / 2 |w|^2 over the new head.
//
// Traps: plain weight decay still pulls towards 0 and should be off (--weight-decay 0). The term
// goes through the optimizer: AdamW divides its gradient by the gradient's own size, so that alpha
// means another strength than with SGD. A head that is frozen, and features that are, add nothing.
#include "kernels/error.h"
#include "transfer/regularise/regulariser.h"

namespace graft {
namespace {

class L2Sp : public Regulariser {
 public:
  L2Sp(ImageModel& model, const RegulariseOptions& options, const Start& start) {
    const std::unique_ptr<ImageModel> before = start.model();
    for (const NamedTensor& parameter : model.named_parameters()) {
      const Device device = parameter.tensor->device();
      if (in_head(model, parameter.name)) {
        if (options.l2_sp_head == 0) continue;
        pulls_.push_back(
            {parameter.tensor, zeros_like(*parameter.tensor).detach(), options.l2_sp_head / 2});
        continue;
      }
      for (const NamedTensor& other : before->named_parameters()) {
        if (other.name != parameter.name) continue;
        GRAFT_CHECK(other.tensor->shape() == parameter.tensor->shape(), "L2-SP: ", other.name,
                    " was ", *other.tensor, " at the start and is ", *parameter.tensor);
        pulls_.push_back(
            {parameter.tensor, other.tensor->detach().to(device).clone(), options.l2_sp / 2});
      }
    }
  }

  Tensor term(const Tensor&, const Tensor&) override {
    Tensor total;
    for (const Pull& pull : pulls_) {
      if (!pull.weights->requires_grad()) continue;
      const Tensor part = mul(mse_loss(*pull.weights, pull.towards, Reduction::sum), pull.half);
      total = total.defined() ? add(total, part) : part;
    }
    return total;
  }

 private:
  struct Pull {
    Tensor* weights;
    Tensor towards;
    float half;
  };
  std::vector<Pull> pulls_;
};

}  // namespace

std::unique_ptr<Regulariser> make_l2_sp(ImageModel& model, const RegulariseOptions& options,
                                        const Start& start) {
  return std::make_unique<L2Sp>(model, options, start);
}

}  // namespace graft
