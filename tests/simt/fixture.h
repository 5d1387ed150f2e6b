// What the cases of simt_test.cpp stand on: a device without old errors, arrays, streams, a child.
#pragma once

#include <algorithm>
#include <csignal>
#include <doctest/doctest.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "kernels/cuda/launch.cuh"
#include "kernels/simt/memory.h"
#include "kernels/simt/runtime.h"

namespace graft::simt_tests {

using cuda::check;

// Fresh errors before a test, none left behind, and no block of memory lost on the way.
struct FreshDevice {
  size_t blocks = simt::device_live_blocks();
  FreshDevice() { reset(); }
  ~FreshDevice() {
    reset();
    CHECK(simt::device_live_blocks() == blocks);
  }
  static void reset() {
    simt::reset_device();
    simt::set_order(simt::Order::forward, 0);
  }
};

template <class T>
struct Array {
  explicit Array(size_t n, T value = {}) : Array(std::vector<T>(n, value)) {}
  explicit Array(const std::vector<T>& values) : size(values.size()) {
    void* memory = nullptr;
    check(cudaMalloc(&memory, bytes()), "array");
    data = static_cast<T*>(memory);
    check(cudaMemcpyAsync(data, values.data(), bytes(), cudaMemcpyHostToDevice, cuda::stream()),
          "array");
  }
  ~Array() {
    if (cudaFree(data) == cudaSuccess) return;
    simt::reset_device();  // after an error that was wanted
    cudaFree(data);
  }
  Array(const Array&) = delete;
  Array& operator=(const Array&) = delete;
  size_t bytes() const { return size * sizeof(T); }
  std::vector<T> values() const {
    std::vector<T> host(size);
    check(cudaMemcpyAsync(host.data(), data, bytes(), cudaMemcpyDeviceToHost, cuda::stream()),
          "array");
    check(cudaStreamSynchronize(cuda::stream()), "array");
    return host;
  }
  T* data = nullptr;
  size_t size;
};

struct Pinned {
  explicit Pinned(size_t n, float value) : size(n) {
    void* memory = nullptr;
    check(cudaMallocHost(&memory, bytes()), "pinned");
    data = static_cast<float*>(memory);
    std::fill_n(data, n, value);
  }
  ~Pinned() { cudaFreeHost(data); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  size_t bytes() const { return size * sizeof(float); }
  float* data = nullptr;
  size_t size;
};

struct SideStream {
  SideStream() {
    check(cudaDeviceSynchronize(), "stream");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "stream");
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "stream");
  }
  ~SideStream() {
    CHECK(cudaEventDestroy(event) == cudaSuccess);
    CHECK(cudaStreamDestroy(stream) == cudaSuccess);
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
};

// The signal that ends a child process which does `what`; 0 when none does.
template <class What>
int fatal_signal(const What& what) {
  const pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    std::signal(SIGSEGV, SIG_DFL);
    what();
    _exit(0);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  return WIFSIGNALED(status) ? WTERMSIG(status) : 0;
}

}  // namespace graft::simt_tests
