// Losses: cross entropy (softmax, log and weighted sum in one pass over the logits) and the losses
// of two arrays.
//
// Cross entropy of a row with target weights t:  loss = -sum t_c log p_c = sum t_c (lse - x_c)
//   dx_c = p_c sum(t) - t_c
// As PyTorch: t_c = (1 - s) w_y [c = y] + s w_c / classes for a label y, smoothing s and class
// weights w; t_c = w_c ((1 - s) target_c + s / classes) for a soft target. The mean divides by the
// sum of w_y over rows that are not ignored, or by the number of rows for soft targets. A label
// outside the classes makes its row NaN: nobody may wait for the device to complain.
// Pairs: see pair_loss.h.
//
// Layout: row-major; 16 bytes a load where alignment and the number of classes allow it, else 4.
// Rows of up to 1024 classes are a warp's or less, longer ones a block's.
// Numerics: f32 within a row, but for the sums of t_c x_c, which may cancel: they, and all sums
// over rows and elements, gather in double. Determinism: a row's tree depends on the number of
// classes alone; sums over everything are cut into blocks of 8192 elements.
#include <cmath>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"
#include "kernels/pair_loss.h"

namespace graft::cuda {
namespace {

constexpr int kWide = kPackWidth<float>;

// What the rows are compared with: labels or else soft, and class weights or null.
struct Target {
  const int64_t* labels;
  const float* soft;
  const float* class_weights;
  CrossEntropyShape shape;

  __device__ float weight(int64_t c) const { return class_weights ? class_weights[c] : 1.0f; }
  __device__ float share() const {
    return shape.label_smoothing / static_cast<float>(shape.classes);
  }
  __device__ bool ignored(int64_t row) const { return labels[row] == shape.ignore_index; }
  __device__ bool valid(int64_t row) const {
    return labels[row] >= 0 && labels[row] < shape.classes;
  }
  // w_y; 0 for an ignored row, NaN for a label outside the classes.
  __device__ float label_weight(int64_t row) const {
    if (ignored(row)) return 0;
    return valid(row) ? weight(labels[row]) : NAN;
  }
  // t_c of a soft target; of a label without its own part: so that the same for every row.
  __device__ float at(int64_t row, int64_t c) const {
    if (soft == nullptr) return share() * weight(c);
    return weight(c) * ((1 - shape.label_smoothing) * soft[row * shape.classes + c] + share());
  }
};

template <bool kBlock, int kWidth>
__global__ void cross_entropy_kernel(float* loss, float* log_sum_exp, const float* logits,
                                     Target target, Team<kBlock> team) {
  const int64_t classes = target.shape.classes;
  const bool spread = target.soft != nullptr || target.shape.label_smoothing != 0;
  team.for_rows(target.shape.rows, [&](int64_t row, bool there) {
    const float* x = logits + row * classes;
    ExpSum powers;
    double total = 0, dot = 0;  // sums of t and of t x
    team.template for_items<kWidth>(there ? classes : 0, [&](int64_t j) {
      const Pack<float, kWidth> pack = load<kWidth>(x + j);
      powers.add(pack);
      if (!spread) return;
      for (int k = 0; k < kWidth; ++k) {
        const double t = target.at(row, j + k);
        total += t;
        dot += t * pack.v[k];
      }
    });
    powers = powers.over(team);
    if (spread) {
      total = team.reduce(total, Sum{});
      dot = team.reduce(dot, Sum{});
    }
    if (!there || team.rank() != 0) return;
    const float lse = powers.max + std::log(powers.sum);
    float sum = spread ? static_cast<float>(total * lse - dot) : 0.0f;
    if (target.soft == nullptr) {
      if (target.ignored(row)) {
        sum = 0;
      } else if (target.valid(row)) {
        sum += (1 - target.shape.label_smoothing) * target.label_weight(row) *
               (lse - x[target.labels[row]]);
      } else {
        sum = NAN;
      }
    }
    log_sum_exp[row] = lse;
    loss[row] = sum;
  });
}

template <bool kBlock, int kWidth>
__global__ void cross_entropy_grad_kernel(float* dlogits, const float* g, bool g_per_row,
                                          const float* divisor, const float* logits,
                                          const float* log_sum_exp, Target target,
                                          Team<kBlock> team) {
  const int64_t classes = target.shape.classes;
  const float smooth = target.shape.label_smoothing;
  const float inverse = divisor != nullptr ? 1.0f / *divisor : 1.0f;
  // Sum over the classes of the smoothing part of t.
  float smooth_total = smooth;
  if (target.soft == nullptr && smooth != 0 && target.class_weights != nullptr) {
    double sum = 0;
    for (int64_t c = threadIdx.x; c < classes; c += blockDim.x) sum += target.weight(c);
    smooth_total = static_cast<float>(block_reduce(sum, Sum{}) * target.share());
  }
  team.for_rows(target.shape.rows, [&](int64_t row, bool there) {
    const int64_t n = there ? classes : 0;
    const bool soft = target.soft != nullptr;
    const bool ignored = there && !soft && target.ignored(row);
    // A label's part of its own t, and where.
    const float own = there && !soft ? (1 - smooth) * target.label_weight(row) : 0.0f;
    const int64_t label = there && !soft ? target.labels[row] : -1;
    float total = own + smooth_total;
    if (soft) {
      float sum = 0;
      team.template for_items<1>(n, [&](int64_t j) { sum += target.at(row, j); });
      total = team.reduce(sum, Sum{});
    }
    if (!there) return;
    const float scale = g[g_per_row ? row : 0] * inverse, lse = log_sum_exp[row];
    team.template for_items<kWidth>(n, [&](int64_t j) {
      Pack<float, kWidth> pack;
      for (float& value : pack.v) value = 0;
      if (!ignored) pack = load<kWidth>(logits + row * classes + j);
      for (int k = 0; k < kWidth && !ignored; ++k) {
        const float t = target.at(row, j + k) + (j + k == label ? own : 0.0f);
        pack.v[k] = scale * (fn::fast_exp(pack.v[k] - lse) * total - t);
      }
      store(dlogits + row * classes + j, pack);
    });
  });
}

// Terms of a long sum.
struct Plain {
  const float* x;
  __device__ double operator()(int64_t i) const { return x[i]; }
};
struct Partial {
  const double* x;
  __device__ double operator()(int64_t i) const { return x[i]; }
};
struct LabelWeight {
  Target target;
  __device__ double operator()(int64_t i) const {
    return target.soft != nullptr ? 1.0f : target.label_weight(i);
  }
};
template <class F>
struct PairValue {
  const float* x;
  const float* target;
  float delta;
  __device__ double operator()(int64_t i) const { return F::value(x[i], target[i], delta); }
};

constexpr int64_t kBlockTerms = 8192;

// Block b's sum of terms b * kBlockTerms and on; when it is the only block, the result.
template <class Term>
__global__ void sum_kernel(float* out, double* partial, Term term, int64_t n, int64_t length,
                           double scale, const float* divisor) {
  for (int64_t first = blockIdx.x * length; first == 0 || first < n; first += gridDim.x * length) {
    double sum = 0;
    for (int64_t i = first + threadIdx.x; i < min(n, first + length); i += blockDim.x) {
      sum += term(i);
    }
    sum = block_reduce(sum, Sum{});
    if (threadIdx.x != 0) continue;
    if (partial != nullptr) {
      partial[first / length] = sum;
    } else {
      sum *= scale;
      *out = static_cast<float>(divisor != nullptr ? sum / *divisor : sum);
    }
  }
}

// out[0] = scale * the sum of term(0..n-1) / *divisor
template <class Term>
void sum(const char* op, float* out, const Term& term, int64_t n, double scale,
         const float* divisor) {
  if (n <= kBlockTerms) {
    launch(op, Grid{1}, 0, sum_kernel<Term>, out, nullptr, term, n, kBlockTerms, scale, divisor);
    return;
  }
  const int64_t blocks = (n + kBlockTerms - 1) / kBlockTerms;
  auto* partial = static_cast<double*>(scratch(op, static_cast<size_t>(blocks) * sizeof(double)));
  launch(op, grid_of_blocks(blocks), 0, sum_kernel<Term>, out, partial, term, n, kBlockTerms, scale,
         divisor);
  launch(op, Grid{1}, 0, sum_kernel<Partial>, out, nullptr, Partial{partial}, blocks, blocks, scale,
         divisor);
}

template <class F, int kWidth>
__global__ void pair_loss_kernel(float* loss, const float* x, const float* target, float delta,
                                 int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Pack<float, W> pt = load<W>(target + i);
    Pack<float, W> pack = load<W>(x + i);
    for (int k = 0; k < W; ++k) pack.v[k] = F::value(pack.v[k], pt.v[k], delta);
    store(loss + i, pack);
  });
}

template <class F, int kWidth>
__global__ void pair_loss_grad_kernel(float* dx, const float* g, bool g_per_element, const float* x,
                                      const float* target, float delta, float scale, int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Pack<float, W> px = load<W>(x + i), pt = load<W>(target + i);
    Pack<float, W> pack;
    if (g_per_element) {
      pack = load<W>(g + i);
    } else {
      for (float& value : pack.v) value = *g;
    }
    for (int k = 0; k < W; ++k) pack.v[k] *= scale * F::slope(px.v[k], pt.v[k], delta);
    store(dx + i, pack);
  });
}

// launch() with a warp's lanes or a block for every row.
template <class Short, class Long, class... Args>
void launch_rows(const char* op, const CrossEntropyShape& shape, int width, Short* short_kernel,
                 Long* long_kernel, const Args&... args) {
  if (shape.classes <= kLongRow) {
    const Team<false> team = lanes_for(shape.classes, width);
    launch(op, grid_of(team, shape.rows), 0, short_kernel, args..., team);
  } else {
    launch(op, grid_of_blocks(shape.rows), 0, long_kernel, args..., Team<true>{});
  }
}

}  // namespace

void cross_entropy(float* loss, float* log_sum_exp, float* divisor, const float* logits,
                   const int64_t* labels, const float* soft, const float* class_weights,
                   const CrossEntropyShape& shape) {
  constexpr const char* kOp = "cross_entropy";
  const Target target{labels, soft, class_weights, shape};
  if (shape.classes % kWide == 0 && aligned({logits})) {
    launch_rows(kOp, shape, kWide, cross_entropy_kernel<false, kWide>,
                cross_entropy_kernel<true, kWide>, loss, log_sum_exp, logits, target);
  } else {
    launch_rows(kOp, shape, 1, cross_entropy_kernel<false, 1>, cross_entropy_kernel<true, 1>, loss,
                log_sum_exp, logits, target);
  }
  sum(kOp, divisor, LabelWeight{target}, shape.rows, 1, nullptr);
}

void cross_entropy_grad(float* dlogits, const float* g, bool g_per_row, const float* divisor,
                        const float* logits, const float* log_sum_exp, const int64_t* labels,
                        const float* soft, const float* class_weights,
                        const CrossEntropyShape& shape) {
  constexpr const char* kOp = "cross_entropy_grad";
  const Target target{labels, soft, class_weights, shape};
  if (shape.classes % kWide == 0 && aligned({dlogits, logits})) {
    launch_rows(kOp, shape, kWide, cross_entropy_grad_kernel<false, kWide>,
                cross_entropy_grad_kernel<true, kWide>, dlogits, g, g_per_row, divisor, logits,
                log_sum_exp, target);
  } else {
    launch_rows(kOp, shape, 1, cross_entropy_grad_kernel<false, 1>,
                cross_entropy_grad_kernel<true, 1>, dlogits, g, g_per_row, divisor, logits,
                log_sum_exp, target);
  }
}

void pair_loss(PairLoss kind, float* loss, const float* x, const float* target, float delta,
               int64_t n) {
  const bool wide = aligned({loss, x, target});
  visit(kind, [&](auto formula) {
    using F = decltype(formula);
    launch("pair_loss", grid_for(wide ? (n + kWide - 1) / kWide : n), 0,
           wide ? pair_loss_kernel<F, kWide> : pair_loss_kernel<F, 1>, loss, x, target, delta, n);
  });
}

void pair_loss_sum(PairLoss kind, float* out, const float* x, const float* target, float delta,
                   float scale, int64_t n) {
  visit(kind, [&](auto formula) {
    sum("pair_loss_sum", out, PairValue<decltype(formula)>{x, target, delta}, n, scale, nullptr);
  });
}

void pair_loss_grad(PairLoss kind, float* dx, const float* g, bool g_per_element, const float* x,
                    const float* target, float delta, float scale, int64_t n) {
  const bool wide = aligned({dx, x, target, g_per_element ? g : nullptr});
  visit(kind, [&](auto formula) {
    using F = decltype(formula);
    launch("pair_loss_grad", grid_for(wide ? (n + kWide - 1) / kWide : n), 0,
           wide ? pair_loss_grad_kernel<F, kWide> : pair_loss_grad_kernel<F, 1>, dx, g,
           g_per_element, x, target, delta, scale, n);
  });
}

void loss_sum(float* out, const float* x, const float* divisor, int64_t n) {
  sum("loss_sum", out, Plain{x}, n, 1, divisor);
}

}  // namespace graft::cuda
