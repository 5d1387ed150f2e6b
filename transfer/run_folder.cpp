#include "transfer/run_folder.h"

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <nlohmann/json.hpp>
#include <omp.h>
#include <sstream>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/version.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

// Doubles go through the state file as hexadecimal floats, which are exact.
std::string exact(double value) {
  char buffer[40];
  std::snprintf(buffer, sizeof buffer, "%a", value);
  return buffer;
}

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream all;
  all << file.rdbuf();
  GRAFT_CHECK(file.good(), path.string(), ": cannot be read");
  return all.str();
}

class Values {
 public:
  Values(const Metadata& metadata, std::string file)
      : metadata_(metadata), file_(std::move(file)) {}
  int64_t integer(const std::string& key) const {
    return std::strtoll(raw(key).c_str(), nullptr, 10);
  }
  double real(const std::string& key) const { return std::strtod(raw(key).c_str(), nullptr); }

 private:
  const std::string& raw(const std::string& key) const {
    const auto found = metadata_.find("state." + key);
    GRAFT_CHECK(found != metadata_.end(), file_, ": lacks \"state.", key,
                "\", so it is not the state of a run; start the run again");
    return found->second;
  }
  const Metadata& metadata_;
  std::string file_;
};

}  // namespace

std::vector<fs::path> RunFolder::files() const {
  return {config(), state(), metrics(), best(), lora(), last(), plan(), freeze_proof()};
}

bool RunFolder::holds_run() const {
  const std::vector<fs::path> all = files();
  return std::any_of(all.begin(), all.end(), [](const fs::path& file) { return fs::exists(file); });
}

void RunFolder::start_afresh() const {
  std::error_code failed;
  fs::create_directories(path, failed);
  GRAFT_CHECK(!failed, path.string(), ": the folder cannot be made: ", failed.message(),
              "; choose another --out");
  for (const fs::path& file : files()) {
    fs::remove(file, failed);
    GRAFT_CHECK(!failed, file.string(), ": cannot be removed: ", failed.message());
  }
}

void RunFolder::remove_run() const {
  std::error_code harmless;
  for (const fs::path& file : files()) {
    fs::remove(file, harmless);
  }
  fs::remove(path, harmless);  // fails on a folder that is not empty
}

void RunFolder::remove_leftovers() const {
  for (const fs::path& file : files()) {
    const std::string start =
        "." + file.filename().string() + ".";  // as write_safetensors names it
    for (const fs::directory_entry& entry : fs::directory_iterator(path)) {
      const fs::path name = entry.path().filename();
      std::error_code harmless;
      if (name.string().rfind(start, 0) == 0 && name.extension() == ".tmp") {
        fs::remove(entry.path(), harmless);
      }
    }
  }
}

void fail_resumably(const std::exception& error, const std::string& command,
                    const fs::path& folder) {
  if (dynamic_cast<const Error*>(&error) == nullptr) throw;
  const auto* within = dynamic_cast<const ResumableError*>(&error);
  const std::string cause = within != nullptr ? within->cause() : error.what();
  const std::string path = folder.string();
  throw ResumableError(
      text(cause, cause.ends_with('.') ? " " : ". ", path,
           " holds the run as last saved; continue it with: graft ", command, " --resume ", path),
      cause);
}

std::string to_json(const EpochReport& report) {
  Json line;
  line["epoch"] = report.epoch;
  line["phase"] = report.phase;
  line["step"] = report.step;
  line["learning_rate"] = report.learning_rate;
  line["train_loss"] = report.train_loss;
  line["train_accuracy"] = report.train_accuracy;
  if (report.validation) {
    line["val_loss"] = report.validation->loss;
    line["val_accuracy"] = report.validation->accuracy;
    line["val_balanced_accuracy"] = report.validation->balanced_accuracy;
    line["val_macro_f1"] = report.validation->macro_f1;
    if (report.validation->positive_f1) line["val_positive_f1"] = *report.validation->positive_f1;
  }
  line["best"] = report.best;
  line["timing"] = {{"seconds", report.seconds}, {"images_per_second", report.images_per_second}};
  return line.dump();
}

EpochReport report_from_json(const std::string& line) {
  try {
    const Json json = Json::parse(line);
    EpochReport report;
    report.epoch = json.at("epoch");
    report.phase = json.at("phase");
    report.step = json.at("step");
    report.learning_rate = json.at("learning_rate");
    report.train_loss = json.at("train_loss");
    report.train_accuracy = json.at("train_accuracy");
    if (json.contains("val_loss")) {
      EpochReport::Validation& validation = report.validation.emplace();
      validation.loss = json.at("val_loss");
      validation.accuracy = json.at("val_accuracy");
      validation.balanced_accuracy = json.at("val_balanced_accuracy");
      validation.macro_f1 = json.at("val_macro_f1");
      if (json.contains("val_positive_f1")) {
        validation.positive_f1 = json.at("val_positive_f1").get<double>();
      }
    }
    report.best = json.at("best");
    report.seconds = json.at("timing").at("seconds");
    report.images_per_second = json.at("timing").at("images_per_second");
    return report;
  } catch (const Json::exception& error) {
    fail("metrics.jsonl: a line is damaged: ", error.what());
  }
}

void write_state(const RunFolder& folder, const RunState& state, const ModelCard& card) {
  StateDict tensors;
  for (const auto& [name, tensor] : state.model) tensors["model/" + name] = tensor;
  for (const auto& [name, tensor] : state.optimizer) tensors["optimizer/" + name] = tensor;
  for (const auto& [name, tensor] : state.average) tensors["average/" + name] = tensor;
  for (const auto& [name, tensor] : state.objective) tensors["objective/" + name] = tensor;
  Metadata metadata = to_metadata(card);
  metadata["state.epoch"] = text(state.epoch);
  metadata["state.batch"] = text(state.batch);
  metadata["state.step"] = text(state.step);
  metadata["state.loss"] = exact(state.sums.loss);
  metadata["state.correct"] = text(state.sums.correct);
  metadata["state.samples"] = text(state.sums.samples);
  metadata["state.seconds"] = exact(state.sums.seconds);
  metadata["state.best_epoch"] = text(state.best_epoch);
  metadata["state.best_value"] = exact(state.best_value);
  metadata["state.best_loss"] = exact(state.best_loss);
  metadata["state.since_best"] = text(state.since_best);
  metadata["state.since_reduced"] = text(state.since_reduced);
  metadata["state.reductions"] = text(state.reductions);
  metadata["state.averaged"] = text(state.averaged);
  metadata["state.finished"] = text(state.finished);
  write_safetensors(folder.state(), tensors, metadata);
}

StoredState read_state(const RunFolder& folder) {
  const WeightFile file = read_safetensors(folder.state());
  const Values values(file.metadata, folder.state().string());
  StoredState stored;
  stored.card = card_of(file);
  RunState& state = stored.state;
  state.epoch = values.integer("epoch");
  state.batch = values.integer("batch");
  state.step = values.integer("step");
  state.sums.loss = values.real("loss");
  state.sums.correct = values.integer("correct");
  state.sums.samples = values.integer("samples");
  state.sums.seconds = values.real("seconds");
  state.best_epoch = values.integer("best_epoch");
  state.best_value = values.real("best_value");
  state.best_loss = values.real("best_loss");
  state.since_best = values.integer("since_best");
  state.since_reduced = values.integer("since_reduced");
  state.reductions = values.integer("reductions");
  state.averaged = values.integer("averaged");
  state.finished = values.integer("finished") != 0;
  for (const FileTensor& entry : file.tensors) {
    const size_t slash = entry.name.find('/');
    const std::string part = entry.name.substr(0, slash);
    std::map<std::string, Tensor>* parts = part == "model"       ? &state.model
                                           : part == "optimizer" ? &state.optimizer
                                           : part == "average"   ? &state.average
                                           : part == "objective" ? &state.objective
                                                                 : nullptr;
    GRAFT_CHECK(slash != std::string::npos && parts != nullptr, folder.state().string(),
                ": unexpected tensor \"", entry.name, "\"");
    (*parts)[entry.name.substr(slash + 1)] = entry.tensor;
  }
  return stored;
}

void write_config(const RunFolder& folder, const RunConfig& config, const ModelCard& card,
                  int64_t train_images, int64_t validation_images) {
  Json json;
  json["graft"] = version();
  json["model"] = card.architecture;
  json["classes"] = card.class_names;
  json["train_images"] = train_images;
  json["validation_images"] = validation_images;
  json["threads"] = config.threads;
  json["data_sha256"] = config.data_sha256;
  json["weights_sha256"] = config.weights_sha256;
  json["options"] = Json::parse(options_to_json(config.options));
  write_file_atomically(folder.config(), json.dump(2) + "\n");
}

RunConfig read_config(const RunFolder& folder) {
  GRAFT_CHECK(fs::exists(folder.config()) && fs::exists(folder.state()), folder.path.string(),
              ": holds no run to resume (config.json and state.safetensors); start one with --out");
  const Json json = Json::parse(read_text(folder.config()), nullptr, false);
  GRAFT_CHECK(json.is_object() && json.contains("options") && json.contains("data_sha256") &&
                  json["data_sha256"].is_string(),
              folder.config().string(), ": is damaged; start the run again with --force");
  RunConfig config;
  config.options = options_from_json(json["options"].dump());
  config.data_sha256 = json["data_sha256"];
  config.weights_sha256 = json.value("weights_sha256", "");
  config.threads = json.value("threads", 0);
  return config;
}

void write_plan(const RunFolder& folder, const Plan& plan) {
  write_file_atomically(folder.plan(), to_json(plan));
}
Plan read_plan(const RunFolder& folder, const FinetuneOptions& options) {
  return plan_from_json(read_text(folder.plan()), folder.plan().string(), options);
}

void write_freeze_proofs(const RunFolder& folder, const std::vector<FreezeProof>& proofs) {
  write_file_atomically(folder.freeze_proof(), to_json(proofs));
}
std::vector<FreezeProof> read_freeze_proofs(const RunFolder& folder) {
  return proofs_from_json(read_text(folder.freeze_proof()), folder.freeze_proof().string());
}

void write_metrics(const RunFolder& folder, const std::vector<EpochReport>& reports) {
  std::string lines;
  for (const EpochReport& report : reports) lines += to_json(report) + "\n";
  write_file_atomically(folder.metrics(), lines);
}

std::vector<EpochReport> read_metrics(const RunFolder& folder, int64_t count) {
  std::vector<EpochReport> reports;
  if (count == 0) return reports;
  std::istringstream lines(read_text(folder.metrics()));
  for (std::string line; static_cast<int64_t>(reports.size()) < count;) {
    GRAFT_CHECK(std::getline(lines, line), folder.metrics().string(), ": has ", reports.size(),
                " epochs but the state says ", count, "; start the run again with --force");
    reports.push_back(report_from_json(line));
  }
  return reports;
}

}  // namespace graft
