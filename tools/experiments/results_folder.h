// The folder of an experiment: config.json with its settings, and a file for every finished run, so
// that the same command goes on after an interruption.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <optional>
#include <string>

namespace graft {

class ResultsFolder {
 public:
  using Json = nlohmann::ordered_json;

  // Makes the folder for these settings, of which "experiment" is the name, or opens the one that
  // was made with the same. Throws when the folder holds others; with `overwrite` it removes what
  // that experiment left there, unless it is one of another name.
  ResultsFolder(std::filesystem::path path, const Json& settings, bool overwrite);

  const std::filesystem::path& path() const { return path_; }
  // None: the run is not finished. Throws naming a file that cannot be read.
  std::optional<Json> find(const std::string& run) const;
  void keep(const std::string& run, const Json& result) const;
  // What is wrong with a run's file that find() gave.
  [[noreturn]] void fail_damaged(const std::string& run, const std::string& fault) const;

 private:
  std::filesystem::path file_of(const std::string& run) const { return path_ / (run + ".json"); }
  std::filesystem::path path_;
};

}  // namespace graft
