// Domain adaptation repeated over tasks, methods and seeds, and what the seeds say together.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "tools/experiments/reporter.h"
#include "tools/experiments/results_folder.h"
#include "transfer/measure/statistics.h"

namespace graft {

struct AdaptJob {
  std::string task, method;
  uint64_t seed = 0;
  std::function<AdaptRun()> make;
};

// Accuracy on the target: of the last epoch, of the epoch that the run's validator chose, and of
// the epoch that is best by the target's labels.
struct TargetScore {
  double last = 0, chosen = 0, oracle = 0;
};

class AdaptResults {
 public:
  // Reads the results of finished runs from the folder and trains the others, with a line each.
  // After a stop it says so and throws Exit.
  AdaptResults(const std::vector<AdaptJob>& jobs, const ResultsFolder& folder);

  // A number a seed.
  std::vector<double> of(const std::string& task, const std::string& method,
                         double TargetScore::*score) const;
  // The mean of the differences of the same seeds, and its interval.
  Interval gain(const std::string& task, const std::string& method, const std::string& baseline,
                double TargetScore::*score) const;

 private:
  std::map<std::tuple<std::string, std::string, uint64_t>, TargetScore> scores_;
};

}  // namespace graft
