// Bias, GELU and dropout in one pass, as in Megatron-LM (Shoeybi et al. 2019).
//
//   y = keep(gelu(x + b)),  dx = keep(g) gelu'(x + b)
//
// Layout: rows of c floats. A thread takes the four elements of one Philox call, with 16-byte
// accesses, where c is a multiple of 4 and the arrays are aligned to 16 bytes; else one element.
// Numerics: f32, the formulas of functors.h. The mask is dropout.cu's: its bits depend on the key
// and the element's index alone, and are the same as on the CPU. dx may be g: every element is read
// and written by one thread. The chain with layer normalisation is in layer_norm.cu.
#include <cstdint>

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/keep.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// x + bias for the pack at element i.
template <int kWidth>
__device__ Pack<float, kWidth> biased(const float* x, const float* bias, int64_t i, int64_t c) {
  Pack<float, kWidth> pack = load<kWidth>(x + i);
  if (bias == nullptr) return pack;
  const Pack<float, kWidth> b = load<kWidth>(bias + divide(i, c).rest);
  for (int k = 0; k < kWidth; ++k) pack.v[k] += b.v[k];
  return pack;
}

template <int kWidth>
__global__ void bias_gelu_dropout_kernel(float* y, const float* x, const float* bias, Keep keep,
                                         RngKey key, int64_t n, int64_t c) {
  key = resolved(key);
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    Pack<float, W> pack = biased<W>(x, bias, i, c);
    for (float& value : pack.v) value = fn::Gelu::f(value, {});
    store(y + i, keep.of(pack, key, i));
  });
}

template <int kWidth>
__global__ void bias_gelu_dropout_grad_kernel(float* dx, const float* g, const float* x,
                                              const float* bias, Keep keep, RngKey key, int64_t n,
                                              int64_t c) {
  key = resolved(key);
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Pack<float, W> in = biased<W>(x, bias, i, c);
    Pack<float, W> pack = keep.of(load<W>(g + i), key, i);
    for (int k = 0; k < W; ++k) pack.v[k] *= fn::Gelu::d(in.v[k], 0, {});
    store(dx + i, pack);
  });
}

constexpr int kWide = kPackWidth<float>;

}  // namespace

void bias_gelu_dropout(float* y, const float* x, const float* bias, float probability, RngKey key,
                       int64_t rows, int64_t c) {
  const int64_t n = rows * c;
  const bool wide = c % kWide == 0 && aligned({y, x, bias});
  launch("bias_gelu_dropout", grid_for(wide ? n / kWide : n), 0,
         wide ? bias_gelu_dropout_kernel<kWide> : bias_gelu_dropout_kernel<1>, y, x, bias,
         keep_of(probability), key, n, c);
}

void bias_gelu_dropout_grad(float* dx, const float* g, const float* x, const float* bias,
                            float probability, RngKey key, int64_t rows, int64_t c) {
  const int64_t n = rows * c;
  const bool wide = c % kWide == 0 && aligned({dx, g, x, bias});
  launch("bias_gelu_dropout_grad", grid_for(wide ? n / kWide : n), 0,
         wide ? bias_gelu_dropout_grad_kernel<kWide> : bias_gelu_dropout_grad_kernel<1>, dx, g, x,
         bias, keep_of(probability), key, n, c);
}

}  // namespace graft::cuda
