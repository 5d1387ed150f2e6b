// Chains of a transformer block (Vaswani et al. 2017; in one pass as in Megatron-LM, Shoeybi et al.
// 2019): bias, GELU and dropout; bias, dropout, residual and layer normalisation.
//
//   y = keep(gelu(x + b)),  dx = keep(g) gelu'(x + b)
//   s = keep(x + b) + residual,  y = layer_norm(s);  ds = layer_norm'(g),  dx = keep(ds)
//
// Layout: rows of c floats, no alignment assumed. A block of elements goes through a chain in the
// first-level cache; layer normalisation reads the sum again, from wherever it fell. Numerics: f32,
// the formulas of functors.h and layer_norm.cpp. The mask is dropout.cpp's: the bits depend on the
// key and the element's index alone.
#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/keep.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

// body(at, count, biased, kept) for blocks of neighbouring elements: x + bias, and which stay.
template <class Body>
void for_biased(const float* x, const float* bias, uint32_t threshold, const RngKey& key,
                int64_t rows, int64_t c, const Body& body) {
  const int64_t n = rows * c, blocks = (n + kKeepWords - 1) / kKeepWords;
  parallel_for(blocks, 12 * kKeepWords, [=, &body](int64_t begin, int64_t end) {
    uint32_t kept[kKeepWords];
    float biased[kKeepWords];
    for (int64_t block = begin; block < end; ++block) {
      const int64_t at = block * kKeepWords, count = n - at < kKeepWords ? n - at : kKeepWords;
      keep_mask(kept, key, static_cast<uint64_t>(at), threshold);
      for (int64_t i = 0, column = at % c; i < count; column = 0) {
        const int64_t run = c - column < count - i ? c - column : count - i;
        for (int64_t k = 0; k < run; ++k) {
          biased[i + k] = bias == nullptr ? x[at + i + k] : x[at + i + k] + bias[column + k];
        }
        i += run;
      }
      body(at, count, biased, kept);
    }
  });
}

}  // namespace

void bias_gelu_dropout(float* y, const float* x, const float* bias, float probability, RngKey key,
                       int64_t rows, int64_t c) {
  const Keep keep = keep_of(probability);
  for_biased(x, bias, keep.threshold, key, rows, c,
             [=](int64_t at, int64_t count, const float* biased, const uint32_t* kept) {
               for (int64_t i = 0; i < count; ++i) {
                 const float value = fn::Gelu::f(biased[i], {}) * keep.scale;
                 y[at + i] = kept[i] ? value : 0.0f;
               }
             });
}

void bias_gelu_dropout_grad(float* dx, const float* g, const float* x, const float* bias,
                            float probability, RngKey key, int64_t rows, int64_t c) {
  const Keep keep = keep_of(probability);
  for_biased(x, bias, keep.threshold, key, rows, c,
             [=](int64_t at, int64_t count, const float* biased, const uint32_t* kept) {
               for (int64_t i = 0; i < count; ++i) {
                 const float value = g[at + i] * keep.scale * fn::Gelu::d(biased[i], 0, {});
                 dx[at + i] = kept[i] ? value : 0.0f;
               }
             });
}

void dropout_add_layer_norm(float* y, float* sum, float* stats, const float* x, const float* bias,
                            const float* residual, const float* weight, const float* shift,
                            float probability, RngKey key, int64_t rows, int64_t c, float epsilon) {
  const Keep keep = keep_of(probability);
  for_biased(x, bias, keep.threshold, key, rows, c,
             [=](int64_t at, int64_t count, const float* biased, const uint32_t* kept) {
               for (int64_t i = 0; i < count; ++i) {
                 const float value = kept[i] ? biased[i] * keep.scale : 0.0f;
                 sum[at + i] = value + residual[at + i];
               }
             });
  layer_norm(y, stats, sum, weight, shift, rows, c, epsilon);
}

void dropout_add_layer_norm_grad(float* dx, float* dsum, float* dweight, float* dshift,
                                 const float* g, const float* sum, const float* stats,
                                 const float* weight, float probability, RngKey key, int64_t rows,
                                 int64_t c) {
  layer_norm_grad(dsum, dweight, dshift, g, sum, stats, weight, rows, c);
  if (dx != nullptr) dropout(dx, dsum, probability, key, rows * c);
}

}  // namespace graft::cpu::GRAFT_ISA
