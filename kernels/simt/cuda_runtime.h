// What <cuda_runtime.h> is to nvcc, for the simulated device: the part of CUDA that kernels/cuda
// uses, under CUDA's names. Asynchronous means late here: work on a stream runs when the host
// waits.
#pragma once

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>

#include "kernels/simt/machine.h"

#define __global__
#define __device__
#define __host__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __align__(n) alignas(n)
#define __grid_constant__

// ---- host API

enum cudaError_t {
  cudaSuccess = 0,
  cudaErrorInvalidValue = 1,
  cudaErrorMemoryAllocation = 2,
  cudaErrorInitializationError = 3,
  cudaErrorInvalidConfiguration = 9,
  cudaErrorInsufficientDriver = 35,
  cudaErrorNoDevice = 100,
  cudaErrorInvalidDevice = 101,
  cudaErrorECCUncorrectable = 214,
  cudaErrorInvalidResourceHandle = 400,
  cudaErrorNotReady = 600,
  cudaErrorIllegalAddress = 700,
  cudaErrorLaunchFailure = 719,
  cudaErrorStreamCaptureUnsupported = 900,
  cudaErrorStreamCaptureInvalidated = 901,
};
enum cudaMemcpyKind {
  cudaMemcpyHostToHost,
  cudaMemcpyHostToDevice,
  cudaMemcpyDeviceToHost,
  cudaMemcpyDeviceToDevice,
  cudaMemcpyDefault,
};
enum cudaDeviceAttr {
  cudaDevAttrMultiProcessorCount = 16,
  cudaDevAttrComputeCapabilityMajor = 75,
  cudaDevAttrComputeCapabilityMinor = 76,
  cudaDevAttrMaxSharedMemoryPerBlockOptin = 97,
};
enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize = 8 };
enum cudaStreamCaptureMode {
  cudaStreamCaptureModeGlobal,
  cudaStreamCaptureModeThreadLocal,
  cudaStreamCaptureModeRelaxed
};
constexpr unsigned cudaStreamNonBlocking = 1, cudaEventDisableTiming = 2;

namespace graft::simt {
struct Stream;
struct Event;
struct Graph;
}  // namespace graft::simt
using cudaStream_t = graft::simt::Stream*;
using cudaEvent_t = graft::simt::Event*;
using cudaGraph_t = graft::simt::Graph*;
using cudaGraphExec_t = graft::simt::Graph*;
extern const cudaStream_t cudaStreamLegacy;

struct cudaDeviceProp {
  char name[256];
  size_t totalGlobalMem;
  int major, minor, multiProcessorCount;
};

const char* cudaGetErrorName(cudaError_t error);
const char* cudaGetErrorString(cudaError_t error);
cudaError_t cudaGetLastError();
cudaError_t cudaPeekAtLastError();

cudaError_t cudaGetDeviceCount(int* count);
cudaError_t cudaSetDevice(int device);
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int device);
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int device);
cudaError_t cudaDriverGetVersion(int* version);
cudaError_t cudaRuntimeGetVersion(int* version);
cudaError_t cudaDeviceSynchronize();

cudaError_t cudaMalloc(void** data, size_t bytes);
cudaError_t cudaFree(void* data);
cudaError_t cudaMallocHost(void** data, size_t bytes);
cudaError_t cudaFreeHost(void* data);
cudaError_t cudaMemGetInfo(size_t* free, size_t* total);
cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream);
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream);

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned flags);
cudaError_t cudaStreamDestroy(cudaStream_t stream);
cudaError_t cudaStreamSynchronize(cudaStream_t stream);
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned flags = 0);
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned flags);
cudaError_t cudaEventDestroy(cudaEvent_t event);
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream);
cudaError_t cudaEventSynchronize(cudaEvent_t event);

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode);
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph);
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long flags = 0);
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream);
cudaError_t cudaGraphDestroy(cudaGraph_t graph);
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable);

cudaError_t graft_simt_allow_shared(const void* kernel, size_t bytes);
template <class Kernel>
cudaError_t cudaFuncSetAttribute(Kernel* kernel, cudaFuncAttribute, int bytes) {
  return graft_simt_allow_shared(reinterpret_cast<const void*>(kernel), static_cast<size_t>(bytes));
}

// ---- device code

#define threadIdx (::graft::simt::here().thread)
#define blockIdx (::graft::simt::here().block)
#define blockDim (::graft::simt::here().block_size)
#define gridDim (::graft::simt::here().grid_size)
constexpr int warpSize = 32;

GRAFT_SIMT_PLAIN void __syncthreads(
    const graft::simt::Where& where = graft::simt::Where::current()) {
  graft::simt::barrier(false, where);
}
GRAFT_SIMT_PLAIN int __syncthreads_count(
    int predicate, const graft::simt::Where& where = graft::simt::Where::current()) {
  return graft::simt::barrier(predicate != 0, where).count;
}
GRAFT_SIMT_PLAIN int __syncthreads_and(
    int predicate, const graft::simt::Where& where = graft::simt::Where::current()) {
  return graft::simt::barrier(predicate != 0, where).all;
}
GRAFT_SIMT_PLAIN int __syncthreads_or(
    int predicate, const graft::simt::Where& where = graft::simt::Where::current()) {
  return graft::simt::barrier(predicate != 0, where).any;
}
GRAFT_SIMT_PLAIN void __syncwarp(unsigned mask = ~0u,
                                 const graft::simt::Where& where = graft::simt::Where::current()) {
  graft::simt::warp_barrier(mask, where);
}
inline void __threadfence() {}
inline void __threadfence_block() {}

namespace graft::simt {

// The value of one lane of the meeting.
template <class T>
GRAFT_SIMT_PLAIN T take(const char* name, unsigned mask, T mine, unsigned lane,
                        const Where& where) {
  static_assert(sizeof(T) <= kExchangeBytes);
  Exchange* exchange = begin_exchange(name, mask, &mine, sizeof(T), where);
  T result;
  __builtin_memcpy(&result, brought_by(exchange, lane), sizeof(T));
  end_exchange(exchange);
  return result;
}
// f(result, value) over the lanes of the meeting, lowest lane first.
template <class T, class R, class F>
GRAFT_SIMT_PLAIN R fold(const char* name, unsigned mask, T mine, R result, F f,
                        const Where& where) {
  Exchange* exchange = begin_exchange(name, mask, &mine, sizeof(T), where);
  for (unsigned lane = 0; lane < kWarpSize; ++lane) {
    if ((mask >> lane & 1) == 0) continue;
    T value;
    __builtin_memcpy(&value, brought_by(exchange, lane), sizeof(T));
    result = f(result, value, lane);
  }
  end_exchange(exchange);
  return result;
}
GRAFT_SIMT_PLAIN unsigned lane_here() { return here().lane(); }
GRAFT_SIMT_PLAIN void check_aligned(const void* data, size_t bytes) {
  if (reinterpret_cast<uintptr_t>(data) % bytes != 0) misaligned(bytes);
}
GRAFT_SIMT_PLAIN void check_width(const char* name, int width) {
  if (width < 1 || width > kWarpSize || (width & (width - 1)) != 0) bad_width(name, width);
}

}  // namespace graft::simt

template <class T>
GRAFT_SIMT_PLAIN T __shfl_sync(unsigned mask, T value, int source, int width = 32,
                               const graft::simt::Where& where = graft::simt::Where::current()) {
  graft::simt::check_width("__shfl_sync", width);
  const int lane = static_cast<int>(graft::simt::lane_here());
  const int from = (lane & ~(width - 1)) | (source & (width - 1));
  return graft::simt::take("__shfl_sync", mask, value, static_cast<unsigned>(from), where);
}
template <class T>
GRAFT_SIMT_PLAIN T
__shfl_xor_sync(unsigned mask, T value, int bits, int width = 32,
                const graft::simt::Where& where = graft::simt::Where::current()) {
  graft::simt::check_width("__shfl_xor_sync", width);
  const int lane = static_cast<int>(graft::simt::lane_here()), from = lane ^ bits;
  const bool inside = (from & ~(width - 1)) <= (lane & ~(width - 1));
  return graft::simt::take("__shfl_xor_sync", mask, value,
                           static_cast<unsigned>(inside ? from : lane), where);
}
template <class T>
GRAFT_SIMT_PLAIN T
__shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32,
                 const graft::simt::Where& where = graft::simt::Where::current()) {
  graft::simt::check_width("__shfl_down_sync", width);
  const unsigned lane = graft::simt::lane_here();
  const unsigned last = lane | static_cast<unsigned>(width - 1);
  return graft::simt::take("__shfl_down_sync", mask, value,
                           lane + delta <= last ? lane + delta : lane, where);
}
template <class T>
GRAFT_SIMT_PLAIN T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32,
                                  const graft::simt::Where& where = graft::simt::Where::current()) {
  graft::simt::check_width("__shfl_up_sync", width);
  const unsigned lane = graft::simt::lane_here();
  const unsigned first = lane & ~static_cast<unsigned>(width - 1);
  return graft::simt::take("__shfl_up_sync", mask, value,
                           lane >= first + delta ? lane - delta : lane, where);
}
GRAFT_SIMT_PLAIN unsigned __ballot_sync(
    unsigned mask, int predicate, const graft::simt::Where& where = graft::simt::Where::current()) {
  return graft::simt::fold(
      "__ballot_sync", mask, predicate != 0, 0u,
      [](unsigned bits, bool set, unsigned lane) { return set ? bits | 1u << lane : bits; }, where);
}
GRAFT_SIMT_PLAIN int __any_sync(unsigned mask, int predicate,
                                const graft::simt::Where& where = graft::simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) != 0;
}
GRAFT_SIMT_PLAIN int __all_sync(unsigned mask, int predicate,
                                const graft::simt::Where& where = graft::simt::Where::current()) {
  return __ballot_sync(mask, predicate, where) == mask;
}
// The lanes of the mask whose value is this one's.
template <class T>
GRAFT_SIMT_PLAIN unsigned __match_any_sync(
    unsigned mask, T value, const graft::simt::Where& where = graft::simt::Where::current()) {
  return graft::simt::fold(
      "__match_any_sync", mask, value, 0u,
      [=](unsigned bits, T other, unsigned lane) {
        return other == value ? bits | 1u << lane : bits;
      },
      where);
}

namespace graft::simt {
// An atomic access, for the race detector. Defined where nothing is instrumented.
void note_atomic(const void* data, size_t bytes);
}  // namespace graft::simt

template <class T, class F>
GRAFT_SIMT_PLAIN T graft_simt_atomic(T* at, F change) {
  graft::simt::note_atomic(at, sizeof(T));
  const T before = *at;
  *at = change(before);
  return before;
}
template <class T>
GRAFT_SIMT_PLAIN T atomicAdd(T* at, T value) {
  return graft_simt_atomic(at, [=](T old) { return static_cast<T>(old + value); });
}
template <class T>
GRAFT_SIMT_PLAIN T atomicMax(T* at, T value) {
  return graft_simt_atomic(at, [=](T old) { return old < value ? value : old; });
}
template <class T>
GRAFT_SIMT_PLAIN T atomicMin(T* at, T value) {
  return graft_simt_atomic(at, [=](T old) { return value < old ? value : old; });
}
template <class T>
GRAFT_SIMT_PLAIN T atomicExch(T* at, T value) {
  return graft_simt_atomic(at, [=](T) { return value; });
}
template <class T>
GRAFT_SIMT_PLAIN T atomicCAS(T* at, T expected, T value) {
  return graft_simt_atomic(at, [=](T old) { return old == expected ? value : old; });
}
template <class T>
GRAFT_SIMT_PLAIN T atomicOr(T* at, T value) {
  return graft_simt_atomic(at, [=](T old) { return static_cast<T>(old | value); });
}

template <class T>
inline T __ldg(const T* at) {
  return *at;
}
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>((uint64_t{a} * b) >> 32);
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __float_as_uint(float x) { return __builtin_bit_cast(unsigned, x); }
inline float __uint_as_float(unsigned x) { return __builtin_bit_cast(float, x); }
inline int __float_as_int(float x) { return __builtin_bit_cast(int, x); }
inline float __int_as_float(int x) { return __builtin_bit_cast(float, x); }
inline float __fmul_rn(float a, float b) { return a * b; }
inline float rsqrtf(float x) { return 1.0f / std::sqrt(x); }
inline double rsqrt(double x) { return 1.0 / std::sqrt(x); }
inline float __expf(float x) { return std::exp(x); }
inline float __fdividef(float a, float b) { return a / b; }
template <class T>
constexpr T min(T a, T b) {
  return b < a ? b : a;
}
template <class T>
constexpr T max(T a, T b) {
  return a < b ? b : a;
}
