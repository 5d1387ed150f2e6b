// The GPU and its driver in words. No kernel; compiled out of the simulated device, which has no
// libraries.
#include "kernels/cuda/library_choice.h"

#ifndef GRAFT_SIMT

#include "kernels/cuda/launch.cuh"

namespace graft::cuda {
namespace {

std::string describe_device() {
  cudaDeviceProp device;
  int driver = 0;
  check(cudaGetDeviceProperties(&device, 0), "device");
  check(cudaDriverGetVersion(&driver), "device");
  return text(device.name, ", sm_", device.major, device.minor, ", ", device.multiProcessorCount,
              " multiprocessors, driver ", driver);
}

}  // namespace

std::string choice_key(const char* library, uint64_t version, const std::vector<int64_t>& shape) {
  static const std::string device = describe_device();
  std::string key = text(library, " ", version, ", ", device, ":");
  for (const int64_t number : shape) key += text(" ", number);
  return key;
}

}  // namespace graft::cuda

#endif
