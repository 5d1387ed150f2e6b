// Where tests compute: the CPU, or with GRAFT_TEST_DEVICE=cuda in the environment a CUDA device,
// which may be the simulated one (kernels/simt), there with GRAFT_TEST_ORDER=reverse or random in
// another order of threads and blocks.
#pragma once

#include "kernels/types.h"

namespace graft::test {

Device test_device();

}  // namespace graft::test
