// Cosine: Loshchilov and Hutter, SGDR, 2017. One cycle: Smith and Topin, Super-convergence, 2018,
// with PyTorch's phase boundaries (torch.optim.lr_scheduler.OneCycleLR). Slanted triangular: Howard
// and Ruder, ULMFiT, 2018, section 3.2. DANN's annealing: Ganin et al., JMLR 17(59), 2016, section
// 5.2.2.
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

double slanted_triangular(const Schedule& schedule, double step, double total) {
  const double cut = std::floor(total * schedule.rise);
  double part = 1;
  if (step < cut) {
    part = step / cut;
  } else if (total > cut) {
    part = 1 - (step - cut) / (total - cut);
  }
  return (1 + part * (schedule.ratio - 1)) / schedule.ratio;
}

}  // namespace

double schedule_factor(const Schedule& schedule, int64_t step, int64_t total_steps,
                       int64_t reductions) {
  const double total = static_cast<double>(std::max<int64_t>(total_steps, 1));
  const double now = std::min(static_cast<double>(step), total - 1);
  switch (schedule.kind) {
    case ScheduleKind::one_cycle:
      return one_cycle(schedule, now, total);
    case ScheduleKind::slanted_triangular:
      return slanted_triangular(schedule, now, total);
    case ScheduleKind::dann:
      return std::pow(1 + schedule.alpha * now / total, -schedule.beta);
    default:
      break;
  }
  const double warmup = std::floor(schedule.warmup * total);
  if (now < warmup) return (now + 1) / warmup;
  const double part = (now - warmup) / (total - warmup);
  switch (schedule.kind) {
    case ScheduleKind::cosine:
      return anneal(1, 0, part);
    case ScheduleKind::polynomial:
      return std::pow(1 - part, schedule.power);
    case ScheduleKind::step:
      return std::pow(schedule.gamma, std::floor(part / schedule.step_part + 1e-9));
    case ScheduleKind::plateau:
      return std::pow(schedule.gamma, static_cast<double>(reductions));
    default:
      return 1;
  }
}

}  // namespace graft
