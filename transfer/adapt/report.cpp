#include "transfer/adapt/report.h"

#include <nlohmann/json.hpp>

#include "kernels/error.h"

namespace graft {

using Json = nlohmann::ordered_json;

std::string to_json(const AdaptReport& report) {
  Json line;
  line["epoch"] = report.epoch;
  line["step"] = report.step;
  line["learning_rate"] = report.learning_rate;
  line["strength"] = report.strength;
  line["train"] = report.train;
  line["source_loss"] = report.source_loss;
  line["source_accuracy"] = report.source_accuracy;
  line["validators"] = report.validators;
  const Health& health = report.health;
  line["health"] = {{"domain_accuracy", health.domain_accuracy},
                    {"balance", health.balance},
                    {"largest_share", health.largest_share},
                    {"largest_class", health.largest_class},
                    {"spread", health.spread},
                    {"alarms", health.alarms}};
  if (report.oracle) line["oracle_target_accuracy"] = *report.oracle;
  line["best"] = report.best;
  line["timing"] = {{"seconds", report.seconds}};
  return line.dump();
}

AdaptReport adapt_report_from_json(const std::string& line) {
  try {
    const Json json = Json::parse(line);
    AdaptReport report;
    report.epoch = json.at("epoch");
    report.step = json.at("step");
    report.learning_rate = json.at("learning_rate");
    report.strength = json.at("strength");
    report.train = json.at("train").get<std::map<std::string, double>>();
    report.source_loss = json.at("source_loss");
    report.source_accuracy = json.at("source_accuracy");
    report.validators = json.at("validators").get<std::map<std::string, double>>();
    const Json& health = json.at("health");
    report.health.domain_accuracy = health.at("domain_accuracy");
    report.health.balance = health.at("balance");
    report.health.largest_share = health.at("largest_share");
    report.health.largest_class = health.at("largest_class");
    report.health.spread = health.at("spread");
    report.health.alarms = health.at("alarms").get<std::vector<std::string>>();
    if (json.contains("oracle_target_accuracy")) {
      report.oracle = json.at("oracle_target_accuracy").get<double>();
    }
    report.best = json.at("best");
    report.seconds = json.at("timing").at("seconds");
    return report;
  } catch (const Json::exception& error) {
    fail("metrics.jsonl: a line is damaged: ", error.what());
  }
}

std::vector<Choice> choices(const std::vector<AdaptReport>& reports) {
  std::vector<Choice> rows;
  if (reports.empty()) return rows;
  const auto choose = [&](const std::string& name, const auto& score) {
    const AdaptReport* best = &reports.front();
    for (const AdaptReport& report : reports) {
      if (score(report) > score(*best)) best = &report;
    }
    rows.push_back({name, best->epoch, score(*best), best->oracle, std::nullopt});
  };
  for (const auto& [name, first] : reports.front().validators) {
    choose(name, [&key = name](const AdaptReport& report) { return report.validators.at(key); });
  }
  choose("last", [](const AdaptReport& report) { return static_cast<double>(report.epoch); });
  if (!reports.front().oracle) return rows;
  choose("oracle", [](const AdaptReport& report) { return report.oracle.value_or(0); });
  const double most = *rows.back().accuracy;
  for (Choice& row : rows) row.regret = most - *row.accuracy;
  return rows;
}

}  // namespace graft
