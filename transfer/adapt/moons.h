// Inter-twinning moons (Ganin et al. 2016, section 5.1): the toy on which a method of adaptation
// shows what it does. The target is the source turned by an angle.
#pragma once

#include "transfer/adapt/trainer.h"

namespace graft {

// Two half circles with noise of deviation 0.1, half the points each, turned by `degrees` about
// their common centre. values: (points, 2).
Features moons(int64_t points, double degrees, uint64_t seed);

// 300 labelled points and 200 held out, the target's 300 turned by `degrees`, whose labels are for
// the oracle alone; a network of 15 hidden units from scratch, Adam at a constant 0.01, batches of
// 50. The method's own settings are left to it.
AdaptRun moon_run(const std::string& method, double degrees, uint64_t seed);

}  // namespace graft
