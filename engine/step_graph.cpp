#include "engine/step_graph.h"

#include <cstring>

#include "kernels/error.h"

namespace graft {

StepNumbers::StepNumbers(Device device, size_t passes)
    : passes_(passes), memory_(sizeof(OptimRates) * (passes + 1), device) {}

void StepNumbers::set(uint64_t rng_step, const std::vector<OptimRates>& rates) {
  GRAFT_CHECK(rates.size() <= passes_, "step numbers: expected the numbers of at most ", passes_,
              " optimizer passes, got ", rates.size());
  // One entry for the step, padded to the size of the others.
  std::vector<OptimRates> values(rates.size() + 1);
  std::memcpy(static_cast<void*>(&values[0]), &rng_step, sizeof rng_step);
  for (size_t i = 0; i < rates.size(); ++i) values[i + 1] = rates[i];
  cuda::copy(memory_.data(), memory_.device(), values.data(), kCpu,
             values.size() * sizeof(OptimRates));
}

const uint64_t* StepNumbers::rng_step() const {
  return static_cast<const uint64_t*>(memory_.data());
}

std::vector<OptimRates> StepNumbers::rates() const {
  std::vector<OptimRates> places(passes_);
  for (size_t i = 0; i < passes_; ++i) {
    places[i].at = static_cast<const OptimRates*>(memory_.data()) + i + 1;
  }
  return places;
}

void StepGraph::record(const std::function<void()>& work) {
  graph_.reset();
  pool_ = std::make_unique<MemoryPool>(device_);
  cuda::begin_capture();
  try {
    work();
  } catch (...) {
    try {
      cuda::end_capture();
    } catch (const Error&) {  // the first error says more
    }
    pool_.reset();
    throw;
  }
  pool_->close();
  graph_ = cuda::end_capture();
}

void StepGraph::run() {
  GRAFT_CHECK(recorded(), "step graph: nothing was recorded");
  cuda::launch_graph(*graph_);
}

}  // namespace graft
