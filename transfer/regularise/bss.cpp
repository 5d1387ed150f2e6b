// Batch spectral shrinkage (Chen, Wang, Fu, Long and Wang, "Catastrophic forgetting meets negative
// transfer", NeurIPS 2019): the k smallest singular values of a batch's features F (images, width)
// are the directions that transfer worst, and are pulled to 0:
//
//   weight * sum over the k smallest s_i(F) of s_i^2
//
// Traps: F is what the last stage gives, before dropout. The term is a sum over the batch, not a
// mean, as published: it grows with the batch size. Of a batch with fewer images than k, all values
// count.
#include <algorithm>

#include "layers/tap.h"
#include "transfer/regularise/regulariser.h"

namespace graft {
namespace {

class Bss : public Regulariser {
 public:
  Bss(ImageModel& model, const RegulariseOptions& options)
      : features_(model, model.stages().back().name()),
        values_(options.bss_values),
        weight_(options.bss) {}

  Tensor term(const Tensor&, const Tensor&) override {
    if (!features_.has_output() || !features_.output().requires_grad()) return Tensor();
    const Tensor s = singular_values(cast(features_.output(), Dtype::f32));
    const int64_t k = std::min(values_, s.numel());
    const Tensor smallest = slice(s, 0, s.numel() - k, k);
    return mul(sum(mul(smallest, smallest)), weight_);
  }
  void clear() override { features_.clear(); }

 private:
  Tap features_;
  int64_t values_;
  float weight_;
};

}  // namespace

std::unique_ptr<Regulariser> make_bss(ImageModel& model, const RegulariseOptions& options,
                                      const Start&) {
  return std::make_unique<Bss>(model, options);
}

}  // namespace graft
