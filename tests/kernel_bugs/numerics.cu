// Wrong formulas and rounding: nothing but a reference finds these.
#include "kernels/cuda/reduce.cuh"
#include "kernels/functors.h"
#include "kernels/philox.h"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

template <bool kBroken>
__global__ void unbiased_variance_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(threadIdx.x);
  const float mean = cuda::block_reduce(i < n ? x[i] : 0.0f, cuda::Sum{}) / static_cast<float>(n);
  const float offset = i < n ? x[i] - mean : 0.0f;
  const float squares = cuda::block_reduce(offset * offset, cuda::Sum{});
  if (i == 0) y[0] = squares / static_cast<float>(kBroken ? n : n - 1);
}

// E[x^2] - E[x]^2 of numbers far from zero: everything cancels.
template <bool kBroken>
__global__ void variance_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(threadIdx.x);
  const float value = i < n ? x[i] : 0.0f, count = static_cast<float>(n);
  const float mean = cuda::block_reduce(value, cuda::Sum{}) / count;
  const float offset = kBroken ? value : (i < n ? value - mean : 0.0f);
  const float squares = cuda::block_reduce(offset * offset, cuda::Sum{}) / count;
  if (i == 0) y[0] = kBroken ? squares - mean * mean : squares;
}

template <bool kBroken>
__global__ void largest_kernel(float* y, const float* x) {
  const float largest =
      kBroken ? cuda::warp_reduce(x[threadIdx.x], [](float a, float b) { return fmaxf(a, b); })
              : cuda::warp_reduce(x[threadIdx.x], cuda::Largest{});
  if (threadIdx.x == 0) y[0] = largest;
}

// To bf16 and back: to the nearest, ties to even.
template <bool kBroken>
__global__ void round_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  unsigned bits = __float_as_uint(x[i]);
  if (!kBroken) bits += 0x7FFFu + (bits >> 16 & 1);
  y[i] = __uint_as_float(bits & 0xFFFF0000u);
}

template <bool kBroken>
__global__ void uniform_kernel(float* y, RngKey key, int n) {
  const int i = 4 * static_cast<int>(threadIdx.x);
  const Philox4 words = philox(key, static_cast<uint64_t>(kBroken ? i : i / 4));
  for (int k = 0; k < 4 && i + k < n; ++k) y[i + k] = to_uniform(words.v[k]);
}

template <bool kBroken>
__global__ void softmax_kernel(float* y, const float* x) {
  const float value = x[threadIdx.x];
  const float shift = kBroken ? 0.0f : cuda::warp_reduce(value, cuda::Largest{});
  const float e = expf(value - shift);
  y[threadIdx.x] = e / cuda::warp_reduce(e, cuda::Sum{});
}

// The mean of a row that is padded to the block's size.
template <bool kBroken>
__global__ void mean_kernel(float* y, const float* x, unsigned n) {
  const float sum = cuda::block_reduce(threadIdx.x < n ? x[threadIdx.x] : 0.0f, cuda::Sum{});
  if (threadIdx.x == 0) y[0] = sum / static_cast<float>(kBroken ? blockDim.x : n);
}

// Counts beyond 2^24 in float stay where they are.
template <bool kBroken>
__global__ void count_kernel(float* y, float start, int n) {
  if (threadIdx.x > 0) return;
  float lost = start;
  double kept = double{start};
  for (int i = 0; i < n; ++i) {
    lost += 1.0f;
    kept += 1.0;
  }
  y[0] = kBroken ? lost - start : static_cast<float>(kept - double{start});
}

// The gradient of ReLU at 0 is 0, and so is that of what it cut off.
template <bool kBroken>
__global__ void relu_gradient_kernel(float* gx, const float* y, const float* g, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) gx[i] = (kBroken ? y[i] >= 0 : y[i] > 0) ? g[i] : 0.0f;
}

// The end of a product whose k was cut into three chunks.
template <bool kBroken>
__global__ void gelu_kernel(float* y, const float* chunks, int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i >= n) return;
  float sum = 0;
  for (int chunk = 0; chunk < 3; ++chunk) {
    const float part = chunks[chunk * n + i];
    sum += kBroken ? fn::Gelu::f(part, {}) : part;
  }
  y[i] = kBroken ? sum : fn::Gelu::f(sum, {});
}

template <bool kBroken>
__global__ void gelu_gradient_kernel(float* gx, const float* x, const float* y, const float* g,
                                     int n) {
  const int i = static_cast<int>(threadIdx.x);
  if (i < n) gx[i] = g[i] * fn::Gelu::d(kBroken ? y[i] : x[i], 0, {});
}

double gelu(double x) { return x / 2 * std::erfc(-x / std::sqrt(2.0)); }

double variance(const Floats& x) {
  double mean = 0, squares = 0;
  for (float value : x) mean += value / static_cast<double>(x.size());
  for (float value : x) squares += (value - mean) * (value - mean);
  return squares / static_cast<double>(x.size());
}

}  // namespace

Outcome biased_variance(bool broken) {
  const Floats x = numbers(50);
  const DeviceArray<float> input(x);
  return {results_of(1, {1, 64}, 0, GRAFT_TWIN(unbiased_variance_kernel, broken), input.data(), 50),
          {static_cast<float>(variance(x) * 50 / 49)}};
}

Outcome variance_cancels(bool broken) {
  Floats x = numbers(64);
  for (float& value : x) value += 30000;
  const DeviceArray<float> input(x);
  return {results_of(1, {1, 64}, 0, GRAFT_TWIN(variance_kernel, broken), input.data(), 64),
          {static_cast<float>(variance(x))}};
}

Outcome nan_lost(bool broken) {
  Floats x = numbers(32);
  x[11] = std::nanf("");
  const DeviceArray<float> input(x);
  return {results_of(1, {1, 32}, 0, GRAFT_TWIN(largest_kernel, broken), input.data()), {x[11]}};
}

Outcome bf16_truncated(bool broken) {
  const Floats x{1.0f, 1.00390625f, 1.01171875f, -3.1415926f, 1e-3f, 65504.0f, 0.1f};
  const Floats wanted{1.0f, 1.0f, 1.015625f, -3.140625f, 9.9945068e-4f, 65536.0f, 0.100097656f};
  const DeviceArray<float> input(x);
  return {results_of(7, {1, 32}, 0, GRAFT_TWIN(round_kernel, broken), input.data(), 7), wanted};
}

Outcome wrong_philox_counter(bool broken) {
  const RngKey key{42, 3, 7};
  Floats wanted;
  for (uint64_t i = 0; i < 50; ++i) wanted.push_back(to_uniform(philox_word(key, i)));
  return {results_of(50, {1, 32}, 0, GRAFT_TWIN(uniform_kernel, broken), key, 50), wanted};
}

Outcome softmax_overflows(bool broken) {
  Floats x(32);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 80 + static_cast<float>(i);
  const DeviceArray<float> input(x);
  double sum = 0;
  for (float value : x) sum += std::exp(double{value} - 111);
  Floats wanted;
  for (float value : x) wanted.push_back(static_cast<float>(std::exp(double{value} - 111) / sum));
  return {results_of(32, {1, 32}, 0, GRAFT_TWIN(softmax_kernel, broken), input.data()), wanted};
}

Outcome mean_of_padded_row(bool broken) {
  const Floats x = numbers(50);
  const DeviceArray<float> input(x);
  float sum = 0;
  for (float value : x) sum += value;
  return {results_of(1, {1, 64}, 0, GRAFT_TWIN(mean_kernel, broken), input.data(), 50u),
          {sum / 50}};
}

Outcome float_counter_stands_still(bool broken) {
  return {results_of(1, {1, 32}, 0, GRAFT_TWIN(count_kernel, broken), 16777216.0f, 100), {100.0f}};
}

Outcome gradient_at_the_kink(bool broken) {
  const Floats y{0, 1, 2, 0, 0, 3}, g = numbers(6);
  const DeviceArray<float> output(y), gradient(g);
  Floats wanted;
  for (size_t i = 0; i < 6; ++i) wanted.push_back(y[i] > 0 ? g[i] : 0.0f);
  return {results_of(6, {1, 32}, 0, GRAFT_TWIN(relu_gradient_kernel, broken), output.data(),
                     gradient.data(), 6),
          wanted};
}

Outcome gelu_of_chunks(bool broken) {
  Floats chunks = numbers(60), wanted;
  for (float& value : chunks) value /= 16;
  for (size_t i = 0; i < 20; ++i) {
    wanted.push_back(static_cast<float>(gelu(chunks[i] + chunks[20 + i] + chunks[40 + i])));
  }
  const DeviceArray<float> input(chunks);
  return {results_of(20, {1, 32}, 0, GRAFT_TWIN(gelu_kernel, broken), input.data(), 20), wanted};
}

Outcome gelu_slope_of_result(bool broken) {
  Floats x = numbers(30), y, wanted;
  const Floats g = numbers(30, 2);
  for (size_t i = 0; i < x.size(); ++i) {
    x[i] /= 16;
    y.push_back(static_cast<float>(gelu(x[i])));
    const double slope = (gelu(x[i] + 1e-5) - gelu(x[i] - 1e-5)) / 2e-5;
    wanted.push_back(static_cast<float>(g[i] * slope));
  }
  const DeviceArray<float> before(x), after(y), gradient(g);
  return {results_of(30, {1, 32}, 0, GRAFT_TWIN(gelu_gradient_kernel, broken), before.data(),
                     after.data(), gradient.data(), 30),
          wanted};
}

}  // namespace graft::bugs
