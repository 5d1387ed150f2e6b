#include "tools/experiments/results_folder.h"

#include <fstream>
#include <sstream>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/run_folder.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  std::ostringstream all;
  all << file.rdbuf();
  GRAFT_CHECK(file.good(), path.string(), ": cannot be read");
  return all.str();
}

// Runs under way have folders of their own.
void remove_results(const fs::path& folder) {
  for (const fs::directory_entry& entry : fs::directory_iterator(folder)) {
    if (entry.is_directory()) {
      RunFolder{entry.path()}.remove_run();
    } else if (entry.path().extension() == ".json" || entry.path().extension() == ".csv") {
      fs::remove(entry.path());
    }
  }
}

}  // namespace

ResultsFolder::ResultsFolder(fs::path path, const Json& settings, bool overwrite)
    : path_(std::move(path)) {
  const std::string wanted = settings.dump(2) + "\n";
  const fs::path file = path_ / "config.json";
  if (fs::exists(file)) {
    const std::string held = read_text(file);
    if (!overwrite) {
      GRAFT_CHECK(held == wanted, path_.string(),
                  ": holds an experiment with other settings, data or weights (config.json); "
                  "choose another --out, or replace it with --force");
      return;
    }
    const Json old = Json::parse(held, nullptr, false);
    GRAFT_CHECK(old.is_object() && old.value("experiment", Json()) == settings.at("experiment"),
                path_.string(),
                ": holds something else than this experiment; choose another --out");
    remove_results(path_);
  }
  std::error_code failed;
  fs::create_directories(path_, failed);
  GRAFT_CHECK(!failed, path_.string(), ": the folder cannot be made: ", failed.message(),
              "; choose another --out");
  write_file_atomically(file, wanted);
}

std::optional<ResultsFolder::Json> ResultsFolder::find(const std::string& run) const {
  if (!fs::exists(file_of(run))) return std::nullopt;
  try {
    return Json::parse(read_text(file_of(run)));
  } catch (const Json::exception& error) {
    fail_damaged(run, error.what());
  }
}

void ResultsFolder::keep(const std::string& run, const Json& result) const {
  write_file_atomically(file_of(run), result.dump(2) + "\n");
}

void ResultsFolder::fail_damaged(const std::string& run, const std::string& fault) const {
  fail(file_of(run).string(), ": is damaged: ", fault, "; remove it, and its run is repeated");
}

}  // namespace graft
