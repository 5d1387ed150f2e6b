// Learning-rate schedules as pure functions of the step, so that a resumed run needs no state.
#pragma once

#include <cstdint>

namespace graft {

enum class ScheduleKind : uint8_t { constant, cosine, one_cycle };

struct Schedule {
  ScheduleKind kind = ScheduleKind::one_cycle;
  // constant and cosine: part of all steps spent rising linearly to the full rate.
  double warmup = 0;
  // one_cycle: as PyTorch's OneCycleLR with cosine annealing; the peak is the learning rate, the
  // start is peak / div_factor, the end is start / final_div_factor.
  double rise = 0.3;  // pct_start
  double div_factor = 25;
  double final_div_factor = 1e4;
  friend bool operator==(const Schedule&, const Schedule&) = default;
};

// The factor on the learning rate for step 0..total_steps-1; later steps get the last value.
double schedule_factor(const Schedule& schedule, int64_t step, int64_t total_steps);

}  // namespace graft
