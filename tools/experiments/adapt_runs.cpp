#include "tools/experiments/adapt_runs.h"

#include <algorithm>

#include "tools/numbers.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

Json to_json(const AdaptResult& result) {
  double oracle = 0;
  for (const AdaptReport& epoch : result.epochs) oracle = std::max(oracle, *epoch.oracle);
  return {{"last", *result.epochs.back().oracle},
          {"chosen", *result.best()->oracle},
          {"oracle", oracle},
          {"chosen_epoch", result.best_epoch},
          {"epochs", result.epochs.size()}};
}

}  // namespace

AdaptResults::AdaptResults(const std::vector<AdaptJob>& jobs, const ResultsFolder& folder) {
  ExperimentReporter reporter;
  for (const AdaptJob& job : jobs) {
    const std::string name = text(job.task, "-", job.method, "-seed", job.seed);
    reporter.start(name, scores_.size() + 1, jobs.size());
    auto result = folder.find(name);
    if (!result) {
      AdaptResult trained;
      try {
        trained = AdaptTrainer(job.make(), reporter).run();
      } catch (const Error& error) {
        reporter.failed(error, scores_.size(), jobs.size());
      }
      if (trained.interrupted) reporter.stopped(scores_.size(), jobs.size());
      result = to_json(trained);
      folder.keep(name, *result);
    }
    TargetScore& score = scores_[{job.task, job.method, job.seed}];
    try {
      score = {result->at("last"), result->at("chosen"), result->at("oracle")};
    } catch (const Json::exception& error) {
      folder.fail_damaged(name, error.what());
    }
    reporter.done(text(name, ": target accuracy ", in_percent(score.last),
                       " % after the last epoch, ", in_percent(score.chosen),
                       " % at the chosen one"));
  }
}

std::vector<double> AdaptResults::of(const std::string& task, const std::string& method,
                                     double TargetScore::*score) const {
  std::vector<double> values;
  for (const auto& [key, value] : scores_) {  // seeds in ascending order
    if (std::get<0>(key) == task && std::get<1>(key) == method) values.push_back(value.*score);
  }
  return values;
}

Interval AdaptResults::gain(const std::string& task, const std::string& method,
                            const std::string& baseline, double TargetScore::*score) const {
  std::vector<double> differences = of(task, method, score);
  const std::vector<double> without = of(task, baseline, score);
  for (size_t i = 0; i < differences.size(); ++i) differences[i] -= without[i];
  return mean_interval(differences);
}

}  // namespace graft
