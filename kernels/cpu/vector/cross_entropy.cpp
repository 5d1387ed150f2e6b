// Losses: cross entropy (softmax, log and weighted sum in one pass) and the losses of two arrays.
//
// Cross entropy of a row with target weights t:  loss = -sum t_c log p_c = sum t_c (lse - x_c)
//   dx_c = p_c sum(t) - t_c
// As PyTorch: t_c = (1 - s) w_y [c = y] + s w_c / classes for a label y, smoothing s and class
// weights w; t_c = w_c ((1 - s) target_c + s / classes) for a soft target. The mean divides by the
// sum of w_y over rows that are not ignored, or by the number of rows for soft targets.
//
// Pairs: see pair_loss.h.
//
// Layout: row-major, no alignment assumed. Numerics: f32 within a row, double across rows and
// chunks. Deterministic: rows are one thread's; sums are taken over a number of chunks that depends
// on the size only.
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"
#include "kernels/pair_loss.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

float log_sum_exp_of(const float* x, int64_t n) {
  float m = -__builtin_inff();
#pragma omp simd reduction(max : m)
  for (int64_t j = 0; j < n; ++j) m = x[j] > m ? x[j] : m;
  float sum = 0;
#pragma omp simd reduction(+ : sum)
  for (int64_t j = 0; j < n; ++j) sum += fn::fast_exp(x[j] - m);
  return m + std::log(sum);
}

// Sum of value(i) over 0..n-1 in double.
template <class Value>
double ordered_sum(int64_t n, const Value& value) {
  constexpr int64_t kMostChunks = 64;
  double partial[kMostChunks] = {};
  const int64_t wanted = n / kGrain;
  const int64_t chunks = wanted < 1 ? 1 : (wanted > kMostChunks ? kMostChunks : wanted);
  parallel_chunks(n, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    double sum = 0;
    for (int64_t i = begin; i < end; ++i) sum += value(i);
    partial[chunk] = sum;
  });
  double sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) sum += partial[chunk];
  return sum;
}

}  // namespace

void cross_entropy(float* loss, float* log_sum_exp, float* divisor, const float* logits,
                   const int64_t* labels, const float* soft, const float* class_weights,
                   const CrossEntropyShape& shape) {
  const int64_t c = shape.classes;
  const float smooth = shape.label_smoothing, share = smooth / static_cast<float>(c);
  parallel_for(shape.rows, 8 * c, [=, &shape](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* x = logits + r * c;
      const float lse = log_sum_exp_of(x, c);
      log_sum_exp[r] = lse;
      float sum = 0;
      if (soft != nullptr) {
        const float* target = soft + r * c;
#pragma omp simd reduction(+ : sum)
        for (int64_t j = 0; j < c; ++j) {
          const float w = class_weights ? class_weights[j] : 1.0f;
          sum += w * ((1 - smooth) * target[j] + share) * (lse - x[j]);
        }
      } else if (labels[r] != shape.ignore_index) {
        if (smooth != 0) {
#pragma omp simd reduction(+ : sum)
          for (int64_t j = 0; j < c; ++j) {
            sum += (class_weights ? class_weights[j] : 1.0f) * (lse - x[j]);
          }
        }
        const int64_t y = labels[r];
        const float w = class_weights ? class_weights[y] : 1.0f;
        sum = (1 - smooth) * w * (lse - x[y]) + (smooth != 0 ? share * sum : 0.0f);
      }
      loss[r] = sum;
    }
  });
  double total = static_cast<double>(shape.rows);
  if (soft == nullptr) {
    total = 0;
    for (int64_t r = 0; r < shape.rows; ++r) {
      if (labels[r] != shape.ignore_index) total += class_weights ? class_weights[labels[r]] : 1.0f;
    }
  }
  *divisor = static_cast<float>(total);
}

void cross_entropy_grad(float* dlogits, const float* g, bool g_per_row, const float* divisor,
                        const float* logits, const float* log_sum_exp, const int64_t* labels,
                        const float* soft, const float* class_weights,
                        const CrossEntropyShape& shape) {
  const int64_t c = shape.classes;
  const float smooth = shape.label_smoothing, share = smooth / static_cast<float>(c);
  // Sum over the classes of the smoothing part of t.
  float smooth_total = smooth;
  if (smooth != 0 && class_weights != nullptr) {
    double sum = 0;
    for (int64_t j = 0; j < c; ++j) sum += class_weights[j];
    smooth_total = static_cast<float>(sum * static_cast<double>(share));
  }
  const float inverse = divisor ? 1.0f / *divisor : 1.0f;
  parallel_for(shape.rows, 8 * c, [=, &shape](int64_t begin, int64_t end) {
    for (int64_t r = begin; r < end; ++r) {
      const float* __restrict x = logits + r * c;
      float* __restrict dx = dlogits + r * c;
      const float scale = g[g_per_row ? r : 0] * inverse, lse = log_sum_exp[r];
      if (soft != nullptr) {
        const float* __restrict target = soft + r * c;
        float total = 0;
#pragma omp simd reduction(+ : total)
        for (int64_t j = 0; j < c; ++j) {
          total += (class_weights ? class_weights[j] : 1.0f) * ((1 - smooth) * target[j] + share);
        }
        for (int64_t j = 0; j < c; ++j) {
          const float t =
              (class_weights ? class_weights[j] : 1.0f) * ((1 - smooth) * target[j] + share);
          dx[j] = scale * (fn::fast_exp(x[j] - lse) * total - t);
        }
      } else if (labels[r] == shape.ignore_index) {
        for (int64_t j = 0; j < c; ++j) dx[j] = 0;
      } else {
        const int64_t y = labels[r];
        const float own = (1 - smooth) * (class_weights ? class_weights[y] : 1.0f);
        const float total = own + smooth_total;
        for (int64_t j = 0; j < c; ++j) {
          const float t = share * (class_weights ? class_weights[j] : 1.0f);
          dx[j] = scale * (fn::fast_exp(x[j] - lse) * total - t);
        }
        dx[y] -= scale * own;
      }
    }
  });
}

void pair_loss(PairLoss kind, float* loss, const float* x, const float* target, float delta,
               int64_t n) {
  visit(kind, [=](auto formula) {
    using F = decltype(formula);
    parallel_for(n, 2, [=](int64_t begin, int64_t end) {
      for (int64_t i = begin; i < end; ++i) {
        loss[i] = F::value(x[i], target[i], delta);
      }
    });
  });
}

void pair_loss_sum(PairLoss kind, float* sum, const float* x, const float* target, float delta,
                   float scale, int64_t n) {
  visit(kind, [=](auto formula) {
    using F = decltype(formula);
    const double total = ordered_sum(
        n, [=](int64_t i) { return static_cast<double>(F::value(x[i], target[i], delta)); });
    *sum = static_cast<float>(total * static_cast<double>(scale));
  });
}

void pair_loss_grad(PairLoss kind, float* dx, const float* g, bool g_per_element, const float* x,
                    const float* target, float delta, float scale, int64_t n) {
  visit(kind, [=](auto formula) {
    using F = decltype(formula);
    parallel_for(n, 2, [=](int64_t begin, int64_t end) {
      if (g_per_element) {
        for (int64_t i = begin; i < end; ++i) {
          dx[i] = scale * g[i] * F::slope(x[i], target[i], delta);
        }
      } else {
        const float factor = scale * g[0];
        for (int64_t i = begin; i < end; ++i) {
          dx[i] = factor * F::slope(x[i], target[i], delta);
        }
      }
    });
  });
}

void loss_sum(float* out, const float* x, const float* divisor, int64_t n) {
  const double total = ordered_sum(n, [=](int64_t i) { return static_cast<double>(x[i]); });
  *out = static_cast<float>(divisor ? total / static_cast<double>(*divisor) : total);
}

}  // namespace graft::cpu::GRAFT_ISA
