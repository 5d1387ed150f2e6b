// The simulated driver: errors, and the hooks that tests set. CUDA's own names are in
// cuda_runtime.h.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>

#include "kernels/simt/cuda_runtime.h"
#include "kernels/simt/machine.h"

namespace graft::simt {

// A kernel broke a rule: becomes the sticky error that every later call returns, as on a device
// whose context is lost. cudaGetErrorString gives the text.
void report_fault(const std::string& what);

// Queues a kernel on a stream; it runs when the host waits for the stream, or later still.
void enqueue_launch(Launch launch, cudaStream_t stream);

// --- Hooks
// Whether programs find a simulated device; off unless the environment has GRAFT_SIMULATED_GPU=1.
void plug_in_device(bool on);
// Forgets a sticky error and everything queued. Memory stays.
void reset_device();
// The API call with this number (counting from 1 now) returns `error`; sticky when `lost`.
void fail_call(int64_t nth, cudaError_t error, bool lost);
// Draws the order between streams anew.
void seed_streams(uint64_t seed);
// What broke so far, newest last; reset_device() empties it.
const std::string& last_fault();

}  // namespace graft::simt
