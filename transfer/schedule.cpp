// Cosine: Loshchilov and Hutter, SGDR, 2017. One cycle: Smith and Topin, Super-convergence, 2018,
// with PyTorch's phase boundaries (torch.optim.lr_scheduler.OneCycleLR).
#include "transfer/schedule.h"

#include <algorithm>
#include <cmath>
#include <numbers>

namespace graft {
namespace {

// From `start` at part 0 to `end` at part 1, along half a cosine.
double anneal(double start, double end, double part) {
  return end + (start - end) / 2 * (1 + std::cos(std::numbers::pi * part));
}

double one_cycle(const Schedule& schedule, double step, double total) {
  const double start = 1 / schedule.div_factor;
  const double end = start / schedule.final_div_factor;
  const double peak_at = schedule.rise * total - 1, last = total - 1;
  if (step <= peak_at && peak_at > 0) return anneal(start, 1, step / peak_at);
  return last > peak_at ? anneal(1, end, (step - peak_at) / (last - peak_at)) : 1;
}

}  // namespace

double schedule_factor(const Schedule& schedule, int64_t step, int64_t total_steps) {
  const double total = static_cast<double>(std::max<int64_t>(total_steps, 1));
  const double now = std::min(static_cast<double>(step), total - 1);
  if (schedule.kind == ScheduleKind::one_cycle) return one_cycle(schedule, now, total);
  const double warmup = std::floor(schedule.warmup * total);
  if (now < warmup) return (now + 1) / warmup;
  if (schedule.kind == ScheduleKind::constant) return 1;
  return anneal(1, 0, (now - warmup) / (total - warmup));
}

}  // namespace graft
