// Fine-tuning from options to a trained model: what `graft finetune` is a thin layer over.
//
//   graft::FinetuneOptions options = graft::FinetuneOptions::fine_tuning();
//   options.data = "photos";                   // one sub-folder a class
//   options.weights = "lite0.safetensors";     // from `graft convert`
//   options.out = "run";
//   graft::FinetuneResult result = graft::finetune(options);
//   // result.model is the best epoch's, result.best() its numbers, run/ holds the files
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "layers/models/zoo.h"
#include "transfer/options.h"
#include "transfer/plan.h"
#include "transfer/run_folder.h"

namespace graft {

struct Progress {
  enum class Phase : uint8_t { features, training, validation } phase = Phase::training;
  int64_t epoch = 0, epochs = 0;  // from 1
  int64_t done = 0, total = 0;    // batches of this epoch, or images of the other phases
  double loss = 0, accuracy = 0;  // training: means over this epoch so far
  double images_per_second = 0;   // of this epoch so far, or of features; 0: not known
  double seconds_left = -1;       // of the whole run; negative: not known yet
};

// Told how the run goes, from the calling thread. The defaults do nothing.
class Observer {
 public:
  virtual ~Observer() = default;
  virtual void message(const std::string&) {}  // one line for people
  virtual void progress(const Progress&) {}    // after every batch
  virtual void epoch_done(const EpochReport&) {}
  // Asked after every batch; true ends the run with everything saved.
  virtual bool stop_requested() { return false; }
};

struct FinetuneResult {
  std::unique_ptr<ImageModel> model;  // in inference mode; of the best epoch unless interrupted
  ModelCard card;
  std::vector<EpochReport> epochs;
  int64_t best_epoch = 0;  // from 1; 0: none yet
  int64_t steps = 0;
  bool interrupted = false;             // a stop was requested; resume() continues
  bool stopped_early = false;           // `patience` ran out
  std::vector<std::string> bad_images;  // left out, with reasons
  std::vector<FreezeProof> proofs;      // a phase each; empty where nothing is frozen
  const EpochReport* best() const {
    return best_epoch > 0 ? &epochs[static_cast<size_t>(best_epoch - 1)] : nullptr;
  }
};

// Trains as the options say. Nothing is written before options, data and weights have been checked.
// The same options, data, seed and number of threads give the same bytes, whatever the number of
// workers (oneDNN sums weight gradients by thread; everything of our own is independent of threads,
// too). Throws Error on wrong options, unreadable data or weights, a loss that is not finite, a
// full disk.
FinetuneResult finetune(const FinetuneOptions& options, Observer& observer);
FinetuneResult finetune(const FinetuneOptions& options);

// What finetune() would train, without training: reads data and weights and writes nothing. Throws
// as finetune() does.
struct PlannedRun {
  Plan plan;
  std::vector<std::vector<LayerRow>> layers;  // of each phase
  std::vector<std::string> cache;             // what each phase keeps of frozen stages, in words
  int64_t train_images = 0, validation_images = 0;
  int64_t steps_per_epoch = 0;
  std::string objective;  // what a step minimises, in a line
};
PlannedRun plan_finetune(const FinetuneOptions& options, Observer& observer);

// What may differ from the run that is continued: none of these changes the result.
struct ResumeOptions {
  std::filesystem::path data;  // where the data moved to
  std::optional<int64_t> workers;
  std::optional<Device> device;
};
// Continues an interrupted run to the same files as if it had not been interrupted (all but
// "timing" in metrics.jsonl), given as many threads as before. A finished run is returned as it is.
// Throws when the data is not what it was.
FinetuneResult resume(const std::filesystem::path& run, const ResumeOptions& changes,
                      Observer& observer);

}  // namespace graft
