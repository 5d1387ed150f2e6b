// The loop of an adaptation: two loaders in step, a method's steps, and after every epoch a look at
// both domains that chooses without target labels. Everything is given in memory; adapt.h makes it
// from folders and weights.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <optional>
#include <vector>

#include "transfer/adapt/domain_batches.h"
#include "transfer/adapt/method.h"
#include "transfer/adapt/report.h"
#include "transfer/finetune.h"
#include "transfer/plan.h"

namespace graft {

struct AdaptOptions {
  // The source's data, the network, what trains, optimizer, schedule, length, seed and device:
  // as for fine-tuning. batch is that of each domain. batch_norm follows `norm`.
  FinetuneOptions training;
  std::filesystem::path target;
  bool target_labels = false;  // the target's class folders are its labels: for reporting only

  std::string method = "dann";
  std::vector<std::string> settings;  // of the method: "name=value"
  std::string layer;                  // whose output is aligned; "": the head's input
  NormMode norm = NormMode::joint;
  int64_t steps_per_epoch = 0;    // 0: as many as the larger domain has batches
  float extra_multiplier = 1;     // learning rate of the method's own modules, relative
  std::string validator = "bnm";  // what chooses the epoch, see judge.h
  double back_off = 1;            // the adaptation's strength is multiplied by it at an alarm
};

// Throws Error naming the option that is wrong.
void check_adapt_options(const AdaptOptions& options, const MethodInfo& method);

// Beside what fine-tuning tells.
class AdaptObserver : public Observer {
 public:
  virtual void adapted(const AdaptReport&) {}  // after every epoch
};

// Where an adaptation stands; all zero at the start.
struct AdaptState {
  int64_t epoch = 0;  // finished epochs
  int64_t step = 0;
  double strength = 1, largest_spread = 0, best_source_accuracy = 0;
  int64_t best_epoch = 0;  // from 1; 0: none yet
  double best_value = 0, best_loss = 0;
  int64_t since_best = 0;
  bool finished = false;
  std::map<std::string, double> sums;  // of the notes of the epoch under way
};

// What a run trains.
struct AdaptRun {
  AdaptOptions options;
  std::unique_ptr<ImageModel> model;
  std::function<std::unique_ptr<ImageModel>()> blank;  // another one like it, weights unset
  DomainBatches data;
  std::optional<MethodInfo> own_method;  // instead of the one that options.method names
  ModelCard card;                        // written beside the weights
  std::vector<AdaptReport> reports;
  AdaptState state;
  std::vector<FreezeProof> proofs;  // one; of a resumed run, what its file says
  // Of a resumed run: "model/...", "extra/...", "source_norm/...", "optimizer/PART/...".
  std::map<std::string, Tensor> tensors;
};

struct AdaptResult {
  std::unique_ptr<ImageModel> model;  // in inference mode; of the best epoch unless interrupted
  ModelCard card;
  std::vector<AdaptReport> epochs;
  int64_t best_epoch = 0, steps = 0;
  bool interrupted = false, stopped_early = false;
  FreezeProof proof;  // of what the whole run declares frozen
  const AdaptReport* best() const {
    return best_epoch > 0 ? &epochs[static_cast<size_t>(best_epoch - 1)] : nullptr;
  }
};

class AdaptTrainer {
 public:
  // Throws on what cannot be trained: an unknown method, option, layer or validator, nothing left
  // to train, a method that the network is none for.
  AdaptTrainer(AdaptRun run, AdaptObserver& observer);
  AdaptResult run();
  bool has_trained() const { return steps_here_ > 0; }

 private:
  using Clock = std::chrono::steady_clock;

  void make_method();
  void make_optimizers();
  void load_tensors();
  void begin_proof(bool resumed);
  int64_t steps_per_epoch() const;
  bool train_epoch();  // false: a stop was requested
  void train_step();
  bool judge_epoch();  // false: a stop was requested
  void select(AdaptReport& report);
  bool keep_going(Progress progress);
  void save();
  AdaptResult result(bool interrupted);

  AdaptRun run_;
  AdaptObserver& observer_;
  Phase phase_;
  MethodInfo info_;
  std::unique_ptr<DomainNorm> norm_;
  std::unique_ptr<Tap> tap_;
  std::unique_ptr<AdaptMethod> method_;
  std::array<std::unique_ptr<Optimizer>, 3> optimizers_;  // by Part
  std::array<std::vector<float>, 3> base_rates_;
  std::unique_ptr<EndlessBatches> source_, target_;
  StateDict judged_, best_;  // as judged last; of the best epoch (empty: the file has it)
  bool best_unsaved_ = false;
  Clock::time_point last_save_, epoch_start_;
  int64_t steps_here_ = 0;
};

}  // namespace graft
