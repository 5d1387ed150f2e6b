#include "tools/experiments/reporter.h"

#include <iostream>

#include "tools/command.h"

namespace graft {

void ExperimentReporter::stopped(size_t finished, size_t runs) {
  clear();
  std::cerr << "stopped; " << finished << " of " << runs
            << " runs are finished and saved. The same command continues.\n";
  throw Exit{stopped_exit_code()};
}

}  // namespace graft
