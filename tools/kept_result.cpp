#include "tools/kept_result.h"

#include <omp.h>

#include "engine/io/weights.h"
#include "transfer/task_data.h"
#include "transfer/version.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using Json = nlohmann::ordered_json;

// A number where it is one.
Json value_of(const std::string& text) {
  const Json number = Json::parse(text, nullptr, false);
  return number.is_number() ? number : Json(text);
}

std::string hash_of(const MeasuredInput& input) {
  const bool folder = fs::is_directory(input.path);
  if (!folder && input.path.extension() != ".csv") return sha256_hex(input.path);
  return images_sha256(read_images(input.path, input.split),
                       folder ? input.path : input.path.parent_path());
}

}  // namespace

void KeptResult::add_to(CLI::App& command) {
  command_ = &command;
  command.add_option("--out", out_, "folder to keep the result in, with what it was made from");
  command.add_flag("--force", force_, "replace the result that --out holds");
}

void KeptResult::begin() const {
  if (out_.empty()) return;
  GRAFT_CHECK(force_ || (!fs::exists(config()) && !fs::exists(result())), out_.string(),
              ": already holds a result; replace it with --force, or choose another --out");
}

Json KeptResult::options() const {
  Json options;
  for (const CLI::Option* option : command_->get_options()) {
    const std::string name = option->get_lnames().front();
    if (name == "help" || name == "out" || name == "force" || name == "json") continue;
    std::vector<std::string> given = option->results();
    if (given.empty() && !option->get_default_str().empty()) given = {option->get_default_str()};
    if (given.empty()) continue;
    if (given.size() == 1 && option->get_expected_max() == 1) {
      options[name] = value_of(given.front());
      continue;
    }
    for (const std::string& one : given) options[name].push_back(value_of(one));
  }
  return options;
}

void KeptResult::write(const Json& result_json, const std::vector<MeasuredInput>& inputs) const {
  if (out_.empty()) return;
  Json config_json{{"graft", version()}, {"command", command_->get_name()}};
  config_json["threads"] = omp_get_max_threads();
  config_json["options"] = options();
  for (const MeasuredInput& input : inputs) {
    if (!input.path.empty()) {
      config_json["sha256"][input.name][input.path.string()] = hash_of(input);
    }
  }
  std::error_code failed;
  fs::create_directories(out_, failed);
  GRAFT_CHECK(!failed, out_.string(), ": the folder cannot be made: ", failed.message(),
              "; choose another --out");
  const auto text_of = [](const Json& json) {
    return json.dump(2, ' ', false, Json::error_handler_t::replace) + "\n";
  };
  write_file_atomically(config(), text_of(config_json));
  write_file_atomically(result(), text_of(result_json));
}

}  // namespace graft
