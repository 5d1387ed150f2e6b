// Optimizer steps over many parameters in one pass. Formulas are PyTorch's (torch.optim.SGD and
// AdamW; AdamW after Loshchilov and Hutter 2019); those of each kernel stand in
// kernels/list/optim.h.
//
// Layout: a list of flat arrays, treated as one long array that is cut evenly between the threads,
// so that one large layer does not keep the others waiting. No alignment assumed. Memory-bound:
// each array is read and written once. Numerics: f32, bias corrections come from the caller in
// double. Elementwise, hence deterministic; the sum of squares is taken in double over a number of
// chunks that depends on the sizes only.
#include <cmath>

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

template <bool has_buffer, bool nesterov>
void sgd_piece(float* __restrict p, const float* __restrict g, float* __restrict m, float rate,
               float momentum, float weight_decay, bool first, int64_t n) {
  // A first step copies the gradient into the buffer, whatever it held.
  const float keep = first ? 0.0f : momentum;
  for (int64_t i = 0; i < n; ++i) {
    float d = g[i] + weight_decay * p[i];
    if constexpr (has_buffer) {
      const float before = first ? 0.0f : m[i];
      const float average = keep * before + d;
      m[i] = average;
      d = nesterov ? d + momentum * average : average;
    }
    p[i] -= rate * d;
  }
}

void adamw_piece(float* __restrict p, const float* __restrict g, float* __restrict m,
                 float* __restrict v, float shrink, float beta1, float beta2, float step_size,
                 float root_scale, float epsilon, int64_t n) {
  const float share1 = 1.0f - beta1, share2 = 1.0f - beta2;
  for (int64_t i = 0; i < n; ++i) {
    const float d = g[i];
    const float average = m[i] + share1 * (d - m[i]);
    const float square = beta2 * v[i] + share2 * d * d;
    m[i] = average;
    v[i] = square;
    p[i] = p[i] * shrink - step_size * average / (std::sqrt(square) * root_scale + epsilon);
  }
}

}  // namespace

void sgd_step(const OptimTensor* tensors, int64_t count, OptimRates rates, float momentum,
              float weight_decay, bool nesterov) {
  const float learning_rate = rates.learning_rate;
  parallel_for(total_size(tensors, count), 2, [=](int64_t begin, int64_t end) {
    each_piece(tensors, count, begin, end, [=](const OptimTensor& t, int64_t from, int64_t to) {
      float* p = t.p + from;
      const float* g = t.g + from;
      const int64_t n = to - from;
      if (t.m == nullptr) {
        sgd_piece<false, false>(p, g, nullptr, learning_rate, momentum, weight_decay, t.first_step,
                                n);
      } else if (nesterov) {
        sgd_piece<true, true>(p, g, t.m + from, learning_rate, momentum, weight_decay, t.first_step,
                              n);
      } else {
        sgd_piece<true, false>(p, g, t.m + from, learning_rate, momentum, weight_decay,
                               t.first_step, n);
      }
    });
  });
}

void adamw_step(const OptimTensor* tensors, int64_t count, OptimRates rates, float beta1,
                float beta2, float epsilon) {
  parallel_for(total_size(tensors, count), 4, [=](int64_t begin, int64_t end) {
    each_piece(tensors, count, begin, end, [=](const OptimTensor& t, int64_t from, int64_t to) {
      adamw_piece(t.p + from, t.g + from, t.m + from, t.v + from, 1.0f - rates.decay, beta1, beta2,
                  rates.step_size, rates.root_scale, epsilon, to - from);
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

}  // namespace graft::cpu::GRAFT_ISA
