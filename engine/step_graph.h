// A whole step (forward, backward, optimizer) recorded once as a CUDA graph and run many times: the
// host then starts one thing a step instead of a thousand.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "engine/optim.h"
#include "engine/storage.h"
#include "kernels/device.h"

namespace graft {

// The numbers of a step that change from one run to the next, in device memory, where what was
// recorded reads them.
class StepNumbers {
 public:
  // Room for the step of the random numbers and for the numbers of at most `passes` optimizer
  // passes.
  StepNumbers(Device device, size_t passes);
  // For the runs that follow.
  void set(uint64_t rng_step, const std::vector<OptimRates>& rates);
  // Where they stand; each of the rates says: at this place.
  const uint64_t* rng_step() const;
  std::vector<OptimRates> rates() const;

 private:
  size_t passes_;
  Storage memory_;
};

class StepGraph {
 public:
  explicit StepGraph(Device device) : device_(device) {}
  // Records what `work` does on the device, without doing it. Its tensors, and what it reads, must
  // outlive the graph or belong to it (memory allocated meanwhile does). Throws Error when work()
  // throws or waits for the device; then nothing was recorded.
  void record(const std::function<void()>& work);
  bool recorded() const { return graph_ != nullptr; }
  // Runs it, in order with everything else on the device.
  void run();

 private:
  Device device_;
  std::unique_ptr<MemoryPool> pool_;  // outlives the graph
  std::shared_ptr<cuda::Graph> graph_;
};

}  // namespace graft
