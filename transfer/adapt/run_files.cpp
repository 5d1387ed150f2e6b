#include "transfer/adapt/run_files.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/version.h"

namespace graft {

using Json = nlohmann::ordered_json;

template <>
const std::vector<std::pair<std::string, NormMode>>& names_of() {
  static const std::vector<std::pair<std::string, NormMode>> names{
      {"frozen", NormMode::frozen}, {"joint", NormMode::joint}, {"domain", NormMode::domain}};
  return names;
}

void write_adapt_config(const RunFolder& folder, const AdaptConfig& config,
                        const std::vector<MethodOption>& settings) {
  const AdaptOptions& options = config.options;
  Json json;
  json["graft"] = version();
  json["command"] = "adapt";
  json["threads"] = config.threads;
  json["source_sha256"] = config.source_sha256;
  json["target_sha256"] = config.target_sha256;
  json["weights_sha256"] = config.weights_sha256;
  json["target"] = std::filesystem::absolute(options.target).string();
  json["target_labels"] = options.target_labels;
  json["method"] = options.method;
  for (const MethodOption& setting : settings) json["settings"][setting.name] = setting.value;
  json["layer"] = options.layer;
  json["norm"] = to_name(options.norm);
  json["steps_per_epoch"] = options.steps_per_epoch;
  json["extra_multiplier"] = decimal(options.extra_multiplier);
  json["validator"] = options.validator;
  json["back_off"] = options.back_off;
  json["training"] = Json::parse(options_to_json(options.training));
  write_file_atomically(folder.config(), json.dump(2) + "\n");
}

AdaptConfig read_adapt_config(const RunFolder& folder) {
  const std::string file = folder.config().string();
  std::ifstream in(folder.config(), std::ios::binary);
  std::ostringstream all;
  all << in.rdbuf();
  GRAFT_CHECK(in.good(), file, ": cannot be read; --resume wants the folder of a run");
  const Json json = Json::parse(all.str(), nullptr, false);
  GRAFT_CHECK(json.is_object() && json.value("command", "") == "adapt", file,
              ": is not the configuration of an adaptation; use the command that made the run");
  try {
    AdaptConfig config;
    AdaptOptions& options = config.options;
    config.threads = json.at("threads");
    config.source_sha256 = json.at("source_sha256");
    config.target_sha256 = json.at("target_sha256");
    config.weights_sha256 = json.at("weights_sha256");
    options.target = json.at("target").get<std::string>();
    options.target_labels = json.at("target_labels");
    options.method = json.at("method");
    if (json.contains("settings")) {
      for (const auto& [name, value] : json.at("settings").items()) {
        options.settings.push_back(name + "=" + value.get<std::string>());
      }
    }
    options.layer = json.at("layer");
    for (const auto& [name, mode] : names_of<NormMode>()) {
      if (name == json.at("norm")) options.norm = mode;
    }
    options.steps_per_epoch = json.at("steps_per_epoch");
    options.extra_multiplier = json.at("extra_multiplier");
    options.validator = json.at("validator");
    options.back_off = json.at("back_off");
    options.training = options_from_json(json.at("training").dump());
    options.training.out = folder.path;
    return config;
  } catch (const Json::exception& error) {
    fail(file, ": is damaged: ", error.what());
  }
}

void write_adapt_metrics(const RunFolder& folder, const std::vector<AdaptReport>& reports) {
  std::string lines;
  for (const AdaptReport& report : reports) lines += to_json(report) + "\n";
  write_file_atomically(folder.metrics(), lines);
}

std::vector<AdaptReport> read_adapt_metrics(const RunFolder& folder, int64_t count) {
  std::vector<AdaptReport> reports;
  std::ifstream lines(folder.metrics());
  for (std::string line; static_cast<int64_t>(reports.size()) < count;) {
    GRAFT_CHECK(std::getline(lines, line), folder.metrics().string(), ": has ", reports.size(),
                " epochs but the state says ", count, "; start the run again with --force");
    reports.push_back(adapt_report_from_json(line));
  }
  return reports;
}

// Numbers go through the file as f64 tensors, which are exact.
void write_adapt_state(const RunFolder& folder, const AdaptState& state,
                       const std::map<std::string, Tensor>& tensors, const ModelCard& card) {
  std::map<std::string, Tensor> all = tensors;
  const auto number = [](int64_t value) { return static_cast<double>(value); };
  all["state"] = Tensor::of<double>({number(state.epoch), number(state.step), state.strength,
                                     state.largest_spread, state.best_source_accuracy,
                                     number(state.best_epoch), state.best_value, state.best_loss,
                                     number(state.since_best), number(state.finished)});
  for (const auto& [name, sum] : state.sums) all["sums/" + name] = Tensor::of<double>({sum});
  write_safetensors(folder.state(), all, to_metadata(card));
}

StoredAdaptState read_adapt_state(const RunFolder& folder) {
  const WeightFile file = read_safetensors(folder.state());
  StoredAdaptState stored;
  stored.card = card_of(file);
  AdaptState& state = stored.state;
  for (const FileTensor& entry : file.tensors) {
    if (entry.name == "state") {
      const std::vector<double> v = entry.tensor.to_vector<double>();
      GRAFT_CHECK(v.size() == 10, folder.state().string(), ": the tensor \"state\" has ", v.size(),
                  " numbers, expected 10; start the run again");
      const auto integer = [&](size_t i) { return static_cast<int64_t>(v[i]); };
      state.epoch = integer(0);
      state.step = integer(1);
      state.strength = v[2];
      state.largest_spread = v[3];
      state.best_source_accuracy = v[4];
      state.best_epoch = integer(5);
      state.best_value = v[6];
      state.best_loss = v[7];
      state.since_best = integer(8);
      state.finished = v[9] != 0;
    } else if (entry.name.starts_with("sums/")) {
      state.sums[entry.name.substr(5)] = entry.tensor.to_vector<double>().at(0);
    } else {
      stored.tensors[entry.name] = entry.tensor;
    }
  }
  GRAFT_CHECK(!stored.tensors.empty(), folder.state().string(),
              ": is not the state of an adaptation; start the run again");
  return stored;
}

}  // namespace graft
