// What is known after an epoch of adaptation: one line of metrics.jsonl.
#pragma once

#include <cstdint>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "transfer/adapt/health.h"

namespace graft {

struct AdaptReport {
  int64_t epoch = 0;                            // from 1
  int64_t step = 0;                             // steps done so far
  double learning_rate = 0;                     // of the epoch's last step
  double strength = 1;                          // of the adaptation in this epoch, see StepPlace
  std::map<std::string, double> train;          // means of what the steps noted
  double source_loss = 0, source_accuracy = 0;  // of the source's held-out images
  std::map<std::string, double> validators;     // scores without target labels, larger is better
  Health health;
  std::optional<double> oracle;  // accuracy on the target's labels: never used to choose
  bool best = false;             // better than all epochs before, by the run's validator
  double seconds = 0;
};
std::string to_json(const AdaptReport& report);
// Throws on a line that to_json does not write.
AdaptReport adapt_report_from_json(const std::string& line);

// What each validator would have chosen; the last row is the oracle's own choice. Accuracy and
// regret (the oracle's best accuracy minus this one's) only where target labels are known.
struct Choice {
  std::string validator;
  int64_t epoch = 0;
  double score = 0;
  std::optional<double> accuracy, regret;
};
std::vector<Choice> choices(const std::vector<AdaptReport>& reports);

}  // namespace graft
