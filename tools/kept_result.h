// --out and --force of the commands that measure: what came out, and of what, in a folder.
//
//   config.json  the command, its options as resolved, SHA-256 of data and weights, code version
//   result.json  what --json prints
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "tools/command.h"

namespace graft {

// What a result was made from: the value of an option.
struct MeasuredInput {
  std::string name;  // of the option, "data"
  // A file is hashed as it is. Of images, in a folder or a manifest, paths, labels and sizes are.
  std::filesystem::path path;
  std::string split;  // of a manifest; "": all
};

class KeptResult {
 public:
  void add_to(CLI::App& command);
  // Before the work: throws when the folder holds a result and --force was not given.
  void begin() const;
  // Nothing without --out.
  void write(const nlohmann::ordered_json& result, const std::vector<MeasuredInput>& inputs) const;

 private:
  std::filesystem::path config() const { return out_ / "config.json"; }
  std::filesystem::path result() const { return out_ / "result.json"; }
  nlohmann::ordered_json options() const;

  CLI::App* command_ = nullptr;
  std::filesystem::path out_;
  bool force_ = false;
};

}  // namespace graft
