#include "transfer/regularise/mixing.h"

#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "engine/rng.h"

namespace graft {
namespace {

// A seed of its own, as shuffling and augmentation have.
constexpr uint64_t kMixSeed = 0x6D697865'64000000ull;

// Gamma(a, 1) by Marsaglia and Tsang (2000), for a < 1 from that of a + 1. As a logarithm: of a
// small a most draws are below what a double holds.
double log_gamma_draw(double a, RandomStream& random) {
  if (a < 1) {
    const double u = 1 - random.uniform();
    return log_gamma_draw(a + 1, random) + std::log(u) / a;
  }
  const double d = a - 1.0 / 3, c = 1 / std::sqrt(9 * d);
  for (;;) {
    const double x = random.normal(), v = std::pow(1 + c * x, 3);
    if (v <= 0) continue;
    const double u = 1 - random.uniform();
    if (std::log(u) < x * x / 2 + d - d * v + d * std::log(v)) return std::log(d * v);
  }
}

double beta_draw(double a, RandomStream& random) {
  const double x = log_gamma_draw(a, random), y = log_gamma_draw(a, random);
  return 1 / (1 + std::exp(y - x));
}

// Image (i + shift) mod n at place i.
Tensor moved_on(const Tensor& x, int64_t shift) {
  return concat({narrow(x, shift, x.dim(0) - shift), narrow(x, 0, shift)});
}

}  // namespace

Mix draw_mix(const RegulariseOptions& options, int64_t n, int64_t height, int64_t width,
             uint64_t seed, uint64_t step) {
  Mix mix;
  if (n < 2) return mix;
  RandomStream random({seed ^ kMixSeed, step, 0});
  mix.shift = 1 + random.below(n - 1);
  const bool coin = random.below(2) == 0;
  mix.box = options.mixup == 0 || (options.cutmix > 0 && coin);
  const double share =
      beta_draw(static_cast<double>(mix.box ? options.cutmix : options.mixup), random);
  mix.share = static_cast<float>(share);
  if (!mix.box) return mix;
  const double side = std::sqrt(1 - share);
  const auto tall = static_cast<int64_t>(static_cast<double>(height) * side);
  const auto wide = static_cast<int64_t>(static_cast<double>(width) * side);
  const int64_t y = random.below(height), x = random.below(width);
  mix.top = std::max<int64_t>(y - tall / 2, 0);
  mix.bottom = std::min(y - tall / 2 + tall, height);
  mix.left = std::max<int64_t>(x - wide / 2, 0);
  mix.right = std::min(x - wide / 2 + wide, width);
  const int64_t pasted = (mix.bottom - mix.top) * (mix.right - mix.left);
  mix.share =
      static_cast<float>(1 - static_cast<double>(pasted) / static_cast<double>(height * width));
  return mix;
}

Tensor mix_images(const Tensor& x, const Mix& mix) {
  if (mix.share == 1) return x;
  const NoGrad no_grad;
  const Tensor other = moved_on(x, mix.shift);
  if (!mix.box) return add(mul(x, mix.share), mul(other, 1 - mix.share));
  const int64_t height = x.dim(1), width = x.dim(2);
  std::vector<float> keep(static_cast<size_t>(height * width), 1.0f);
  for (int64_t i = mix.top; i < mix.bottom; ++i) {
    std::fill_n(keep.begin() + i * width + mix.left, mix.right - mix.left, 0.0f);
  }
  const Tensor mask = Tensor::of(keep, {1, height, width, 1}).to(x.device());
  return add(mul(x, mask), mul(other, sub(Tensor::full({1}, 1.0f, x.device()), mask)));
}

Tensor mix_labels(const Tensor& labels, int64_t classes, const Mix& mix) {
  const std::vector<int64_t> y = labels.to_vector<int64_t>();
  const size_t n = y.size();
  std::vector<float> target(n * static_cast<size_t>(classes));
  for (size_t i = 0; i < n; ++i) {
    float* row = target.data() + i * static_cast<size_t>(classes);
    row[y[i]] += mix.share;
    row[y[(i + static_cast<size_t>(mix.shift)) % n]] += 1 - mix.share;
  }
  return Tensor::of(target, {static_cast<int64_t>(n), classes});
}

}  // namespace graft
