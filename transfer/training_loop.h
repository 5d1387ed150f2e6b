// The loop behind finetune() and resume(): steps, validation, selection, saving.
#pragma once

#include <chrono>

#include "engine/ops.h"
#include "engine/optim.h"
#include "transfer/batches.h"
#include "transfer/evaluation.h"
#include "transfer/prefix_cache.h"
#include "transfer/prepared_run.h"
#include "transfer/regularise/weight_average.h"
#include "transfer/train_step.h"

namespace graft {

class TrainingLoop {
 public:
  TrainingLoop(PreparedRun run, Observer& observer);
  FinetuneResult run();
  // Whether a step was taken here.
  bool has_trained() const { return steps_here_ > 0; }

 private:
  using Clock = std::chrono::steady_clock;

  const Phase& phase() const { return run_.plan.phases[phase_]; }
  int64_t step_of_phase() const;
  void enter_phase();   // the one that the next epoch belongs to
  bool measure();       // what regularisers want to know first; false: a stop was requested
  void leave_phase();   // with the proof that nothing frozen has moved
  bool make_batches();  // false: a stop was requested
  // Whether training from the cache is the same to the bit as without; tells why not.
  bool proven(const PrefixCache& cache, Batches& images);
  bool train_epoch();  // false: a stop was requested
  void train_step(const Batch& batch);
  bool judge_epoch();          // false: a stop was requested
  bool estimate_statistics();  // of averaged weights; false: a stop was requested
  // Those to train, without augmentation; what else the loader is told stays as given.
  std::unique_ptr<Batches> plain_images(LoaderOptions loader) const;
  bool features_done(int64_t images);  // reports so many of them; false: a stop was requested
  bool out_of_patience() const;
  double value_of(const EpochReport& report) const;
  bool keep_going(Progress progress);  // reports; false: a stop was requested
  void select(EpochReport& report);
  void save();
  void restore_best();
  FinetuneResult result(bool interrupted);

  PreparedRun run_;
  Observer& observer_;
  RunFolder folder_;
  std::unique_ptr<Batches> train_, validation_;
  std::unique_ptr<DeviceBatches> feed_;  // train_'s
  std::unique_ptr<Objective> objective_;
  std::unique_ptr<Optimizer> optimizer_;
  std::unique_ptr<WeightAverage> average_;  // of the phase; null: the last weights are judged
  std::vector<float> base_rates_;           // of the optimizer's groups
  size_t phase_ = 0;
  int64_t phase_begin_ = 0, phase_end_ = 0;  // its epochs
  bool batches_of_images_ = false;           // train_ and validation_ hold for any phase
  Forward forward_;
  std::unique_ptr<TrainStep> train_step_;
  int64_t total_steps_ = 0, phase_steps_ = 0, epochs_ = 0, positive_ = 1;
  StateDict best_;        // of this process; empty: best.safetensors has it
  StateDict best_delta_;  // the same for lora.safetensors
  bool best_unsaved_ = false;
  Clock::time_point last_save_;
  double train_seconds_here_ = 0, judge_seconds_ = 0;  // of this process, not of the whole run
  int64_t steps_here_ = 0;
  std::vector<std::string> bad_images_;
};

}  // namespace graft
