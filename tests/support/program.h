// The built program as people and scripts use it.
#pragma once

#include <filesystem>
#include <nlohmann/json.hpp>
#include <string>
#include <sys/types.h>
#include <vector>

#include "tests/support/pictures.h"

namespace graft::testing {

struct Outcome {
  int code = -1;  // 128 + signal for a killed process
  std::string out, err;
};

// One run of the program, its streams in files.
class Run {
 public:
  explicit Run(const std::vector<std::string>& arguments, const std::string& stdout_to = "");
  ~Run();
  Run(const Run&) = delete;
  Run& operator=(const Run&) = delete;

  void send(int signal);
  std::string out_so_far() const;
  // Until standard output holds `text`, or a minute has passed.
  void wait_for(const std::string& text) const;
  Outcome wait();

 private:
  TemporaryFolder folder_;
  pid_t pid_;
};

Outcome graft_program(const std::vector<std::string>& arguments);

bool contains(const std::string& text, const std::string& part);
std::vector<nlohmann::json> json_lines(const std::string& text);

// Pictures that a small network learns in a few epochs, for all cases of a test program.
const std::filesystem::path& pictures();
// The arguments of a run of finetune on them, from scratch.
std::vector<std::string> training(const std::filesystem::path& out, const std::string& epochs);
// Weights that such a run made, for all cases of a test program.
const std::filesystem::path& trained();

}  // namespace graft::testing
