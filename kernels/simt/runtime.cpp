// Streams, events, graphs and errors of the simulated device. Work is queued and runs as late as
// the rules allow: when the host waits for it, or for something ordered after it. Between streams
// only events order; the rest is drawn at random. So a missing wait shows.
#include "kernels/simt/runtime.h"

#include <algorithm>
#include <cstdlib>
#include <deque>
#include <map>
#include <memory>
#include <mutex>
#include <random>
#include <set>
#include <unordered_map>
#include <utility>
#include <vector>

#include "kernels/error.h"
#include "kernels/simt/memory.h"

namespace graft::simt {

struct Event {
  uint64_t recorded = 0, reached = 0;  // how often record() was called, and how far work came
  bool captured = false;               // recorded last while its stream was captured
};

// One queued piece of work. A wait is ready when its event has been reached.
struct Operation {
  std::function<void()> run;
  Event* awaited = nullptr;
  uint64_t generation = 0;
};

struct Graph {
  std::vector<Operation> operations;
};

struct Stream {
  std::deque<Operation> queue;
  Graph* capture = nullptr;  // not null while capturing
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  bool spoiled = false;  // the capture, by a call that it does not allow
};

namespace {

constexpr size_t kLongestQueue = 4096;

struct Driver {
  std::recursive_mutex mutex;
  bool plugged_in = [] {
    const char* wish = std::getenv("GRAFT_SIMULATED_GPU");
    return wish != nullptr && std::string(wish) == "1";
  }();
  cudaError_t last = cudaSuccess, sticky = cudaSuccess;
  std::string fault;
  int64_t calls_until_failure = 0;
  cudaError_t injected = cudaSuccess;
  bool injected_is_sticky = false;
  Stream legacy;
  std::set<Stream*> streams{&legacy};
  std::set<Event*> events;
  std::set<Graph*> graphs;  // ended captures and executables
  std::map<char*, size_t> pinned;
  std::unordered_map<const void*, size_t> allowed_shared;
  std::mt19937_64 random{7};
};

Driver& driver() {
  static auto* one = new Driver;
  return *one;
}

cudaError_t failed(cudaError_t error) {
  if (error != cudaSuccess && error != cudaErrorNotReady) driver().last = error;
  return error;
}

// The beginning of every API call: an injected or sticky error, or success.
cudaError_t begin_call() {
  Driver& d = driver();
  if (!d.plugged_in) return failed(cudaErrorNoDevice);
  if (d.sticky != cudaSuccess) return failed(d.sticky);
  if (d.calls_until_failure > 0 && --d.calls_until_failure == 0) {
    if (d.injected_is_sticky) d.sticky = d.injected;
    return failed(d.injected);
  }
  return cudaSuccess;
}

#define GRAFT_SIMT_CALL                       \
  const std::lock_guard lock(driver().mutex); \
  if (const cudaError_t error = begin_call(); error != cudaSuccess) return error

bool ready(const Stream& stream) {
  if (stream.queue.empty()) return false;
  const Operation& next = stream.queue.front();
  return next.awaited == nullptr || next.awaited->reached >= next.generation;
}

// Runs queued work, a random stream's next piece at a time, until `done`.
template <class Done>
cudaError_t drain(const Done& done) {
  Driver& d = driver();
  const Unlocked unlocked;
  while (!done()) {
    std::vector<Stream*> runnable;
    for (Stream* stream : d.streams) {
      if (ready(*stream)) runnable.push_back(stream);
    }
    if (runnable.empty()) {
      report_fault(
          "simulated device: deadlock: every stream waits for an event that no queued "
          "work records");
      return failed(d.sticky);
    }
    Stream* stream = runnable[d.random() % runnable.size()];
    const Operation next = std::move(stream->queue.front());
    stream->queue.pop_front();
    if (next.run) next.run();
    if (d.sticky != cudaSuccess) return failed(d.sticky);
  }
  return cudaSuccess;
}

cudaError_t drain_all() {
  return drain([] {
    return std::all_of(driver().streams.begin(), driver().streams.end(),
                       [](Stream* s) { return s->queue.empty(); });
  });
}

cudaError_t enqueue(Stream* stream, Operation operation) {
  Driver& d = driver();
  if (d.streams.count(stream) == 0) return failed(cudaErrorInvalidResourceHandle);
  if (stream->capture != nullptr) {
    stream->capture->operations.push_back(std::move(operation));
    return cudaSuccess;
  }
  if (std::any_of(d.streams.begin(), d.streams.end(),
                  [](Stream* s) { return s->capture != nullptr; }) &&
      stream == &d.legacy) {
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  stream->queue.push_back(std::move(operation));
  if (stream->queue.size() < kLongestQueue) return cudaSuccess;
  return drain([=] { return stream->queue.size() < kLongestQueue / 2; });
}

bool capturing(const Stream* stream) { return stream->capture != nullptr; }

// Calls that a capture forbids, on whatever stream they are: they fail and spoil it. Allocation is
// `tolerated` by a relaxed one.
cudaError_t forbid_while_capturing(bool tolerated) {
  cudaError_t error = cudaSuccess;
  for (Stream* stream : driver().streams) {
    if (!capturing(stream) || (tolerated && stream->mode == cudaStreamCaptureModeRelaxed)) continue;
    stream->spoiled = true;
    error = failed(cudaErrorStreamCaptureUnsupported);
  }
  return error;
}
cudaError_t spoil(Stream* stream) {
  stream->spoiled = true;
  return failed(cudaErrorStreamCaptureUnsupported);
}
#define GRAFT_SIMT_NOT_CAPTURING(tolerated)                                              \
  if (const cudaError_t error = forbid_while_capturing(tolerated); error != cudaSuccess) \
  return error
bool is_pinned(const void* data, size_t bytes) {
  Driver& d = driver();
  auto* begin = const_cast<char*>(static_cast<const char*>(data));
  auto after = d.pinned.upper_bound(begin);
  if (after == d.pinned.begin()) return false;
  const auto& [start, size] = *--after;
  return begin + bytes <= start + size;
}

// What was the device's when the copy was queued may have been released since.
bool still_owns(const void* data, size_t bytes) {
  if (device_owns(data, bytes)) return true;
  report_fault("simulated device: a copy or fill of memory that was released meanwhile");
  return false;
}

void move_bytes(void* target, const void* source, size_t bytes, cudaMemcpyKind kind) {
  if (in_device_range(target) && !still_owns(target, bytes)) return;
  if (in_device_range(source) && !still_owns(source, bytes)) return;
  std::memmove(target, source, bytes);
  if (kind == cudaMemcpyHostToDevice) note_written(target, bytes);
  if (kind == cudaMemcpyDeviceToDevice) note_copied(target, source, bytes);
  if (kind == cudaMemcpyDeviceToHost && !note_taken(source, bytes)) {
    report_fault(text("simulated device: detector: a copy to the host of ", bytes,
                      " bytes that nobody has written, or not all of them"));
  }
}

}  // namespace

void report_fault(const std::string& what) {
  Driver& d = driver();
  const std::lock_guard lock(d.mutex);
  if (d.sticky == cudaSuccess) d.fault = what;
  d.sticky = d.last = cudaErrorLaunchFailure;
}

void enqueue_launch(Launch launch, cudaStream_t stream) {
  Driver& d = driver();
  const std::lock_guard lock(d.mutex);
  if (begin_call() != cudaSuccess) return;
  const dim3 &grid = launch.grid, &block = launch.block;
  const uint64_t threads = uint64_t{block.x} * block.y * block.z;
  if (threads == 0 || threads > kMostThreads || block.z > 64 || grid.x == 0 || grid.y == 0 ||
      grid.z == 0 || grid.x > 0x7FFFFFFFu || grid.y > 65535 || grid.z > 65535) {
    failed(cudaErrorInvalidConfiguration);
    return;
  }
  const auto allowed = d.allowed_shared.find(launch.kernel);
  launch.more_shared_memory = allowed != d.allowed_shared.end();
  if (launch.dynamic_shared_bytes >
      std::max(kStaticSharedBytes, launch.more_shared_memory ? allowed->second : 0)) {
    failed(cudaErrorInvalidValue);
    return;
  }
  auto shared = std::make_shared<const Launch>(std::move(launch));
  enqueue(stream, {[shared] { run_grid(*shared); }});
}

void plug_in_device(bool on) {
  const std::lock_guard lock(driver().mutex);
  driver().plugged_in = on;
}
void reset_device() {
  Driver& d = driver();
  const std::lock_guard lock(d.mutex);
  for (Stream* stream : d.streams) {
    stream->queue.clear();
    delete std::exchange(stream->capture, nullptr);
    stream->spoiled = false;
  }
  for (Event* event : d.events) {
    event->reached = event->recorded;
    event->captured = false;
  }
  // A lost device refused to destroy them.
  for (Graph* graph : d.graphs) delete graph;
  d.graphs.clear();
  d.last = d.sticky = cudaSuccess;
  d.fault.clear();
  d.calls_until_failure = 0;
}
void fail_call(int64_t nth, cudaError_t error, bool lost) {
  Driver& d = driver();
  const std::lock_guard lock(d.mutex);
  d.calls_until_failure = nth;
  d.injected = error;
  d.injected_is_sticky = lost;
}
void seed_streams(uint64_t seed) {
  const std::lock_guard lock(driver().mutex);
  driver().random.seed(seed);
}
const std::string& last_fault() { return driver().fault; }

}  // namespace graft::simt

using namespace graft::simt;  // NOLINT: these are CUDA's own global names

const cudaStream_t cudaStreamLegacy = &driver().legacy;

const char* cudaGetErrorName(cudaError_t error) {
  switch (error) {
#define GRAFT_CASE(name) \
  case name:             \
    return #name;
    GRAFT_CASE(cudaSuccess)
    GRAFT_CASE(cudaErrorInvalidValue)
    GRAFT_CASE(cudaErrorMemoryAllocation)
    GRAFT_CASE(cudaErrorInitializationError)
    GRAFT_CASE(cudaErrorInvalidConfiguration)
    GRAFT_CASE(cudaErrorInsufficientDriver)
    GRAFT_CASE(cudaErrorNoDevice)
    GRAFT_CASE(cudaErrorInvalidDevice)
    GRAFT_CASE(cudaErrorECCUncorrectable)
    GRAFT_CASE(cudaErrorInvalidResourceHandle)
    GRAFT_CASE(cudaErrorNotReady)
    GRAFT_CASE(cudaErrorIllegalAddress)
    GRAFT_CASE(cudaErrorLaunchFailure)
    GRAFT_CASE(cudaErrorStreamCaptureUnsupported)
    GRAFT_CASE(cudaErrorStreamCaptureInvalidated)
#undef GRAFT_CASE
  }
  return "cudaErrorUnknown";
}
const char* cudaGetErrorString(cudaError_t error) {
  if (error == cudaErrorLaunchFailure && !last_fault().empty()) return last_fault().c_str();
  if (error == cudaErrorNoDevice) return "no CUDA-capable device is detected";
  if (error == cudaErrorMemoryAllocation) return "out of memory";
  return "simulated device";
}
cudaError_t cudaGetLastError() {
  Driver& d = driver();
  const std::lock_guard lock(d.mutex);
  const cudaError_t error = d.last;
  d.last = d.sticky;
  return error;
}
cudaError_t cudaPeekAtLastError() {
  const std::lock_guard lock(driver().mutex);
  return driver().last;
}

cudaError_t cudaGetDeviceCount(int* count) {
  *count = 0;
  GRAFT_SIMT_CALL;
  *count = 1;
  return cudaSuccess;
}
cudaError_t cudaSetDevice(int device) {
  GRAFT_SIMT_CALL;
  return device == 0 ? cudaSuccess : failed(cudaErrorInvalidDevice);
}
cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  GRAFT_SIMT_CALL;
  switch (attribute) {
    case cudaDevAttrMultiProcessorCount:
      *value = 2;
      break;
    case cudaDevAttrComputeCapabilityMajor:
      *value = 8;
      break;
    case cudaDevAttrComputeCapabilityMinor:
      *value = 0;
      break;
    case cudaDevAttrMaxSharedMemoryPerBlockOptin:
      *value = static_cast<int>(kSharedBytes);
      break;
  }
  return cudaSuccess;
}
cudaError_t cudaGetDeviceProperties(cudaDeviceProp* properties, int) {
  GRAFT_SIMT_CALL;
  *properties = {};
  std::strcpy(properties->name, "simulated device");
  properties->totalGlobalMem = device_memory_limit();
  properties->major = 8;
  properties->multiProcessorCount = 2;
  return cudaSuccess;
}
cudaError_t cudaDriverGetVersion(int* version) {
  GRAFT_SIMT_CALL;
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaRuntimeGetVersion(int* version) {
  *version = 13000;
  return cudaSuccess;
}
cudaError_t cudaDeviceSynchronize() {
  GRAFT_SIMT_CALL;
  GRAFT_SIMT_NOT_CAPTURING(false);
  return drain_all();
}

cudaError_t cudaMalloc(void** data, size_t bytes) {
  GRAFT_SIMT_CALL;
  GRAFT_SIMT_NOT_CAPTURING(true);
  *data = device_allocate(bytes);
  return *data != nullptr ? cudaSuccess : failed(cudaErrorMemoryAllocation);
}
cudaError_t cudaFree(void* data) {
  GRAFT_SIMT_CALL;
  if (data == nullptr) return cudaSuccess;
  GRAFT_SIMT_NOT_CAPTURING(true);
  if (const cudaError_t error = drain_all(); error != cudaSuccess) return error;
  if (device_free(data)) return driver().sticky;
  report_fault("simulated device: cudaFree of what is not the start of a live block");
  return failed(cudaErrorInvalidValue);
}
cudaError_t cudaMallocHost(void** data, size_t bytes) {
  GRAFT_SIMT_CALL;
  GRAFT_SIMT_NOT_CAPTURING(true);
  *data = std::malloc(std::max<size_t>(bytes, 1));
  if (*data == nullptr) return failed(cudaErrorMemoryAllocation);
  driver().pinned.emplace(static_cast<char*>(*data), bytes);
  return cudaSuccess;
}
cudaError_t cudaFreeHost(void* data) {
  GRAFT_SIMT_CALL;
  GRAFT_SIMT_NOT_CAPTURING(true);
  if (const cudaError_t error = drain_all(); error != cudaSuccess) return error;
  if (driver().pinned.erase(static_cast<char*>(data)) == 0) return failed(cudaErrorInvalidValue);
  std::free(data);
  return cudaSuccess;
}
cudaError_t cudaMemGetInfo(size_t* free, size_t* total) {
  GRAFT_SIMT_CALL;
  *total = device_memory_limit();
  *free = *total - device_bytes_in_use();
  return cudaSuccess;
}

cudaError_t cudaMemcpyAsync(void* target, const void* source, size_t bytes, cudaMemcpyKind kind,
                            cudaStream_t stream) {
  GRAFT_SIMT_CALL;
  const bool to_device = kind == cudaMemcpyHostToDevice || kind == cudaMemcpyDeviceToDevice;
  const bool from_device = kind == cudaMemcpyDeviceToHost || kind == cudaMemcpyDeviceToDevice;
  if ((to_device && !device_owns(target, bytes)) || (from_device && !device_owns(source, bytes)) ||
      (!to_device && in_device_range(target)) || (!from_device && in_device_range(source))) {
    return failed(cudaErrorInvalidValue);
  }
  const void* host = to_device ? source : target;
  if (to_device != from_device && capturing(stream) && !is_pinned(host, bytes)) {
    return spoil(stream);
  }
  if (kind == cudaMemcpyHostToDevice && !is_pinned(source, bytes)) {
    // Pageable memory is read before the call returns.
    const auto* first = static_cast<const char*>(source);
    auto staged = std::make_shared<const std::vector<char>>(first, first + bytes);
    return enqueue(stream, {[=] { move_bytes(target, staged->data(), bytes, kind); }});
  }
  return enqueue(stream, {[=] { move_bytes(target, source, bytes, kind); }});
}
cudaError_t cudaMemsetAsync(void* target, int value, size_t bytes, cudaStream_t stream) {
  GRAFT_SIMT_CALL;
  if (!device_owns(target, bytes)) return failed(cudaErrorInvalidValue);
  return enqueue(stream, {[=] {
                   if (!still_owns(target, bytes)) return;
                   std::memset(target, value, bytes);
                   note_written(target, bytes);
                 }});
}

cudaError_t cudaStreamCreateWithFlags(cudaStream_t* stream, unsigned) {
  GRAFT_SIMT_CALL;
  *stream = new Stream;
  driver().streams.insert(*stream);
  return cudaSuccess;
}
cudaError_t cudaStreamDestroy(cudaStream_t stream) {
  GRAFT_SIMT_CALL;
  if (const cudaError_t error = cudaStreamSynchronize(stream); error != cudaSuccess) return error;
  driver().streams.erase(stream);
  delete stream;
  return cudaSuccess;
}
cudaError_t cudaStreamSynchronize(cudaStream_t stream) {
  GRAFT_SIMT_CALL;
  if (driver().streams.count(stream) == 0) return failed(cudaErrorInvalidResourceHandle);
  if (capturing(stream)) return spoil(stream);
  return drain([=] { return stream->queue.empty(); });
}
cudaError_t cudaStreamWaitEvent(cudaStream_t stream, cudaEvent_t event, unsigned) {
  GRAFT_SIMT_CALL;
  if (driver().events.count(event) == 0) return failed(cudaErrorInvalidResourceHandle);
  if (event->recorded == 0) return cudaSuccess;
  // CUDA would make the stream part of the capture; graft captures one stream at a time.
  if (event->captured && !capturing(stream)) return failed(cudaErrorStreamCaptureUnsupported);
  return enqueue(stream, {{}, event, event->recorded});
}
cudaError_t cudaEventCreateWithFlags(cudaEvent_t* event, unsigned) {
  GRAFT_SIMT_CALL;
  *event = new Event;
  driver().events.insert(*event);
  return cudaSuccess;
}
cudaError_t cudaEventDestroy(cudaEvent_t event) {
  GRAFT_SIMT_CALL;
  if (const cudaError_t error = drain_all(); error != cudaSuccess) return error;
  driver().events.erase(event);
  delete event;
  return cudaSuccess;
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t stream) {
  GRAFT_SIMT_CALL;
  if (driver().events.count(event) == 0) return failed(cudaErrorInvalidResourceHandle);
  event->captured = driver().streams.count(stream) > 0 && capturing(stream);
  const uint64_t generation = ++event->recorded;
  return enqueue(stream, {[=] { event->reached = generation; }});
}
cudaError_t cudaEventSynchronize(cudaEvent_t event) {
  GRAFT_SIMT_CALL;
  if (driver().events.count(event) == 0) return failed(cudaErrorInvalidResourceHandle);
  if (event->captured) return failed(cudaErrorStreamCaptureUnsupported);
  return drain([=, wanted = event->recorded] { return event->reached >= wanted; });
}

cudaError_t cudaStreamBeginCapture(cudaStream_t stream, cudaStreamCaptureMode mode) {
  GRAFT_SIMT_CALL;
  if (stream == cudaStreamLegacy || capturing(stream)) {
    return failed(cudaErrorStreamCaptureUnsupported);
  }
  stream->capture = new Graph;
  stream->mode = mode;
  stream->spoiled = false;
  return cudaSuccess;
}
cudaError_t cudaStreamEndCapture(cudaStream_t stream, cudaGraph_t* graph) {
  GRAFT_SIMT_CALL;
  if (!capturing(stream)) return failed(cudaErrorStreamCaptureInvalidated);
  std::unique_ptr<Graph> capture(std::exchange(stream->capture, nullptr));
  *graph = nullptr;
  if (stream->spoiled) return failed(cudaErrorStreamCaptureInvalidated);
  *graph = capture.release();
  driver().graphs.insert(*graph);
  return cudaSuccess;
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* executable, cudaGraph_t graph,
                                 unsigned long long) {
  GRAFT_SIMT_CALL;
  if (driver().graphs.count(graph) == 0) return failed(cudaErrorInvalidResourceHandle);
  *executable = new Graph(*graph);
  driver().graphs.insert(*executable);
  return cudaSuccess;
}
cudaError_t cudaGraphLaunch(cudaGraphExec_t executable, cudaStream_t stream) {
  GRAFT_SIMT_CALL;
  if (driver().graphs.count(executable) == 0) return failed(cudaErrorInvalidResourceHandle);
  for (const Operation& operation : executable->operations) {
    if (const cudaError_t error = enqueue(stream, operation); error != cudaSuccess) return error;
  }
  return cudaSuccess;
}
cudaError_t cudaGraphDestroy(cudaGraph_t graph) {
  GRAFT_SIMT_CALL;
  if (driver().graphs.erase(graph) == 0) return failed(cudaErrorInvalidResourceHandle);
  delete graph;
  return cudaSuccess;
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t executable) {
  GRAFT_SIMT_CALL;
  if (const cudaError_t error = drain_all(); error != cudaSuccess) return error;
  if (driver().graphs.erase(executable) == 0) return failed(cudaErrorInvalidResourceHandle);
  delete executable;
  return cudaSuccess;
}

cudaError_t graft_simt_allow_shared(const void* kernel, size_t bytes) {
  GRAFT_SIMT_CALL;
  if (bytes > kSharedBytes) return failed(cudaErrorInvalidValue);
  driver().allowed_shared[kernel] = bytes;
  return cudaSuccess;
}
