// Device memory and copies. A machine without a driver or a device reports 0 devices and can run
// everything on the CPU; only a request for device memory is an error there.
#include <algorithm>

#include "kernels/cuda/launch.cuh"
#include "kernels/device.h"

namespace graft::cuda {
namespace {

void select(const char* op, int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) cudaGetLastError();  // clears it
  GRAFT_CHECK(status == cudaSuccess && count > 0, op, ": no usable CUDA device (",
              cudaGetErrorString(status),
              "). Check with nvidia-smi that the NVIDIA driver is installed, or use --device cpu.");
  GRAFT_CHECK(device == 0, op, ": graft drives one GPU, cuda:0, got cuda:", device,
              "; choose the GPU with the environment variable CUDA_VISIBLE_DEVICES=", device);
  check(cudaSetDevice(device), op);
}

}  // namespace

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

void* allocate(size_t bytes, int device) {
  select("allocate", device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "allocate");
  return data;
}

void release(void* data, int device) {
  select("release", device);
  check(cudaFree(data), "release");
}

void copy(void* target, Device target_device, const void* source, Device source_device,
          size_t bytes) {
  if (bytes == 0) return;
  select("copy", (target_device.is_cpu() ? source_device : target_device).index);
  const cudaMemcpyKind kind = target_device.is_cpu()   ? cudaMemcpyDeviceToHost
                              : source_device.is_cpu() ? cudaMemcpyHostToDevice
                                                       : cudaMemcpyDeviceToDevice;
  check(cudaMemcpyAsync(target, source, bytes, kind, kStream), "copy");
  check(cudaStreamSynchronize(kStream), "copy");
}

void fill_bytes(void* target, int value, size_t bytes, int device) {
  if (bytes == 0) return;
  select("fill", device);
  check(cudaMemsetAsync(target, value, bytes, kStream), "fill");
}

Grid grid_for(int64_t items) {
  static const int64_t most = [] {
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "launch");
    return int64_t{16} * multiprocessors;
  }();
  return {static_cast<unsigned>(std::min((items + kThreads - 1) / kThreads, most)), kThreads};
}

}  // namespace graft::cuda
