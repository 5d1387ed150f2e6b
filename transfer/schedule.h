// Learning-rate schedules as pure functions of the step, so that a resumed run needs no state. Only
// the plateau schedule also depends on how validation went: the loop counts its reductions.
#pragma once

#include <cstdint>

namespace graft {

enum class ScheduleKind : uint8_t {
  constant,
  cosine,
  one_cycle,
  step,
  polynomial,
  slanted_triangular,
  plateau,
  dann,
};

struct Schedule {
  ScheduleKind kind = ScheduleKind::one_cycle;
  // constant, cosine, step, polynomial, plateau: part of all steps spent rising linearly to the
  // full rate.
  double warmup = 0;
  // one_cycle: as PyTorch's OneCycleLR with cosine annealing; the peak is the learning rate, the
  // start is peak / div_factor, the end is start / final_div_factor.
  double rise = 0.3;  // pct_start; slanted_triangular: cut_frac, 0.1 in its paper
  double div_factor = 25;
  double final_div_factor = 1e4;
  // step: times `gamma` after every `step_part` of all steps.
  double gamma = 0.1;
  double step_part = 1.0 / 3;
  // polynomial: (1 - progress)^power.
  double power = 1;
  // slanted_triangular: the peak over the start and the end.
  double ratio = 32;
  // plateau: times `gamma` when so many epochs brought no better value.
  int64_t plateau_epochs = 2;
  // dann: 1 / (1 + alpha progress)^beta.
  double alpha = 10;
  double beta = 0.75;
  friend bool operator==(const Schedule&, const Schedule&) = default;
};

// The factor on the learning rate for step 0..total_steps-1; later steps get the last value.
// `reductions`: of the plateau schedule, how often the rate was reduced so far.
double schedule_factor(const Schedule& schedule, int64_t step, int64_t total_steps,
                       int64_t reductions = 0);

}  // namespace graft
