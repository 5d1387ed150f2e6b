// The files of a verdict.
//
//   config.json      the options as resolved, hashes of data and weights, threads, code version
//   transfer-0/ ...  the run folder of an arm and seed (run_folder.h); of a finished one only what
//                    trained and the weights that were judged stay
//   transfer-0/judged.json   its error and which images it got wrong: written last
//   verdict.json     the answer
#pragma once

#include "transfer/verdict.h"

namespace graft {

struct VerdictFolder {
  std::filesystem::path path;
  std::filesystem::path config() const { return path / "config.json"; }
  std::filesystem::path answer() const { return path / "verdict.json"; }
  std::filesystem::path run(Arm arm, uint64_t seed) const;
  std::filesystem::path judged(Arm arm, uint64_t seed) const;
  // The weights that an arm "scratch" starts from.
  std::filesystem::path initial(uint64_t seed) const;
  bool holds_verdict() const;
  // Removes a verdict's files and runs, and no others.
  void remove_verdict() const;
  // Removes of a judged run what is of no use any more: its state and the best epoch's weights.
  void tidy(Arm arm, uint64_t seed) const;
};

struct VerdictConfig {
  VerdictOptions options;
  std::string data_sha256, weights_sha256;
  int threads = 0;
};
void write_config(const VerdictFolder& folder, const VerdictConfig& config);
VerdictConfig read_config(const VerdictFolder& folder);

void write_judged(const VerdictFolder& folder, const ArmRun& run);
// None: not judged yet. Throws on a damaged file.
std::optional<ArmRun> read_judged(const VerdictFolder& folder, Arm arm, uint64_t seed);

}  // namespace graft
