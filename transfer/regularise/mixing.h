// mixup (Zhang et al., ICLR 2018) and cutmix (Yun et al., ICCV 2019): a batch is mixed with itself,
// moved on by a random number of places, and so are its labels.
//
//   mixup    x = t x + (1 - t) x',            t from Beta(a, a)
//   cutmix   a box of x' pasted into x, 1 - t of the area, at a random place and cut at the border;
//            t is then what is left of x
//   target   t [y] + (1 - t) [y'], class probabilities for cross_entropy
//
// With both, a fair coin picks one for every batch. One t a batch. Label smoothing applies to the
// mixed target. Class weights do, too, class by class, and the mean is then over images, not over
// the sum of their weights, as PyTorch's for class probabilities. Traps: training accuracy counts
// the label of x and is low; both need more epochs, and mixing images whose class is a small detail
// hurts.
#pragma once

#include "engine/tensor.h"
#include "transfer/regularise/options.h"

namespace graft {

struct Mix {
  float share = 1;    // t
  int64_t shift = 1;  // x' of image i is image (i + shift) mod n
  bool box = false;
  int64_t top = 0, bottom = 0, left = 0, right = 0;  // of the box, [top, bottom) x [left, right)
};
// What (seed, step) draws for n images of this size, on any device and after any resume. One image
// is left alone.
Mix draw_mix(const RegulariseOptions& options, int64_t n, int64_t height, int64_t width,
             uint64_t seed, uint64_t step);
// x (n, h, w, c), f32, mixed on its device; x itself where the share is 1.
Tensor mix_images(const Tensor& x, const Mix& mix);
// i64 labels on the host -> f32 (n, classes) on the host.
Tensor mix_labels(const Tensor& labels, int64_t classes, const Mix& mix);

}  // namespace graft
