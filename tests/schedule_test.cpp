#include "transfer/schedule.h"

#include <cmath>
#include <cstddef>
#include <doctest/doctest.h>
#include <vector>

namespace graft {
namespace {

void check_values(const Schedule& schedule, const std::vector<double>& expected) {
  const int64_t total = static_cast<int64_t>(expected.size());
  for (int64_t step = 0; step < total; ++step) {
    CAPTURE(step);
    CHECK(schedule_factor(schedule, step, total) ==
          doctest::Approx(expected[static_cast<size_t>(step)]).epsilon(1e-12));
  }
}

TEST_CASE("one-cycle is torch.optim.lr_scheduler.OneCycleLR (PyTorch 2.15)") {
  SUBCASE("its defaults, 20 steps") {
    check_values({}, {0.04,
                      0.1316718427000253,
                      0.3716718427000253,
                      0.6683281572999747,
                      0.9083281572999747,
                      1.0,
                      0.9874640062350873,
                      0.9504846320134737,
                      0.89091617757105,
                      0.8117456539497631,
                      0.7169430017913008,
                      0.6112620219362893,
                      0.500002,
                      0.38874197806371075,
                      0.28306099820869923,
                      0.18825834605023697,
                      0.10908782242895004,
                      0.049519367986526286,
                      0.012539993764912554,
                      4e-06});
  }
  SUBCASE("peak between two steps") {
    check_values({.rise = 0.25, .div_factor = 10, .final_div_factor = 100},
                 {0.1, 0.775, 0.9890847265665359, 0.9046039886902862, 0.75025, 0.552711967402193,
                  0.3461460113097138, 0.16626926212375048, 0.044184043907520815, 0.001});
  }
}

TEST_CASE("cosine with warm-up is LinearLR then CosineAnnealingLR (PyTorch 2.15)") {
  check_values({.kind = ScheduleKind::cosine, .warmup = 0.2}, {0.25,
                                                               0.5,
                                                               0.75,
                                                               1.0,
                                                               1.0,
                                                               0.9903926402016152,
                                                               0.9619397662556434,
                                                               0.9157348061512727,
                                                               0.8535533905932737,
                                                               0.7777851165098011,
                                                               0.6913417161825449,
                                                               0.5975451610080642,
                                                               0.5,
                                                               0.4024548389919359,
                                                               0.30865828381745514,
                                                               0.22221488349019902,
                                                               0.14644660940672627,
                                                               0.08426519384872733,
                                                               0.03806023374435663,
                                                               0.009607359798384785});
}

TEST_CASE("constant stays, after its warm-up") {
  check_values({.kind = ScheduleKind::constant}, {1, 1, 1});
  check_values({.kind = ScheduleKind::constant, .warmup = 0.5}, {0.5, 1, 1, 1});
}

TEST_CASE("steps, polynomial, plateau and DANN's annealing") {
  check_values({.kind = ScheduleKind::step, .gamma = 0.5, .step_part = 0.25},
               {1, 1, 0.5, 0.5, 0.25, 0.25, 0.125, 0.125});
  // The step after a third of 9 and of 10 steps.
  check_values({.kind = ScheduleKind::step}, {1, 1, 1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.01});
  check_values({.kind = ScheduleKind::polynomial, .power = 2}, {1, 0.5625, 0.25, 0.0625});
  check_values({.kind = ScheduleKind::polynomial, .warmup = 0.5}, {0.5, 1, 1, 0.5});
  check_values({.kind = ScheduleKind::dann},
               {1, std::pow(3.5, -0.75), std::pow(6.0, -0.75), std::pow(8.5, -0.75)});
  const Schedule plateau{.kind = ScheduleKind::plateau, .gamma = 0.2};
  CHECK(schedule_factor(plateau, 50, 100, 0) == 1);
  CHECK(schedule_factor(plateau, 50, 100, 2) == doctest::Approx(0.04));
}

// ULMFiT's equation 3: cut = T cut_frac; p rises to 1 at the cut and falls to 0 at T;
// eta = (1 + p (ratio - 1)) / ratio.
TEST_CASE("slanted triangular is ULMFiT's") {
  const Schedule schedule{.kind = ScheduleKind::slanted_triangular, .rise = 0.1};
  CHECK(schedule_factor(schedule, 0, 100) == doctest::Approx(1.0 / 32));
  CHECK(schedule_factor(schedule, 5, 100) == doctest::Approx((1 + 0.5 * 31) / 32));
  CHECK(schedule_factor(schedule, 10, 100) == doctest::Approx(1));
  CHECK(schedule_factor(schedule, 55, 100) == doctest::Approx((1 + 0.5 * 31) / 32));
  CHECK(schedule_factor(schedule, 99, 100) == doctest::Approx((1 + 31.0 / 90) / 32));
}

TEST_CASE("every schedule is finite, in (0, 1] and trains at all for any length") {
  for (const ScheduleKind kind :
       {ScheduleKind::constant, ScheduleKind::cosine, ScheduleKind::one_cycle, ScheduleKind::step,
        ScheduleKind::polynomial, ScheduleKind::slanted_triangular, ScheduleKind::plateau,
        ScheduleKind::dann}) {
    for (const double part : {0.0, 0.1, 0.3, 1.0}) {
      for (int64_t total = 1; total < 30; ++total) {
        for (int64_t step = 0; step < total + 2; ++step) {
          const Schedule schedule{.kind = kind, .warmup = part, .rise = part};
          const double factor = schedule_factor(schedule, step, total);
          CAPTURE(total);
          CAPTURE(step);
          CHECK(factor > 0);
          CHECK(factor <= 1);
        }
      }
    }
  }
}

}  // namespace
}  // namespace graft
