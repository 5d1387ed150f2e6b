// Device memory and copies. A machine without a driver or a device reports 0 devices and can run
// everything on the CPU; only a request for device memory is an error there.
#include <algorithm>
#include <mutex>
#include <string>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/device.h"
#ifdef GRAFT_SIMT
#include "kernels/simt/memory.h"
#endif

namespace graft::cuda {

void require_device(const char* op, int device) {
  int count = 0;
  const cudaError_t status = cudaGetDeviceCount(&count);
  if (status != cudaSuccess) cudaGetLastError();  // clears it
#ifdef GRAFT_SIMT
  GRAFT_CHECK(status != cudaErrorNoDevice, op,
              ": this build of graft has no CUDA backend: use --device cpu, or build with nvcc on "
              "PATH. (With GRAFT_SIMULATED_GPU=1 in the environment a simulated device takes its "
              "place: for tests, thousands of times slower.)");
#endif
  // CUDA says the same where there is no driver at all.
  int driver = 0;
  if (status == cudaErrorInsufficientDriver && cudaDriverGetVersion(&driver) != cudaSuccess) {
    cudaGetLastError();
  }
  GRAFT_CHECK(
      status != cudaErrorInsufficientDriver || driver == 0, op,
      ": the NVIDIA driver is older than the CUDA release that graft was built with. Update "
      "the driver (nvidia-smi shows its version), or use --device cpu.");
  GRAFT_CHECK(status == cudaSuccess && count > 0, op, ": no usable CUDA device (",
              cudaGetErrorString(status),
              "). Check with nvidia-smi that the NVIDIA driver is installed, or use --device cpu.");
  GRAFT_CHECK(device == 0, op, ": graft drives one GPU, cuda:0, got cuda:", device,
              "; choose the GPU with the environment variable CUDA_VISIBLE_DEVICES=", device);
  check(cudaSetDevice(device), op);
}

int device_count() {
  int count = 0;
  if (cudaGetDeviceCount(&count) == cudaSuccess) return count;
  cudaGetLastError();
  return 0;
}

bool is_simulated() {
#ifdef GRAFT_SIMT
  return true;
#else
  return false;
#endif
}

void set_thread_order([[maybe_unused]] ThreadOrder order, [[maybe_unused]] uint64_t seed) {
#ifdef GRAFT_SIMT
  simt::set_order(static_cast<simt::Order>(order), seed);
#endif
}

void lose_simulated_device([[maybe_unused]] int64_t nth_call) {
#ifdef GRAFT_SIMT
  simt::fail_call(nth_call, cudaErrorLaunchFailure, true);
#endif
}

void limit_simulated_memory([[maybe_unused]] size_t bytes) {
#ifdef GRAFT_SIMT
  static const size_t all = simt::device_memory_limit();
  simt::set_device_memory_limit(bytes == 0 ? all : simt::device_bytes_in_use() + bytes);
#endif
}

void reset_simulated_device() {
#ifdef GRAFT_SIMT
  simt::reset_device();
#endif
}

void* allocate(size_t bytes, int device) {
  require_device("allocate", device);
  void* data = nullptr;
  const cudaError_t status = cudaMalloc(&data, bytes);
  if (status == cudaErrorMemoryAllocation) {
    cudaGetLastError();
    return nullptr;
  }
  check(status, "allocate");
  return data;
}

DeviceMemory memory(int device) {
  require_device("memory", device);
  DeviceMemory result;
  check(cudaMemGetInfo(&result.free, &result.total), "memory");
  return result;
}

void release(void* data, int) {
  if (cudaFree(data) != cudaSuccess) cudaGetLastError();
}

void copy(void* target, Device target_device, const void* source, Device source_device,
          size_t bytes) {
  if (bytes == 0) return;
  const cudaMemcpyKind kind = target_device.is_cpu()   ? cudaMemcpyDeviceToHost
                              : source_device.is_cpu() ? cudaMemcpyHostToDevice
                                                       : cudaMemcpyDeviceToDevice;
  check(cudaMemcpyAsync(target, source, bytes, kind, stream()), "copy");
  // Pageable memory has been read when the call returns: only a reader has to wait.
  if (target_device.is_cpu()) check(cudaStreamSynchronize(stream()), "copy");
}

void fill_bytes(void* target, int value, size_t bytes, int) {
  if (bytes == 0) return;
  check(cudaMemsetAsync(target, value, bytes, stream()), "fill");
}

namespace {

std::mutex make_room_mutex;
MakeRoom make_room = nullptr;

}  // namespace

void set_make_room(MakeRoom function) {
  const std::lock_guard lock(make_room_mutex);
  make_room = function;
}

void* scratch(const char* op, size_t bytes) {
  thread_local void* block = nullptr;
  thread_local size_t size = 0;
  if (bytes > size) {
    // The old block stays: work that was recorded with it may run again. Doubling keeps the sum
    // small.
    const size_t wanted = std::max(bytes, 2 * size);
    void* grown = allocate(wanted, 0);
    if (grown == nullptr) {
      const MakeRoom make = [] {
        const std::lock_guard lock(make_room_mutex);
        return make_room;
      }();
      const std::string held = make == nullptr ? "" : make(0);
      grown = allocate(wanted, 0);
      GRAFT_CHECK(grown != nullptr, op, ": out of memory on cuda:0: ", wanted,
                  " bytes wanted for temporary results", held,
                  ". Try a smaller batch, a smaller image size or a smaller model.");
    }
    block = grown;
    size = wanted;
  }
  return block;
}

namespace {

cudaStream_t new_stream() {
  cudaStream_t created = nullptr;
  check(cudaStreamCreateWithFlags(&created, cudaStreamNonBlocking), "stream");
  return created;
}
cudaStream_t stream_of(Stream which) {
  if (which == Stream::work) return stream();
  static const cudaStream_t copies = new_stream();
  return copies;
}
cudaEvent_t own(void* event) { return static_cast<cudaEvent_t>(event); }

}  // namespace

cudaStream_t stream() {
  static const cudaStream_t work = new_stream();
  return work;
}

void* allocate_pinned(size_t bytes) {
  void* data = nullptr;
  if (cudaMallocHost(&data, bytes) == cudaSuccess) return data;
  cudaGetLastError();
  return nullptr;
}
void release_pinned(void* data) {
  if (cudaFreeHost(data) != cudaSuccess) cudaGetLastError();
}

Event::Event() {
  cudaEvent_t created = nullptr;
  check(cudaEventCreateWithFlags(&created, cudaEventDisableTiming), "event");
  event_ = created;
}
Event::~Event() {
  if (cudaEventDestroy(own(event_)) != cudaSuccess) cudaGetLastError();
}
void Event::record(Stream stream) {
  check(cudaEventRecord(own(event_), stream_of(stream)), "event");
}
void Event::precede(Stream stream) const {
  check(cudaStreamWaitEvent(stream_of(stream), own(event_), 0), "event");
}
void Event::wait() const { check(cudaEventSynchronize(own(event_)), "event"); }

void copy_beside(void* target, const void* source, size_t bytes) {
  if (bytes == 0) return;
  check(cudaMemcpyAsync(target, source, bytes, cudaMemcpyHostToDevice, stream_of(Stream::copies)),
        "copy");
}

struct Graph {
  cudaGraphExec_t executable = nullptr;
  ~Graph() {
    if (executable != nullptr && cudaGraphExecDestroy(executable) != cudaSuccess) {
      cudaGetLastError();
    }
  }
};

void begin_capture() {
  // Relaxed: memory for what is recorded may be allocated meanwhile.
  check(cudaStreamBeginCapture(stream(), cudaStreamCaptureModeRelaxed), "begin_capture");
}

std::shared_ptr<Graph> end_capture() {
  cudaGraph_t recorded = nullptr;
  check(cudaStreamEndCapture(stream(), &recorded), "end_capture");
  auto graph = std::make_shared<Graph>();
  const cudaError_t status = cudaGraphInstantiate(&graph->executable, recorded, 0);
  cudaGraphDestroy(recorded);
  check(status, "end_capture");
  return graph;
}

void launch_graph(Graph& graph) {
  check(cudaGraphLaunch(graph.executable, stream()), "launch_graph");
}

namespace {

// Threads that a grid may have: 4096 a multiprocessor.
int64_t most_threads() {
  static const int64_t most = [] {
    int multiprocessors = 0;
    check(cudaDeviceGetAttribute(&multiprocessors, cudaDevAttrMultiProcessorCount, 0), "launch");
    return int64_t{4096} * multiprocessors;
  }();
  return most;
}

}  // namespace

Grid grid_for(int64_t items, unsigned threads) {
  return grid_of_blocks((items + threads - 1) / threads, threads);
}
Grid grid_of_blocks(int64_t items, unsigned threads) {
  return {std::min(items, most_threads() / threads), threads};
}
dim3 grid_size(const char* op, const Grid& grid) {
  constexpr int64_t kMost = INT32_MAX, kMostY = 65535;
  GRAFT_CHECK(grid.blocks <= kMost && grid.blocks_y <= kMostY, op, ": ", grid.blocks, " x ",
              grid.blocks_y, " blocks are more than a CUDA grid can have (", kMost, " x ", kMostY,
              "). Try a smaller batch.");
  return dim3(static_cast<unsigned>(grid.blocks), static_cast<unsigned>(grid.blocks_y));
}

}  // namespace graft::cuda
