#include "transfer/adapt/discrepancy.h"

#include <cmath>

#include "engine/autograd.h"
#include "kernels/error.h"

namespace graft {
namespace {

// (n + m, n + m): the weight of each pair's kernel value in the estimate.
Tensor pair_weights(int64_t n, int64_t m, Device device) {
  const auto within = [](int64_t rows) {
    return static_cast<float>(1.0 / (static_cast<double>(rows) * static_cast<double>(rows - 1)));
  };
  const float across = static_cast<float>(-1.0 / (static_cast<double>(n) * static_cast<double>(m)));
  std::vector<float> weights;
  for (int64_t i = 0; i < n + m; ++i) {
    for (int64_t j = 0; j < n + m; ++j) {
      const bool same = (i < n) == (j < n);
      weights.push_back(i == j ? 0 : !same ? across : within(i < n ? n : m));
    }
  }
  return Tensor::of(weights, {n + m, n + m}).to(device);
}

// (rows, rows), at least 0: |x|^2 + |y|^2 - 2 x y.
Tensor squared_distances(const Tensor& x) {
  const Tensor squares = sum(mul(x, x), {1}, true);
  const Tensor products = matmul(x, x, false, true);
  return relu(sub(add(squares, reshape(squares, {1, -1})), mul(products, 2)));
}

Tensor kernel_values(const LayerPair& layer) {
  const Tensor distances = squared_distances(concat({layer.source, layer.target}));
  const auto rows = static_cast<float>(distances.dim(0));
  // Over different rows: those on the diagonal are 0.
  const Tensor scale =
      layer.kernels.fixed > 0
          ? Tensor::full({1}, layer.kernels.fixed, distances.device())
          : clamp(mul(mean(distances.detach()), rows / (rows - 1)), 1e-12f, INFINITY);
  const Tensor relative = neg(div(distances, mul(scale, 2)));
  Tensor total;
  for (const float one : layer.kernels.scales) {
    const Tensor value = exp(div(relative, one));
    total = total.defined() ? add(total, value) : value;
  }
  return total;
}

Tensor covariance(const Tensor& x) {
  const Tensor centred = sub(x, mean(x, {0}, true));
  return div(matmul(centred, centred, true, false), static_cast<float>(x.dim(0) - 1));
}

void check_rows(const char* what, const Tensor& x) {
  GRAFT_CHECK(x.rank() == 2 && x.dim(0) >= 2, what,
              ": expected a batch of at least two rows (n, d), got ", x,
              "; give a batch of at least 2 whose last one is no shorter");
}

}  // namespace

KernelScales kernel_family(int64_t count) {
  GRAFT_CHECK(count >= 1 && count % 2 == 1, "kernel_family: expected an odd count, got ", count);
  KernelScales family;
  for (int64_t k = -(count / 2); k <= count / 2; ++k) {
    family.scales.push_back(std::ldexp(1.0f, static_cast<int>(k)));
  }
  return family;
}

Tensor mmd(const std::vector<LayerPair>& layers) {
  Tensor kernels;
  for (const LayerPair& layer : layers) {
    check_rows("mmd", layer.source);
    check_rows("mmd", layer.target);
    const Tensor values = kernel_values(layer);
    kernels = kernels.defined() ? mul(kernels, values) : values;
  }
  const Tensor& source = layers.front().source;
  return sum(
      mul(kernels, pair_weights(source.dim(0), layers.front().target.dim(0), source.device())));
}

Tensor coral(const Tensor& source, const Tensor& target) {
  check_rows("coral", source);
  check_rows("coral", target);
  const auto width = static_cast<float>(source.dim(1));
  const Tensor difference = sub(covariance(source), covariance(target));
  return div(sum(mul(difference, difference)), 4 * width * width);
}

Tensor norm_step(const Tensor& x, float step) {
  // A row of zeros has no direction to grow in; the addend keeps its gradient finite.
  const Tensor norms = sqrt(add(sum(mul(x, x), {1}), 1e-12f));
  const Tensor short_of = sub(norms, add(norms.detach(), step));
  return mean(mul(short_of, short_of));
}

Tensor class_confusion(const Tensor& logits, float temperature) {
  const Tensor logs = log_softmax(div(logits, temperature));
  const Tensor p = exp(logs);
  const Tensor certainty = add(exp(sum(mul(p, logs), {1}, true).detach()), 1);  // 1 + exp(-H)
  const Tensor weights = div(certainty, mean(certainty));                       // sum to n
  const Tensor confusion = matmul(mul(p, weights), p, true, false);
  const Tensor shares = div(confusion, sum(confusion, {1}, true));
  const int64_t classes = logits.dim(1);
  std::vector<float> off_diagonal(static_cast<size_t>(classes * classes), 1.0f);
  for (int64_t c = 0; c < classes; ++c) off_diagonal[static_cast<size_t>(c * classes + c)] = 0;
  const Tensor others = Tensor::of(off_diagonal, {classes, classes}).to(logits.device());
  return div(sum(mul(shares, others)), static_cast<float>(classes));
}

Tensor classifier_discrepancy(const Tensor& a, const Tensor& b) {
  return mean(abs(sub(softmax(a), softmax(b))));
}

Tensor not_that_class(const Tensor& logits, const Tensor& labels) {
  const Tensor p = gather(softmax(logits), reshape(labels, {-1, 1}), 1);
  return neg(mean(log(clamp(sub(Tensor::full({1}, 1, p.device()), p), 1e-6f, 1))));
}

}  // namespace graft
