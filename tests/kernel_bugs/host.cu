// Mistakes on the host's side: memory, streams, events, copies and graphs.
#include "kernels/cuda/scratch.h"
#include "tests/kernel_bugs/bugs.h"
#include "tests/kernel_bugs/harness.h"

namespace graft::bugs {
namespace {

using cuda::check;

__global__ void add_one_kernel(float* y, const float* x, int n) {
  const int i = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (i < n) y[i] = x[i] + 1;
}
__global__ void row_sums_kernel(float* sums, const float* x, int columns) {
  float sum = 0;
  for (int k = 0; k < columns; ++k) sum += x[static_cast<int>(threadIdx.x) * columns + k];
  sums[threadIdx.x] = sum;
}
__global__ void combine_kernel(float* y, const float* a, const float* b) {
  y[threadIdx.x] = a[threadIdx.x] - 2 * b[threadIdx.x];
}

Floats plus_one(Floats x) {
  for (float& value : x) value += 1;
  return x;
}
void add_one(float* y, const float* x, int n) {
  cuda::launch("bug", cuda::grid_for(n), 0, &add_one_kernel, y, x, n);
}

// Memory of the host that copies read and write while the program goes on.
class Pinned {
 public:
  explicit Pinned(const Floats& values) : n_(values.size()) {
    void* data = nullptr;
    check(cudaMallocHost(&data, bytes()), "bug");
    data_ = static_cast<float*>(data);
    std::copy(values.begin(), values.end(), data_);
  }
  ~Pinned() { cudaFreeHost(data_); }
  Pinned(const Pinned&) = delete;
  Pinned& operator=(const Pinned&) = delete;
  float* data() const { return data_; }
  size_t bytes() const { return n_ * sizeof(float); }
  Floats values() const { return {data_, data_ + n_}; }

 private:
  float* data_;
  size_t n_;
};

struct SideStream {
  cudaStream_t stream = nullptr;
  cudaEvent_t event = nullptr;
  SideStream() {
    check(cudaDeviceSynchronize(), "bug");
    check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "bug");
    check(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), "bug");
  }
  ~SideStream() {
    cudaEventDestroy(event);
    cudaStreamDestroy(stream);
  }
  SideStream(const SideStream&) = delete;
  SideStream& operator=(const SideStream&) = delete;
  void wait() const { check(cudaStreamSynchronize(stream), "bug"); }
};

enum class Wait { none, right, wrong_stream };

// The next batch is copied on a stream of its own.
Outcome prefetched(Wait wait) {
  const Floats x = numbers(100);
  const Pinned batch(x);
  const DeviceArray<float> input(Floats(100)), y(100);
  const SideStream side;
  check(cudaMemcpyAsync(input.data(), batch.data(), batch.bytes(), cudaMemcpyHostToDevice,
                        side.stream),
        "bug");
  if (wait != Wait::none) {
    check(cudaEventRecord(side.event, wait == Wait::right ? side.stream : cuda::stream()), "bug");
    check(cudaStreamWaitEvent(cuda::stream(), side.event), "bug");
  }
  add_one(y.data(), input.data(), 100);
  Floats got = y.to_host();
  side.wait();
  return {got, plus_one(x)};
}

// Six batches by way of two slots: each is worked on while the next is copied.
enum class Pipeline { right, no_wait_for_work, staging_refilled };
Outcome pipelined(Pipeline order) {
  constexpr int kBatches = 6, n = 100;
  const SideStream side;
  const DeviceArray<float> y(kBatches * n);
  const DeviceArray<float> first(Floats(n, 0.0f)), second(Floats(n, 0.0f));
  float* slots[] = {first.data(), second.data()};
  const Pinned staging[] = {Pinned(Floats(n)), Pinned(Floats(n))};
  cudaEvent_t copied[2], used[2];
  for (int i = 0; i < 2; ++i) {
    check(cudaEventCreateWithFlags(&copied[i], cudaEventDisableTiming), "bug");
    check(cudaEventCreateWithFlags(&used[i], cudaEventDisableTiming), "bug");
  }
  check(cudaDeviceSynchronize(), "bug");
  Floats wanted;
  for (int batch = 0; batch < kBatches; ++batch) {
    const int slot = batch % 2;
    const Floats x = numbers(n, static_cast<unsigned>(batch));
    if (order != Pipeline::staging_refilled) check(cudaEventSynchronize(copied[slot]), "bug");
    std::copy(x.begin(), x.end(), staging[slot].data());
    if (order != Pipeline::no_wait_for_work) {
      check(cudaStreamWaitEvent(side.stream, used[slot]), "bug");
    }
    check(cudaMemcpyAsync(slots[slot], staging[slot].data(), staging[slot].bytes(),
                          cudaMemcpyHostToDevice, side.stream),
          "bug");
    check(cudaEventRecord(copied[slot], side.stream), "bug");
    check(cudaStreamWaitEvent(cuda::stream(), copied[slot]), "bug");
    add_one(y.data() + batch * n, slots[slot], n);
    check(cudaEventRecord(used[slot], cuda::stream()), "bug");
    const Floats right = plus_one(x);
    wanted.insert(wanted.end(), right.begin(), right.end());
  }
  Floats got = y.to_host();
  side.wait();
  for (int i = 0; i < 2; ++i) {
    cudaEventDestroy(copied[i]);
    cudaEventDestroy(used[i]);
  }
  return {got, wanted};
}

// Records copies to the device and back, and replays them.
Floats replayed(const SideStream& side, float* device, const float* from, float* to, size_t n,
                bool wait_inside) {
  check(cudaStreamBeginCapture(side.stream, cudaStreamCaptureModeGlobal), "bug");
  check(cudaMemcpyAsync(device, from, n * sizeof(float), cudaMemcpyHostToDevice, side.stream),
        "bug");
  if (wait_inside) check(cudaStreamSynchronize(side.stream), "bug");
  check(cudaMemcpyAsync(to, device, n * sizeof(float), cudaMemcpyDeviceToHost, side.stream), "bug");
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamEndCapture(side.stream, &graph), "bug");
  check(cudaGraphInstantiate(&executable, graph), "bug");
  check(cudaGraphDestroy(graph), "bug");
  check(cudaGraphLaunch(executable, side.stream), "bug");
  side.wait();
  check(cudaGraphExecDestroy(executable), "bug");
  return {to, to + n};
}

}  // namespace

Outcome host_pointer_to_kernel(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> input(x), y(x.size());
  add_one(y.data(), broken ? x.data() : input.data(), 100);
  return {y.to_host(), plus_one(x)};
}

Outcome device_pointer_on_host(bool broken) {
  const Floats x = numbers(10);
  const DeviceArray<float> input(x);
  const float first = broken ? input.data()[0] : input.to_host()[0];
  return {{first}, {x[0]}};
}

Outcome stream_not_waited_for(bool broken) { return prefetched(broken ? Wait::none : Wait::right); }
Outcome event_on_wrong_stream(bool broken) {
  return prefetched(broken ? Wait::wrong_stream : Wait::right);
}

Outcome slot_refilled_while_read(bool broken) {
  return pipelined(broken ? Pipeline::no_wait_for_work : Pipeline::right);
}
Outcome staging_refilled_too_early(bool broken) {
  return pipelined(broken ? Pipeline::staging_refilled : Pipeline::right);
}

// A released buffer goes to the next user, who works on another stream.
Outcome buffer_reused_on_other_stream(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> buffer(x), y(100);
  const SideStream side;
  add_one(y.data(), buffer.data(), 100);
  if (!broken) {
    check(cudaEventRecord(side.event, cuda::stream()), "bug");
    check(cudaStreamWaitEvent(side.stream, side.event), "bug");
  }
  check(cudaMemsetAsync(buffer.data(), 0, 400, side.stream), "bug");
  side.wait();
  return {y.to_host(), plus_one(x)};
}

Outcome result_read_too_early(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> input(x);
  const Pinned result(Floats(100));
  add_one(input.data(), input.data(), 100);
  check(cudaMemcpyAsync(result.data(), input.data(), result.bytes(), cudaMemcpyDeviceToHost,
                        cuda::stream()),
        "bug");
  if (!broken) check(cudaStreamSynchronize(cuda::stream()), "bug");
  return {result.values(), plus_one(x)};
}

Outcome pinned_overwritten(bool broken) {
  const Floats x = numbers(100);
  const Pinned staging(x);
  const DeviceArray<float> input(100);
  check(cudaMemcpyAsync(input.data(), staging.data(), staging.bytes(), cudaMemcpyHostToDevice,
                        cuda::stream()),
        "bug");
  if (!broken) check(cudaStreamSynchronize(cuda::stream()), "bug");
  std::fill_n(staging.data(), 100, -1.0f);  // the next batch
  return {input.to_host(), x};
}

Outcome used_after_free(bool broken) {
  const Floats x = numbers(100);
  const DeviceArray<float> y(x.size());
  const float* data = nullptr;
  {
    const DeviceArray<float> input(x);
    data = input.data();
    if (!broken) add_one(y.data(), data, 100);
  }
  if (broken) add_one(y.data(), data, 100);
  return {y.to_host(), plus_one(x)};
}

Outcome freed_twice(bool broken) {
  const DeviceArray<float> x(numbers(10));
  if (broken) check(cudaFree(x.data()), "bug");
  return {{1}, {1}};
}

Outcome freed_in_the_middle(bool broken) {
  void* data = nullptr;
  check(cudaMalloc(&data, 400), "bug");
  check(cudaFree(static_cast<float*>(data) + (broken ? 10 : 0)), "bug");
  return {{1}, {1}};
}

Outcome leaked(bool broken) {
  const Floats x = numbers(10);
  auto* input = new DeviceArray<float>(x);
  Floats got = input->to_host();
  if (!broken) delete input;
  return {got, x};
}

Outcome copy_longer_than_block(bool broken) {
  const DeviceArray<float> input(numbers(10));
  Floats host(12);
  check(cudaMemcpyAsync(host.data(), input.data(), (broken ? 12 : 10) * sizeof(float),
                        cudaMemcpyDeviceToHost, cuda::stream()),
        "bug");
  check(cudaStreamSynchronize(cuda::stream()), "bug");
  host.resize(10);
  return {host, numbers(10)};
}

Outcome copy_in_wrong_direction(bool broken) {
  const DeviceArray<float> input(numbers(10));
  Floats host(10);
  check(cudaMemcpyAsync(host.data(), input.data(), 40,
                        broken ? cudaMemcpyHostToDevice : cudaMemcpyDeviceToHost, cuda::stream()),
        "bug");
  check(cudaStreamSynchronize(cuda::stream()), "bug");
  return {host, numbers(10)};
}

Outcome too_many_threads(bool broken) {
  const Floats x = numbers(1500);
  const DeviceArray<float> input(x);
  const cuda::Grid grid = broken ? cuda::Grid{1, 1500} : cuda::Grid{2, 1024};
  return {results_of(x.size(), grid, 0, &add_one_kernel, input.data(), 1500), plus_one(x)};
}

// A launcher's scratch is one array: asking again gives the same.
Outcome scratch_asked_for_twice(bool broken) {
  const Floats a = numbers(64 * 4), b = numbers(64 * 4, 2);
  const DeviceArray<float> device_a(a), device_b(b);
  auto* first = static_cast<float*>(cuda::scratch("bug", 2 * 64 * sizeof(float)));
  auto* second =
      broken ? static_cast<float*>(cuda::scratch("bug", 64 * sizeof(float))) : first + 64;
  cuda::launch("bug", {1, 64}, 0, &row_sums_kernel, first, device_a.data(), 4);
  cuda::launch("bug", {1, 64}, 0, &row_sums_kernel, second, device_b.data(), 4);
  Floats wanted(64);
  for (size_t i = 0; i < a.size(); ++i) wanted[i / 4] += a[i] - 2 * b[i];
  return {results_of(64, {1, 64}, 0, &combine_kernel, first, second), wanted};
}

Outcome pageable_copy_in_graph(bool broken) {
  const Floats x = numbers(50);
  const Pinned source(x), result(Floats(50));
  const DeviceArray<float> buffer(50);
  const SideStream side;
  return {
      replayed(side, buffer.data(), broken ? x.data() : source.data(), result.data(), 50, false),
      x};
}

Outcome wait_in_graph(bool broken) {
  const Floats x = numbers(50);
  const Pinned source(x), result(Floats(50));
  const DeviceArray<float> buffer(50);
  const SideStream side;
  return {replayed(side, buffer.data(), source.data(), result.data(), 50, broken), x};
}

// A graph keeps addresses, not memory.
Outcome graph_of_freed_memory(bool broken) {
  const Pinned ones(Floats(50, 1.0f)), result(Floats(50));
  const SideStream side;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  auto buffer = std::make_unique<DeviceArray<float>>(50);
  check(cudaStreamBeginCapture(side.stream, cudaStreamCaptureModeGlobal), "bug");
  check(cudaMemcpyAsync(buffer->data(), ones.data(), ones.bytes(), cudaMemcpyHostToDevice,
                        side.stream),
        "bug");
  check(cudaMemcpyAsync(result.data(), buffer->data(), ones.bytes(), cudaMemcpyDeviceToHost,
                        side.stream),
        "bug");
  check(cudaStreamEndCapture(side.stream, &graph), "bug");
  check(cudaGraphInstantiate(&executable, graph), "bug");
  check(cudaGraphDestroy(graph), "bug");
  if (broken) buffer.reset();
  check(cudaGraphLaunch(executable, side.stream), "bug");
  side.wait();
  check(cudaGraphExecDestroy(executable), "bug");
  return {result.values(), Floats(50, 1.0f)};
}

}  // namespace graft::bugs
