// Optimizer steps over many parameters in one pass. Formulas are PyTorch's (torch.optim.SGD and
// AdamW; AdamW after Loshchilov and Hutter 2019); those of each kernel stand in
// kernels/list/optim.h.
//
// Layout: a list of flat arrays, treated as one long array that is cut evenly between the threads,
// so that one large layer does not keep the others waiting. No alignment assumed. Memory-bound:
// each array is read and written once. Numerics: f32, bias corrections come from the caller in
// double. Elementwise, hence deterministic; the sum of squares is taken in double over a number of
// chunks that depends on the sizes only. Clipping is a template parameter: unclipped steps contract
// their products with the sums that follow, which a multiplication in between could change.
#include <cmath>
#include <type_traits>

#include "kernels/clip.h"
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

int64_t total_size(const OptimTensor* tensors, int64_t count) {
  int64_t total = 0;
  for (int64_t t = 0; t < count; ++t) total += tensors[t].n;
  return total;
}

// Calls use(tensor, from, to) for the pieces of begin..end of the long array.
template <class Use>
void each_piece(const OptimTensor* tensors, int64_t count, int64_t begin, int64_t end,
                const Use& use) {
  int64_t start = 0;
  for (int64_t t = 0; t < count && start < end; ++t) {
    const int64_t n = tensors[t].n;
    const int64_t from = begin > start ? begin - start : 0;
    const int64_t to = end - start < n ? end - start : n;
    if (from < to) use(tensors[t], from, to);
    start += n;
  }
}

template <bool clipped, bool has_buffer, bool nesterov>
void sgd_piece(float* __restrict p, const float* __restrict g, float* __restrict m, float rate,
               float clip, float momentum, float weight_decay, bool first, int64_t n) {
  // A first step copies the gradient into the buffer, whatever it held.
  const float keep = first ? 0.0f : momentum;
  for (int64_t i = 0; i < n; ++i) {
    float d = (clipped ? clip * g[i] : g[i]) + weight_decay * p[i];
    if constexpr (has_buffer) {
      const float before = first ? 0.0f : m[i];
      const float average = keep * before + d;
      m[i] = average;
      d = nesterov ? d + momentum * average : average;
    }
    p[i] -= rate * d;
  }
}

template <bool clipped>
void adamw_piece(float* __restrict p, const float* __restrict g, float* __restrict m,
                 float* __restrict v, float clip, float shrink, float beta1, float beta2,
                 float step_size, float root_scale, float epsilon, int64_t n) {
  const float share1 = 1.0f - beta1, share2 = 1.0f - beta2;
  for (int64_t i = 0; i < n; ++i) {
    const float d = clipped ? clip * g[i] : g[i];
    const float average = m[i] + share1 * (d - m[i]);
    const float square = beta2 * v[i] + share2 * d * d;
    m[i] = average;
    v[i] = square;
    p[i] = p[i] * shrink - step_size * average / (std::sqrt(square) * root_scale + epsilon);
  }
}

// Calls use(std::true_type or std::false_type, factor).
template <class Use>
void with_clip(const float* clip, const Use& use) {
  if (clip != nullptr && *clip != 1.0f) {
    use(std::true_type(), *clip);
  } else {
    use(std::false_type(), 1.0f);
  }
}

}  // namespace

void sgd_step(const OptimTensor* tensors, int64_t count, OptimRates rates, const float* clip,
              float momentum, float weight_decay, bool nesterov) {
  const float learning_rate = rates.learning_rate;
  with_clip(clip, [=](auto clipped, float factor) {
    constexpr bool kClipped = decltype(clipped)::value;
    parallel_for(total_size(tensors, count), 2, [=](int64_t begin, int64_t end) {
      each_piece(tensors, count, begin, end, [=](const OptimTensor& t, int64_t from, int64_t to) {
        float* p = t.p + from;
        const float* g = t.g + from;
        const int64_t n = to - from;
        if (t.m == nullptr) {
          sgd_piece<kClipped, false, false>(p, g, nullptr, learning_rate, factor, momentum,
                                            weight_decay, t.first_step, n);
        } else if (nesterov) {
          sgd_piece<kClipped, true, true>(p, g, t.m + from, learning_rate, factor, momentum,
                                          weight_decay, t.first_step, n);
        } else {
          sgd_piece<kClipped, true, false>(p, g, t.m + from, learning_rate, factor, momentum,
                                           weight_decay, t.first_step, n);
        }
      });
    });
  });
}

void adamw_step(const OptimTensor* tensors, int64_t count, OptimRates rates, const float* clip,
                float beta1, float beta2, float epsilon) {
  with_clip(clip, [=](auto clipped, float factor) {
    constexpr bool kClipped = decltype(clipped)::value;
    parallel_for(total_size(tensors, count), 4, [=](int64_t begin, int64_t end) {
      each_piece(tensors, count, begin, end, [=](const OptimTensor& t, int64_t from, int64_t to) {
        adamw_piece<kClipped>(t.p + from, t.g + from, t.m + from, t.v + from, factor,
                              1.0f - rates.decay, beta1, beta2, rates.step_size, rates.root_scale,
                              epsilon, to - from);
      });
    });
  });
}

void scale_tensors(const OptimTensor* tensors, int64_t count, float factor) {
  parallel_for(total_size(tensors, count), 1, [=](int64_t begin, int64_t end) {
    each_piece(tensors, count, begin, end, [=](const OptimTensor& t, int64_t from, int64_t to) {
      float* p = t.p;
      for (int64_t i = from; i < to; ++i) p[i] *= factor;
    });
  });
}

void gradient_square_sum(double* sum, const OptimTensor* tensors, int64_t count) {
  constexpr int64_t kMostChunks = 64;
  double partial[kMostChunks] = {};
  const int64_t total = total_size(tensors, count), wanted = total / kGrain;
  const int64_t chunks = wanted < 1 ? 1 : (wanted > kMostChunks ? kMostChunks : wanted);
  parallel_chunks(total, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    double own = 0;
    each_piece(tensors, count, begin, end, [&](const OptimTensor& t, int64_t from, int64_t to) {
      const float* __restrict g = t.g;
#pragma omp simd reduction(+ : own)
      for (int64_t i = from; i < to; ++i) {
        own += static_cast<double>(g[i]) * static_cast<double>(g[i]);
      }
    });
    partial[chunk] = own;
  });
  *sum = 0;
  for (int64_t chunk = 0; chunk < chunks; ++chunk) *sum += partial[chunk];
}

void clip_factor(float* factor, const OptimTensor* tensors, int64_t count, float max_norm) {
  double sum = 0;
  gradient_square_sum(&sum, tensors, count);
  *factor = clip_factor_of(sum, static_cast<double>(max_norm));
}

}  // namespace graft::cpu::GRAFT_ISA
