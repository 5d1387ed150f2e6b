// The simulated device itself: collectives against plain loops, the rules that it enforces, and the
// host's side: streams, copies, memory, errors, graphs. Every rule is shown one who breaks it and
// one who does not.
#include <algorithm>
#include <cmath>
#include <csignal>
#include <doctest/doctest.h>
#include <numeric>
#include <set>
#include <string>
#include <vector>

#include "kernels/cuda/scratch.h"
#include "kernels/device.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/runtime.h"
#include "tests/simt/fixture.h"
#include "tests/simt/kernels.h"

namespace {

using namespace graft;
using namespace graft::simt_tests;
using doctest::Contains;

constexpr simt::Order kOrders[] = {simt::Order::forward, simt::Order::reverse, simt::Order::random};

// What the device says when it is shown a broken rule; the program goes on after a reset.
std::string fault_of(Wrong what) {
  FreshDevice::reset();
  Array<float> x(64, 1.0f), y(64);
  wrong(what, y.data, x.data);
  CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
  CHECK(cudaGetLastError() == cudaErrorLaunchFailure);  // sticky: reading does not clear it
  CHECK(cudaGetLastError() == cudaErrorLaunchFailure);
  const std::string fault = cudaGetErrorString(cudaErrorLaunchFailure);
  FreshDevice::reset();
  CHECK(cudaGetLastError() == cudaSuccess);
  return fault;
}

}  // namespace

TEST_CASE("shuffles of every kind, width and distance") {
  const FreshDevice device;
  for (const int lanes : {32, 16}) {
    Array<float> y(size_t{kKinds} * kWidths * kDeltas * 32, -1.0f);
    shuffles(y.data, static_cast<unsigned>(lanes));
    const std::vector<float> got = y.values();
    int64_t wrong_ones = 0;
    for (int kind = 0; kind < kKinds; ++kind) {
      for (int w = 0; w < kWidths; ++w) {
        for (int delta = 0; delta < kDeltas; ++delta) {
          for (int lane = 0; lane < 32; ++lane) {
            const auto at =
                static_cast<size_t>(((kind * kWidths + w) * kDeltas + delta) * 32 + lane);
            if (1 << w > lanes || delta >= lanes || lane >= lanes) {
              wrong_ones += got[at] != -1;
              continue;
            }
            // By groups: each is a row of `width` lanes of its own.
            const int width = 1 << w, group = lane / width, place = lane % width;
            int from = lane;
            if (kind == 0) from = group * width + delta % width;
            if (kind == 1 && (lane ^ delta) / width <= group) from = lane ^ delta;
            if (kind == 2 && place + delta < width) from = lane + delta;
            if (kind == 3 && place - delta >= 0) from = lane - delta;
            wrong_ones += got[at] != brought(from);
          }
        }
      }
    }
    CHECK(wrong_ones == 0);
  }
}

TEST_CASE("votes of all and of some lanes") {
  const FreshDevice device;
  const std::vector<unsigned> patterns{0, ~0u, 1, 0x80000000u, 0x0F0F0F0Fu, 0xFFFF0000u, 0x1234u};
  for (const unsigned mask : {~0u, 0xFFFFu, 0xF0F00000u, 1u << 9}) {
    Array<unsigned> given(patterns), y(3 * patterns.size());
    votes(y.data, given.data, static_cast<int>(patterns.size()), mask);
    std::vector<unsigned> wanted;
    for (const unsigned pattern : patterns) {
      const unsigned ballot = pattern & mask;
      wanted.insert(wanted.end(), {ballot, ballot != 0, ballot == mask});
    }
    CHECK(y.values() == wanted);
  }
}

TEST_CASE("barriers that count") {
  const FreshDevice device;
  for (const unsigned threads : {1u, 31u, 64u, 100u, 1024u}) {
    for (const unsigned every : {1u, 3u, 2000u}) {
      std::vector<int> x(threads);
      for (unsigned i = 0; i < threads; ++i) x[i] = i % every == 0 && every < 2000 ? 4 : 0;
      const int count = static_cast<int>(threads - std::count(x.begin(), x.end(), 0));
      Array<int> given(x), y(3 * threads);
      barrier_votes(y.data, given.data, threads);
      std::vector<int> wanted;
      for (unsigned i = 0; i < threads; ++i) {
        wanted.insert(wanted.end(), {count, count == static_cast<int>(threads), count > 0});
      }
      CHECK(y.values() == wanted);
    }
  }
}

TEST_CASE("indices, sums and atomics are right in every order") {
  const FreshDevice device;
  std::vector<float> x(1000);
  for (size_t i = 0; i < x.size(); ++i) x[i] = 1 / static_cast<float>(i + 1);
  std::vector<float> first;
  for (const simt::Order order : kOrders) {
    simt::set_order(order, 3);
    Array<int> where(288);
    indices(where.data);
    std::vector<int> places(288);
    std::iota(places.begin(), places.end(), 0);
    CHECK(where.values() == places);

    Array<float> given(x), scratch(32), total(1);
    sum(total.data, scratch.data, given.data, 1000);
    if (first.empty()) first = total.values();
    CHECK(total.values() == first);
    CHECK(std::abs(double{first[0]} - 7.485470860550345) < 1e-5);

    Array<int> cells(std::vector<int>{0, -1, 1000, 0, 0, 0});
    atomics(cells.data);
    CHECK(cells.values() == std::vector<int>{119 * 120 / 2, 119, 0, 7, 5, 255});
  }
}

TEST_CASE("neighbouring bytes may be written by different threads and blocks") {
  const FreshDevice device;
  Array<uint8_t> y(200);
  bytes(y.data, 200);
  std::vector<uint8_t> wanted(200);
  std::iota(wanted.begin(), wanted.end(), uint8_t{0});
  CHECK(y.values() == wanted);
}

TEST_CASE("threads and blocks run in the chosen order") {
  const FreshDevice device;
  const auto run = [](simt::Order order, uint64_t seed) {
    simt::set_order(order, seed);
    Array<int> y(60), counter(1);
    arrivals(y.data, counter.data, 3, 20);
    return y.values();
  };
  std::vector<int> sorted(60);
  std::iota(sorted.begin(), sorted.end(), 0);
  CHECK(run(simt::Order::forward, 0) == sorted);
  CHECK(run(simt::Order::reverse, 0) == std::vector<int>(sorted.rbegin(), sorted.rend()));
  std::vector<int> random = run(simt::Order::random, 1);
  CHECK(random == run(simt::Order::random, 1));
  CHECK(random != run(simt::Order::random, 2));
  CHECK(random != sorted);
  std::sort(random.begin(), random.end());
  CHECK(random == sorted);
}

TEST_CASE("barriers that not all threads reach") {
  const FreshDevice device;
  CHECK_MESSAGE(
      fault_of(Wrong::barrier_for_some).find("40 of 64 threads wait at the barrier of ") !=
          std::string::npos,
      fault_of(Wrong::barrier_for_some));
  CHECK(fault_of(Wrong::barrier_for_some).find("24 have returned") != std::string::npos);
  CHECK(fault_of(Wrong::barrier_for_some).find("tests/simt/kernels.cu:") != std::string::npos);
  CHECK(fault_of(Wrong::two_barriers).find("the same __syncthreads()") != std::string::npos);
  CHECK(fault_of(Wrong::barrier_after_return).find("1 have returned") != std::string::npos);
}

TEST_CASE("masks that are not those of the lanes that meet") {
  const FreshDevice device;
  const auto says = [](Wrong what, const std::string& part) {
    const std::string fault = fault_of(what);
    INFO(fault);
    CHECK(fault.find(part) != std::string::npos);
  };
  says(Wrong::mask_of_absent_lanes, "has mask 0xffffffff but only 0xfffff arrived");
  says(Wrong::mask_without_caller, "lane 16 is not in its mask 0xffff");
  says(Wrong::overlapping_masks, "lanes that meet must name the same mask");
  says(Wrong::inactive_source, "reads lane 20, which is not in its mask 0xffff");
  says(Wrong::different_collectives, "lanes that meet must run the same operation");
  says(Wrong::odd_width, "__shfl_down_sync of width 24");
  says(Wrong::half_warp_waits, "__syncwarp in warp 0 at ");
}

TEST_CASE("shared memory is fresh in every block") {
  const FreshDevice device;
  Array<float> x(64, 1.0f), y(64);
  if (simt::detector_present()) {
    CHECK(fault_of(Wrong::shared_reread).find("nobody has written") != std::string::npos);
    return;
  }
  wrong(Wrong::shared_reread, y.data, x.data);
  const std::vector<float> got = y.values();
  CHECK(got[0] == 1);
  CHECK(std::all_of(got.begin() + 32, got.end(), [](float v) { return std::isnan(v); }));
}

TEST_CASE("cp.async arrives when it is waited for") {
  const FreshDevice device;
  std::vector<float> x(128);
  std::iota(x.begin(), x.end(), 1.0f);
  Array<float> given(x), y(128);
  copies(y.data, given.data);
  std::vector<float> wanted;
  for (int group = 0; group < 2; ++group) {
    for (int i = 0; i < 64; ++i) {
      wanted.push_back(63 - i < 60 ? x[static_cast<size_t>(64 * group + 63 - i)] : 0.0f);
    }
  }
  CHECK(y.values() == wanted);
  if (simt::detector_present()) {
    CHECK(fault_of(Wrong::early_copy).find("before cp.async was waited for") != std::string::npos);
    return;
  }
  wrong(Wrong::early_copy, y.data, given.data);
  CHECK(std::isnan(y.values()[0]));
}

TEST_CASE("shared memory has its limits") {
  const FreshDevice device;
  constexpr size_t kKiB = 1024;
  Array<float> y(64);
  for (const size_t kib : {1, 48, 49, 100, 227}) {
    shared_sizes(y.data, kib * kKiB);  // launch() asks for more than 48 KiB
    CHECK(y.values()[0] == static_cast<float>(kib * kKiB / 4 - 1));
  }
  CHECK_THROWS_AS(shared_sizes(y.data, 228 * kKiB), Error);
  CHECK(cudaGetLastError() == cudaSuccess);  // a refused launch does not lose the device

  add_one(cuda::stream(), y.data, 64, 1, 64, 48 * kKiB);
  CHECK(cudaGetLastError() == cudaSuccess);
  add_one(cuda::stream(), y.data, 64, 1, 64, 48 * kKiB + 4);  // nobody asked
  CHECK(cudaGetLastError() == cudaErrorInvalidValue);

  CHECK(fault_of(Wrong::too_much_static).find("bytes of static shared memory") !=
        std::string::npos);
  CHECK(fault_of(Wrong::static_and_dynamic).find("of dynamic shared memory, the limit of both") !=
        std::string::npos);
#ifndef __SANITIZE_ADDRESS__
  const char* wanted = simt::detector_present() ? "outside every variable" : "wrote past its 128";
  CHECK(fault_of(Wrong::past_dynamic).find(wanted) != std::string::npos);
#endif
}

TEST_CASE("launches have their limits") {
  const FreshDevice device;
  Array<float> y(64);
  const auto status = [&](dim3 blocks, dim3 threads) {
    add_one(cuda::stream(), y.data, 64, blocks, threads);
    return cudaGetLastError();
  };
  CHECK(status(1, 1024) == cudaSuccess);
  CHECK(status({1, 2, 2}, {16, 1, 64}) == cudaSuccess);
  CHECK(status(1, 1025) == cudaErrorInvalidConfiguration);
  CHECK(status(1, {32, 33}) == cudaErrorInvalidConfiguration);
  CHECK(status(1, {1, 1, 65}) == cudaErrorInvalidConfiguration);
  CHECK(status(0, 32) == cudaErrorInvalidConfiguration);
  CHECK(status(1, 0) == cudaErrorInvalidConfiguration);
  CHECK(status({1, 65536}, 32) == cudaErrorInvalidConfiguration);
  CHECK(status({1, 1, 65536}, 32) == cudaErrorInvalidConfiguration);
  CHECK(status(0x80000000u, 32) == cudaErrorInvalidConfiguration);
  simt::reset_device();
}

TEST_CASE("work runs when it is waited for") {
  const FreshDevice device;
  Array<float> x(10, 1.0f);
  const Pinned result(10, -1.0f);
  add_one(cuda::stream(), x.data, 10);
  check(
      cudaMemcpyAsync(result.data, x.data, result.bytes(), cudaMemcpyDeviceToHost, cuda::stream()),
      "copy");
  CHECK(result.data[0] == -1);
  check(cudaStreamSynchronize(cuda::stream()), "copy");
  CHECK(result.data[0] == 2);
}

TEST_CASE("pageable memory is read at once, pinned memory later") {
  const FreshDevice device;
  Array<float> x(10), y(10);
  std::vector<float> pageable(10, 1.0f);
  const Pinned pinned(10, 1.0f);
  check(cudaMemcpyAsync(x.data, pageable.data(), 40, cudaMemcpyHostToDevice, cuda::stream()),
        "copy");
  check(cudaMemcpyAsync(y.data, pinned.data, 40, cudaMemcpyHostToDevice, cuda::stream()), "copy");
  std::fill(pageable.begin(), pageable.end(), 2.0f);
  std::fill_n(pinned.data, 10, 2.0f);
  CHECK(x.values()[0] == 1);
  CHECK(y.values()[0] == 2);
}

TEST_CASE("events order streams, and a missing one shows") {
  const FreshDevice device;
  std::set<float> with, without;
  for (uint64_t seed = 0; seed < 12; ++seed) {
    for (const bool wait : {true, false}) {
      simt::set_order(simt::Order::forward, seed);
      Array<float> x(10, 1.0f);
      const SideStream side;
      check(cudaMemsetAsync(x.data, 0, 40, side.stream), "fill");
      if (wait) {
        check(cudaEventRecord(side.event, side.stream), "event");
        check(cudaStreamWaitEvent(cuda::stream(), side.event), "event");
      }
      add_one(cuda::stream(), x.data, 10);
      check(cudaDeviceSynchronize(), "wait");
      (wait ? with : without).insert(x.values()[0]);
    }
  }
  CHECK(with == std::set<float>{1});
  CHECK(without == std::set<float>{0, 1});
}

TEST_CASE("waiting for an event runs what lies before it") {
  const FreshDevice device;
  const SideStream side;
  Array<float> x(10, 1.0f);
  const Pinned result(10, -1.0f);
  CHECK(cudaEventSynchronize(side.event) == cudaSuccess);  // never recorded
  CHECK(cudaStreamWaitEvent(side.stream, side.event) == cudaSuccess);
  check(cudaDeviceSynchronize(), "wait");
  check(cudaMemcpyAsync(result.data, x.data, 40, cudaMemcpyDeviceToHost, side.stream), "copy");
  check(cudaEventRecord(side.event, side.stream), "event");
  CHECK(result.data[0] == -1);
  check(cudaEventSynchronize(side.event), "event");
  CHECK(result.data[0] == 1);
  cudaEvent_t gone = nullptr;
  CHECK(cudaEventRecord(gone, side.stream) == cudaErrorInvalidResourceHandle);
  CHECK(cudaStreamWaitEvent(side.stream, gone) == cudaErrorInvalidResourceHandle);
}

TEST_CASE("device memory that is released twice, or was never ours") {
  const FreshDevice device;
  void* data = nullptr;
  check(cudaMalloc(&data, 100), "memory");
  CHECK(reinterpret_cast<uintptr_t>(data) % 256 == 0);
  CHECK(simt::device_live_blocks() == device.blocks + 1);
  CHECK(cudaFree(nullptr) == cudaSuccess);
  CHECK(cudaFree(data) == cudaSuccess);
  CHECK(simt::device_live_blocks() == device.blocks);
  CHECK(cudaFree(data) != cudaSuccess);
  CHECK(simt::last_fault().find("not the start of a live block") != std::string::npos);
  FreshDevice::reset();
  int on_host = 0;
  CHECK(cudaFree(&on_host) != cudaSuccess);
  FreshDevice::reset();
  CHECK(cudaFreeHost(&on_host) == cudaErrorInvalidValue);
  FreshDevice::reset();
}

TEST_CASE("copies stay within their blocks") {
  const FreshDevice device;
  Array<float> x(10, 1.0f);
  std::vector<float> host(20, 1.0f);
  const auto copy = [](void* to, const void* from, size_t bytes, cudaMemcpyKind kind) {
    const cudaError_t status = cudaMemcpyAsync(to, from, bytes, kind, cuda::stream());
    cudaGetLastError();
    return status;
  };
  CHECK(copy(x.data, host.data(), 40, cudaMemcpyHostToDevice) == cudaSuccess);
  CHECK(copy(x.data, host.data(), 44, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(x.data + 1, host.data(), 40, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(host.data(), x.data, 44, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(copy(host.data(), x.data, 40, cudaMemcpyHostToDevice) == cudaErrorInvalidValue);
  CHECK(copy(host.data(), host.data(), 40, cudaMemcpyDeviceToHost) == cudaErrorInvalidValue);
  CHECK(cudaMemsetAsync(x.data, 0, 44, cuda::stream()) == cudaErrorInvalidValue);
}

TEST_CASE("the host cannot touch device memory") {
  const FreshDevice device;
  Array<float> x(10, 1.0f);
  check(cudaDeviceSynchronize(), "wait");
  volatile float* data = x.data;
  CHECK(fatal_signal([] {}) == 0);
  CHECK(fatal_signal([=] { static_cast<void>(data[0]); }) == SIGSEGV);
  CHECK(fatal_signal([=] { data[0] = 1; }) == SIGSEGV);
}

#ifndef __SANITIZE_ADDRESS__  // which would end the program
TEST_CASE("kernels that use released memory") {
  const FreshDevice device;
  Array<float> y(10);
  const float* released = nullptr;
  {
    Array<float> x(10, 1.0f);
    check(cudaDeviceSynchronize(), "wait");
    released = x.data;
  }
  copy_kernel_launch(y.data, released, 10);
  if (simt::detector_present()) {
    CHECK(cudaDeviceSynchronize() == cudaErrorLaunchFailure);
    CHECK(simt::last_fault().find("outside every block") != std::string::npos);
  } else {
    CHECK(std::isnan(y.values()[0]));
  }
}

TEST_CASE("writes past a block's end show when it is released") {
  const FreshDevice device;
  if (simt::detector_present()) return;
  void* data = nullptr;
  check(cudaMalloc(&data, 40), "memory");
  check(cudaMemsetAsync(data, 0, 40, cuda::stream()), "fill");
  add_one(cuda::stream(), static_cast<float*>(data), 10);
  check(cudaDeviceSynchronize(), "wait");
  Array<float> ones(20, 1.0f);
  copy_kernel_launch(static_cast<float*>(data), ones.data, 11);
  CHECK(cudaFree(data) != cudaSuccess);
  CHECK(simt::last_fault().find("wrote past the end of a block of 40 bytes") != std::string::npos);
}
#endif

TEST_CASE("memory that runs out") {
  const FreshDevice device;
  const size_t limit = simt::device_memory_limit();
  simt::set_device_memory_limit(simt::device_bytes_in_use() + (size_t{1} << 20));
  void* data = nullptr;
  CHECK(cudaMalloc(&data, size_t{2} << 20) == cudaErrorMemoryAllocation);
  CHECK(std::string(cudaGetErrorString(cudaGetLastError())) == "out of memory");
  CHECK(cudaGetLastError() == cudaSuccess);  // the device is not lost
  CHECK(cudaMalloc(&data, size_t{512} << 10) == cudaSuccess);
  CHECK(cudaFree(data) == cudaSuccess);
  CHECK(cuda::allocate(size_t{2} << 20, 0) == nullptr);
  CHECK_THROWS_WITH_AS(cuda::scratch("softmax", size_t{1} << 30),
                       Contains("softmax: out of memory on cuda:0: 1073741824 bytes"), Error);
  size_t free = 0, total = 0;
  check(cudaMemGetInfo(&free, &total), "info");
  CHECK(free == size_t{1} << 20);
  CHECK(total == simt::device_memory_limit());
  simt::set_device_memory_limit(limit);
}

TEST_CASE("a grid that CUDA cannot have is refused, not cut") {
  const FreshDevice device;
  grid_of(0, 5);
  grid_of(3, 65535);
  check(cudaDeviceSynchronize(), "grid");
  CHECK_THROWS_WITH_AS(grid_of((int64_t{1} << 32) + 1, 1),
                       Contains("bytes: 4294967297 x 1 blocks are more than a CUDA grid"), Error);
  CHECK_THROWS_WITH_AS(grid_of(1, 65536), Contains("bytes: 1 x 65536 blocks"), Error);
}

TEST_CASE("errors on request") {
  const FreshDevice device;
  void* data = nullptr;
  simt::fail_call(2, cudaErrorMemoryAllocation, false);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);
  CHECK(cudaMalloc(&data, 10) == cudaErrorMemoryAllocation);
  CHECK(cudaGetLastError() == cudaErrorMemoryAllocation);
  CHECK(cudaDeviceSynchronize() == cudaSuccess);

  simt::fail_call(1, cudaErrorInsufficientDriver, false);
  CHECK_THROWS_WITH_AS(cuda::require_device("test", 0), Contains("Update the driver"), Error);
  CHECK(cudaGetLastError() == cudaSuccess);

  simt::fail_call(1, cudaErrorECCUncorrectable, true);  // the device is lost
  CHECK(cudaDeviceSynchronize() == cudaErrorECCUncorrectable);
  CHECK(cudaMalloc(&data, 10) == cudaErrorECCUncorrectable);
  CHECK(cudaGetLastError() == cudaErrorECCUncorrectable);
  CHECK_THROWS_WITH_AS(copy_kernel_launch(nullptr, nullptr, 0),
                       Contains("cudaErrorECCUncorrectable"), Error);
  CHECK(cuda::device_count() == 0);
  simt::reset_device();
  CHECK(cudaMalloc(&data, 10) == cudaSuccess);
  CHECK(cudaFree(data) == cudaSuccess);
  CHECK(cuda::device_count() == 1);
}

TEST_CASE("a machine without a device") {
  const FreshDevice device;
  simt::plug_in_device(false);
  void* data = nullptr;
  CHECK(cuda::device_count() == 0);
  CHECK(cudaMalloc(&data, 10) == cudaErrorNoDevice);
  CHECK_THROWS_AS(cuda::allocate(10, 0), Error);
  simt::plug_in_device(true);
  FreshDevice::reset();
  CHECK(cuda::device_count() == 1);
}

TEST_CASE("a graph replays what was captured, as often as wanted") {
  const FreshDevice device;
  const SideStream side;
  const Pinned source(10, 5.0f), result(10, -1.0f);
  Array<float> x(10, 0.0f);
  check(cudaDeviceSynchronize(), "wait");
  const auto step = [&] {
    check(cudaMemcpyAsync(x.data, source.data, 40, cudaMemcpyHostToDevice, side.stream), "step");
    add_one(side.stream, x.data, 10);
    add_one(side.stream, x.data, 5);
    check(cudaMemcpyAsync(result.data, x.data, 40, cudaMemcpyDeviceToHost, side.stream), "step");
  };
  step();
  check(cudaStreamSynchronize(side.stream), "wait");
  const std::vector<float> eager(result.data, result.data + 10);
  CHECK(eager == std::vector<float>{7, 7, 7, 7, 7, 6, 6, 6, 6, 6});

  std::fill_n(result.data, 10, -1.0f);
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t executable = nullptr;
  check(cudaStreamBeginCapture(side.stream, cudaStreamCaptureModeGlobal), "capture");
  step();
  check(cudaStreamEndCapture(side.stream, &graph), "capture");
  check(cudaGraphInstantiate(&executable, graph), "graph");
  check(cudaGraphDestroy(graph), "graph");
  check(cudaDeviceSynchronize(), "wait");
  CHECK(result.data[0] == -1);  // capturing runs nothing
  for (const float start : {5.0f, 50.0f, -3.0f}) {
    std::fill_n(source.data, 10, start);
    check(cudaGraphLaunch(executable, side.stream), "graph");
    check(cudaStreamSynchronize(side.stream), "wait");
    for (size_t i = 0; i < 10; ++i) CHECK(result.data[i] == eager[i] + start - 5);
  }
  check(cudaGraphExecDestroy(executable), "graph");
}

TEST_CASE("what a capture does not allow spoils it") {
  const FreshDevice device;
  const SideStream side;
  const Pinned pinned(10, 1.0f);
  Array<float> x(10, 0.0f);
  std::vector<float> pageable(10);
  void* data = nullptr;
  check(cudaDeviceSynchronize(), "wait");
  const auto spoils = [&](cudaStreamCaptureMode mode, const auto& call) {
    check(cudaStreamBeginCapture(side.stream, mode), "capture");
    const bool refused = call() == cudaErrorStreamCaptureUnsupported;
    cudaGraph_t graph = nullptr;
    const cudaError_t end = cudaStreamEndCapture(side.stream, &graph);
    CHECK((end == cudaErrorStreamCaptureInvalidated) == refused);
    CHECK((graph == nullptr) == refused);
    if (graph != nullptr) check(cudaGraphDestroy(graph), "graph");
    cudaGetLastError();
    CHECK(cudaDeviceSynchronize() == cudaSuccess);  // the stream is usable again
    return refused;
  };
  const auto global = cudaStreamCaptureModeGlobal, relaxed = cudaStreamCaptureModeRelaxed;
  CHECK_FALSE(spoils(global, [&] { return cudaMemsetAsync(x.data, 0, 40, side.stream); }));
  CHECK_FALSE(spoils(global, [&] {
    return cudaMemcpyAsync(x.data, pinned.data, 40, cudaMemcpyHostToDevice, side.stream);
  }));
  CHECK(spoils(global, [&] {
    return cudaMemcpyAsync(x.data, pageable.data(), 40, cudaMemcpyHostToDevice, side.stream);
  }));
  CHECK(spoils(global, [&] {
    return cudaMemcpyAsync(pageable.data(), x.data, 40, cudaMemcpyDeviceToHost, side.stream);
  }));
  CHECK(spoils(global, [&] { return cudaStreamSynchronize(side.stream); }));
  CHECK(spoils(global, [] { return cudaDeviceSynchronize(); }));
  CHECK(spoils(relaxed, [] { return cudaDeviceSynchronize(); }));
  CHECK(spoils(global, [&] { return cudaMalloc(&data, 10); }));
  CHECK_FALSE(spoils(relaxed, [&] { return cudaMalloc(&data, 10); }));
  CHECK(spoils(global, [&] { return cudaFree(data); }));
  CHECK(cudaFree(data) == cudaSuccess);

  CHECK(cudaStreamBeginCapture(cudaStreamLegacy, global) == cudaErrorStreamCaptureUnsupported);
  cudaGraph_t graph = nullptr;
  CHECK(cudaStreamEndCapture(side.stream, &graph) != cudaSuccess);  // none has begun
  FreshDevice::reset();
}
