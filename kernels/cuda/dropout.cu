// Dropout (Srivastava et al. 2014) and drop path (Huang et al. 2016), on counter-based random
// numbers.
//
//   y_i = x_i / (1 - p) where u_i >= p, else 0;  u_i = uniform of word i of the key, 24 bits
//
// The gradient is the same function of the gradient, so no mask is stored. Layout: flat arrays; a
// thread takes the four elements of one Philox call, with 16-byte accesses where the arrays are
// aligned to 16 bytes. Numerics: f32. The bits depend on the key and the element's index alone:
// deterministic, and the same as on the CPU. y may be x: every element is read and written by one
// thread.
#include <cstdint>

#include "kernels/cuda/keep.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr int kWords = 4;  // of one Philox call

template <class T>
__global__ void dropout_kernel(T* y, const T* x, Keep keep, RngKey key, bool wide, int64_t n) {
  key = resolved(key);
  const int64_t step = int64_t{gridDim.x} * blockDim.x * kWords;
  int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWords;
  for (; i < n; i += step) {
    const Philox4 words = philox(key, static_cast<uint64_t>(i) / kWords);
    if (wide && i + kWords <= n) {
      Pack<T, kWords> pack = load<kWords>(x + i);
      for (int k = 0; k < kWords; ++k) {
        pack.v[k] = static_cast<T>(keep(static_cast<float>(pack.v[k]), words.v[k]));
      }
      store(y + i, pack);
    } else {
      for (int k = 0; k < kWords; ++k) {
        if (i + k < n) y[i + k] = static_cast<T>(keep(static_cast<float>(x[i + k]), words.v[k]));
      }
    }
  }
}

constexpr int64_t kSpan = 4096;  // elements of one row that a block takes

template <class T, int kWidth>
__global__ void drop_path_kernel(T* y, const T* x, Keep keep, RngKey key, int64_t spans,
                                 int64_t width) {
  const int64_t row = blockIdx.x / spans, begin = blockIdx.x % spans * kSpan;
  const int64_t end = min(begin + kSpan, width);
  const uint32_t word = philox_word(resolved(key), static_cast<uint64_t>(row));
  for (int64_t i = begin + int64_t{threadIdx.x} * kWidth; i < end; i += blockDim.x * kWidth) {
    Pack<T, kWidth> pack = load<kWidth>(x + row * width + i);
    for (T& value : pack.v) value = static_cast<T>(keep(static_cast<float>(value), word));
    store(y + row * width + i, pack);
  }
}

}  // namespace

void dropout(float* y, const float* x, float probability, RngKey key, int64_t n) {
  launch("dropout", grid_for((n + kWords - 1) / kWords), 0, dropout_kernel<float>, y, x,
         keep_of(probability), key, aligned({y, x}), n);
}

void drop_path(float* y, const float* x, float probability, RngKey key, int64_t rows,
               int64_t width) {
  constexpr const char* kOp = "drop_path";
  constexpr int kWide = kPackWidth<float>;
  const int64_t spans = (width + kSpan - 1) / kSpan;
  const Grid grid{rows * spans};
  if (width % kWide == 0 && aligned({y, x})) {
    launch(kOp, grid, 0, drop_path_kernel<float, kWide>, y, x, keep_of(probability), key, spans,
           width);
  } else {
    launch(kOp, grid, 0, drop_path_kernel<float, 1>, y, x, keep_of(probability), key, spans, width);
  }
}

}  // namespace graft::cuda
