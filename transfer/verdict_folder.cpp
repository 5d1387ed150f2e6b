#include "transfer/verdict_folder.h"

#include <fstream>
#include <nlohmann/json.hpp>
#include <sstream>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/version.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

Json read_json(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream all;
  all << file.rdbuf();
  Json json = Json::parse(all.str(), nullptr, false);
  GRAFT_CHECK(file.good() && json.is_object(), path.string(),
              ": is damaged; judge again with --force");
  return json;
}

Json json_of(const Interval& gap) {
  return {{"value", gap.value}, {"low", gap.low}, {"high", gap.high}};
}

Json json_of(const Comparison& comparison) {
  return {{"gap", json_of(comparison.gap)}, {"answer", name_of(comparison.answer)}};
}

}  // namespace

fs::path VerdictFolder::run(Arm arm, uint64_t seed) const {
  return path / text(name_of(arm), "-", seed);
}
fs::path VerdictFolder::judged(Arm arm, uint64_t seed) const {
  return run(arm, seed) / "judged.json";
}
fs::path VerdictFolder::initial(uint64_t seed) const {
  return run(Arm::scratch, seed) / "initial.safetensors";
}

bool VerdictFolder::holds_verdict() const { return fs::exists(config()); }

void VerdictFolder::remove_verdict() const {
  const VerdictOptions options = read_config(*this).options;
  std::error_code harmless;
  for (int64_t i = 0; i < options.seeds; ++i) {
    const uint64_t seed = options.recipe.seed + static_cast<uint64_t>(i);
    fs::remove(initial(seed), harmless);
    for (const Arm arm : {Arm::transfer, Arm::frozen, Arm::scratch}) {
      fs::remove(judged(arm, seed), harmless);
      RunFolder{run(arm, seed)}.remove_run();
    }
  }
  fs::remove(answer(), harmless);
  fs::remove(config(), harmless);
}

void VerdictFolder::tidy(Arm arm, uint64_t seed) const {
  std::error_code harmless;
  const RunFolder folder{run(arm, seed)};
  fs::remove(folder.state(), harmless);
  fs::remove(folder.best(), harmless);
  if (arm == Arm::scratch) fs::remove(initial(seed), harmless);
}

void write_config(const VerdictFolder& folder, const VerdictConfig& config) {
  Json json;
  json["graft"] = version();
  json["kind"] = "verdict";
  json["seeds"] = config.options.seeds;
  json["margin"] = config.options.margin;
  json["frozen_learning_rate"] = decimal(config.options.frozen_learning_rate);
  json["data_sha256"] = config.data_sha256;
  json["weights_sha256"] = config.weights_sha256;
  json["threads"] = config.threads;
  json["recipe"] = Json::parse(options_to_json(config.options.recipe));
  write_file_atomically(folder.config(), json.dump(2) + "\n");
}

VerdictConfig read_config(const VerdictFolder& folder) {
  GRAFT_CHECK(folder.holds_verdict(), folder.path.string(),
              ": holds no verdict to resume (config.json); start one with --out");
  const Json json = read_json(folder.config());
  GRAFT_CHECK(json.value("kind", "") == "verdict", folder.path.string(),
              ": holds a run of another command, not a verdict; choose another folder");
  try {
    VerdictConfig config;
    config.options.recipe = options_from_json(json.at("recipe").dump());
    config.options.recipe.out = folder.path;
    config.options.seeds = json.at("seeds");
    config.options.margin = json.at("margin");
    config.options.frozen_learning_rate = json.at("frozen_learning_rate");
    config.data_sha256 = json.at("data_sha256");
    config.weights_sha256 = json.at("weights_sha256");
    config.threads = json.at("threads");
    return config;
  } catch (const Json::exception&) {
    fail(folder.config().string(), ": is damaged; judge again with --force");
  }
}

void write_judged(const VerdictFolder& folder, const ArmRun& run) {
  Json json;
  json["arm"] = name_of(run.arm);
  json["seed"] = run.seed;
  json["error"] = run.error;
  json["seconds"] = run.seconds;
  json["images"] = run.images;
  json["wrong"] = run.wrong;
  write_file_atomically(folder.judged(run.arm, run.seed), json.dump() + "\n");
}

std::optional<ArmRun> read_judged(const VerdictFolder& folder, Arm arm, uint64_t seed) {
  const fs::path path = folder.judged(arm, seed);
  if (!fs::exists(path)) return std::nullopt;
  const Json json = read_json(path);
  ArmRun run;
  run.arm = arm;
  run.seed = seed;
  try {
    run.error = json.at("error");
    run.seconds = json.at("seconds");
    run.images = json.at("images").get<std::vector<int64_t>>();
    run.wrong = json.at("wrong").get<std::vector<uint8_t>>();
  } catch (const Json::exception&) {
    run.images.clear();
  }
  GRAFT_CHECK(!run.images.empty() && run.images.size() == run.wrong.size(), path.string(),
              ": is damaged; remove it, and the run is judged again");
  return run;
}

std::string to_json(const Verdict& verdict) {
  Json json;
  json["answer"] = name_of(verdict.transfer.answer);
  json["gap"] = json_of(verdict.transfer.gap);
  json["margin"] = verdict.margin;
  json["seeds"] = verdict.seeds;
  json["images"] = verdict.images;
  json["frozen_against_scratch"] = json_of(verdict.frozen);
  json["transfer_against_frozen"] = json_of(verdict.thaw);
  if (verdict.seeds_needed) json["seeds_needed"] = *verdict.seeds_needed;
  json["runs"] = Json::array();
  for (const ArmRun& run : verdict.runs) {
    json["runs"].push_back({{"arm", name_of(run.arm)}, {"seed", run.seed}, {"error", run.error}});
  }
  json["next"] = verdict.next;
  return json.dump();
}

}  // namespace graft
