#include "tools/experiments/reporter.h"

#include <iostream>

#include "kernels/error.h"
#include "tools/command.h"
#include "transfer/run_folder.h"

namespace graft {

void ExperimentReporter::stopped(size_t finished, size_t runs) {
  clear();
  std::cerr << "stopped; " << finished << " of " << runs
            << " runs are finished and saved. The same command continues.\n";
  throw Exit{stopped_exit_code()};
}

void ExperimentReporter::failed(const Error& error, size_t finished, size_t runs) {
  clear();
  const auto* resumable = dynamic_cast<const ResumableError*>(&error);
  const std::string cause = resumable != nullptr ? resumable->cause() : error.what();
  fail(run_, ": ", cause, cause.ends_with('.') ? " " : ". ", finished, " of ", runs,
       " runs are finished and saved; the same command continues");
}

}  // namespace graft
