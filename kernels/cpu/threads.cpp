#include "kernels/threads.h"

#include <cstdlib>
#include <unistd.h>

namespace graft::cpu {

void sleep_when_idle(char** argv) {
  if (std::getenv("OMP_WAIT_POLICY") != nullptr || std::getenv("GOMP_SPINCOUNT") != nullptr) return;
  setenv("GOMP_SPINCOUNT", "20000", 1);
  execv("/proc/self/exe", argv);
}

}  // namespace graft::cpu
