// Where tests compute: the CPU, or with GRAFT_TEST_DEVICE=cuda in the environment a CUDA device,
// which may be the simulated one (kernels/simt).
#pragma once

#include "kernels/types.h"

namespace graft::test {

Device test_device();

}  // namespace graft::test
