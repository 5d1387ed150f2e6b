// The files of a run and how they stay consistent.
//
//   config.json        every option as resolved, hashes of data and weights, code version
//   plan.json          what trains in which phase, every default filled in
//   freeze_proof.json  hashes of what was declared frozen, and that it did not move
//   metrics.jsonl      one JSON object an epoch; timings are under "timing", all else is
//                      reproducible
//   best.safetensors   the weights of the best epoch, with their model card
//   lora.safetensors   with --lora: best.safetensors as its difference from the weights before
//   last.safetensors   the weights where training stands
//   state.safetensors  all that --resume needs: weights, optimizer, position, best value
//
// Each file is replaced atomically, state.safetensors last. After a crash between two replacements
// the older state stands beside newer files; the resumed run repeats those steps, gets the same
// numbers and writes the same bytes again.
#pragma once

#include <exception>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/error.h"
#include "layers/models/zoo.h"
#include "transfer/freeze_proof.h"
#include "transfer/options.h"
#include "transfer/plan.h"

namespace graft {

struct RunFolder {
  std::filesystem::path path;
  std::filesystem::path config() const { return path / "config.json"; }
  std::filesystem::path metrics() const { return path / "metrics.jsonl"; }
  std::filesystem::path best() const { return path / "best.safetensors"; }
  std::filesystem::path lora() const { return path / "lora.safetensors"; }
  std::filesystem::path last() const { return path / "last.safetensors"; }
  std::filesystem::path state() const { return path / "state.safetensors"; }
  std::filesystem::path plan() const { return path / "plan.json"; }
  std::filesystem::path freeze_proof() const { return path / "freeze_proof.json"; }
  // Every file that a run can have.
  std::vector<std::filesystem::path> files() const;
  bool holds_run() const;
  // Makes the folder, and removes the files of the run it held.
  void start_afresh() const;
  // Removes the files of a run, and the folder when nothing else is in it.
  void remove_run() const;
  // Removes the temporary files of writes that a crash cut short.
  void remove_leftovers() const;
};

// What ended a run that goes on from its last save: the cause, and the command that continues it.
class ResumableError : public Error {
 public:
  ResumableError(const std::string& what, std::string cause)
      : Error(what), cause_(std::move(cause)) {}
  const std::string& cause() const { return cause_; }

 private:
  std::string cause_;
};
// For a handler: throws the error with `graft COMMAND --resume FOLDER` at its end, in the place of
// the command of a run within the folder. What is no Error is thrown as it is.
[[noreturn]] void fail_resumably(const std::exception& error, const std::string& command,
                                 const std::filesystem::path& folder);

// One line of metrics.jsonl.
struct EpochReport {
  int64_t epoch = 0;         // from 1
  std::string phase;         // of the plan
  int64_t step = 0;          // steps done so far
  double learning_rate = 0;  // of the epoch's last step
  double train_loss = 0, train_accuracy = 0;
  struct Validation {
    double loss = 0, accuracy = 0, balanced_accuracy = 0, macro_f1 = 0;
    std::optional<double> positive_f1;
  };
  std::optional<Validation> validation;  // none where no image is held out
  bool best = false;                     // better than all epochs before
  double seconds = 0;                    // training and validation
  double images_per_second = 0;          // of the training part
};
std::string to_json(const EpochReport& report);
// Throws on a line that to_json does not write.
EpochReport report_from_json(const std::string& line);

// The sums of an epoch that is under way.
struct EpochSums {
  double loss = 0;  // weighted by samples
  int64_t correct = 0, samples = 0;
  double seconds = 0;
};

struct RunState {
  int64_t epoch = 0;  // finished epochs
  int64_t batch = 0;  // finished batches of the one under way
  int64_t step = 0;   // finished steps in all
  EpochSums sums;
  int64_t best_epoch = 0;  // from 1; 0: none yet
  double best_value = 0, best_loss = 0;
  // Of the phase under way, in epochs without a better value: for early stopping, and for the
  // plateau schedule since its last reduction.
  int64_t since_best = 0, since_reduced = 0;
  int64_t reductions = 0;  // of the plateau schedule, in this phase
  bool finished = false;
  StateDict model;
  std::map<std::string, Tensor> optimizer;
  std::map<std::string, Tensor> average;    // of the weights, see regularise/weight_average.h
  int64_t averaged = 0;                     // over so many
  std::map<std::string, Tensor> objective;  // what regularisers have learnt and measured
};

void write_state(const RunFolder& folder, const RunState& state, const ModelCard& card);
struct StoredState {
  RunState state;
  ModelCard card;
};
StoredState read_state(const RunFolder& folder);

struct RunConfig {
  FinetuneOptions options;
  std::string data_sha256;
  std::string weights_sha256;  // "" from scratch
  int threads = 0;             // the sums of oneDNN's weight gradients depend on it
};
void write_config(const RunFolder& folder, const RunConfig& config, const ModelCard& card,
                  int64_t train_images, int64_t validation_images);
RunConfig read_config(const RunFolder& folder);
void write_plan(const RunFolder& folder, const Plan& plan);
Plan read_plan(const RunFolder& folder, const FinetuneOptions& options);
void write_freeze_proofs(const RunFolder& folder, const std::vector<FreezeProof>& proofs);
std::vector<FreezeProof> read_freeze_proofs(const RunFolder& folder);

void write_metrics(const RunFolder& folder, const std::vector<EpochReport>& reports);
// The first `count` lines. Throws when the file has fewer.
std::vector<EpochReport> read_metrics(const RunFolder& folder, int64_t count);

}  // namespace graft
