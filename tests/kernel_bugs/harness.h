// What the kernels with mistakes and their correct twins have in common: device arrays, and the
// outcome of a run.
#pragma once

#include <cmath>
#include <cstdint>
#include <vector>

#include "kernels/cuda/launch.cuh"

namespace graft::bugs {

using Floats = std::vector<float>;

// What came out, and what a plain loop on the host says should have.
struct Outcome {
  Floats got, wanted;
};

// An array on the device. Its release reports what the simulated device noticed about it.
template <class T>
class DeviceArray {
 public:
  explicit DeviceArray(size_t n) : n_(n) {
    void* data = nullptr;
    cuda::check(cudaMalloc(&data, n * sizeof(T)), "bug");
    data_ = static_cast<T*>(data);
  }
  explicit DeviceArray(const std::vector<T>& values) : DeviceArray(values.size()) {
    cuda::check(cudaMemcpyAsync(data_, values.data(), n_ * sizeof(T), cudaMemcpyHostToDevice,
                                cuda::stream()),
                "bug");
  }
  ~DeviceArray() { cudaFree(data_); }
  DeviceArray(const DeviceArray&) = delete;
  DeviceArray& operator=(const DeviceArray&) = delete;

  T* data() const { return data_; }
  std::vector<T> to_host() const {
    std::vector<T> values(n_);
    cuda::check(cudaMemcpyAsync(values.data(), data_, n_ * sizeof(T), cudaMemcpyDeviceToHost,
                                cuda::stream()),
                "bug");
    cuda::check(cudaStreamSynchronize(cuda::stream()), "bug");
    return values;
  }

 private:
  T* data_;
  size_t n_;
};

// Numbers that no two neighbours share; sums of a thousand of them are exact in float.
inline Floats numbers(size_t n, unsigned seed = 1) {
  Floats values(n);
  for (size_t i = 0; i < n; ++i) {
    values[i] = static_cast<float>((i * 7 + seed * 13) % 61) - 20.0f;
  }
  return values;
}

// Picks the mistaken or the correct kernel; both are instances of one template.
#define GRAFT_TWIN(kernel, broken) ((broken) ? &kernel<true> : &kernel<false>)

// Runs `kernel` for an array of `n` results.
template <class... Params, class... Args>
Floats results_of(size_t n, cuda::Grid grid, size_t shared_bytes, void (*kernel)(Params...),
                  const Args&... args) {
  const DeviceArray<float> y(n);
  cuda::launch("bug", grid, shared_bytes, kernel, y.data(), args...);
  return y.to_host();
}

}  // namespace graft::bugs
