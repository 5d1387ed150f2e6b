// Did the transfer help? Fine-tuning, a linear head on frozen features and training from scratch,
// with paired seeds at equal budget, and the negative-transfer gap between them (measure/gap.h).
//
// The arms "transfer" and "scratch" are one algorithm (Wang et al. 2019): the same data, split,
// order of images, augmentation, epochs, learning rate and batch-norm policy; only the weights that
// they start from differ. A source of random weights is therefore a null pair. The arm "frozen"
// trains the head alone, at a rate of its own. The model of the last epoch is judged, not that of
// the best: choosing one on the images that judge would flatter all arms, and not alike.
#pragma once

#include <filesystem>
#include <optional>
#include <string>
#include <vector>

#include "transfer/finetune.h"
#include "transfer/measure/gap.h"

namespace graft {

enum class Arm : uint8_t { transfer, frozen, scratch };
std::string name_of(Arm arm);

struct VerdictOptions {
  // Shared by all arms and seeds. `seed` is the first one's; `split_seed` is not used: where the
  // data has no split of its own, each seed draws one. Data, weights and out are to be set.
  FinetuneOptions recipe = default_recipe();
  float frozen_learning_rate = 3e-3f;
  int64_t seeds = 5;
  // Gaps of error within -margin..margin do not matter.
  double margin = 0.02;

  // Batch statistics, since weights drawn anew have no others; a rate between the usual ones of
  // fine-tuning and of training from scratch, where both do well.
  static FinetuneOptions default_recipe();
};

struct ArmRun {
  Arm arm = Arm::transfer;
  uint64_t seed = 0;
  double error = 0;  // of the last epoch's model on the images held out
  double seconds = 0;
  std::vector<int64_t> images;  // that judged: indices into the data set
  std::vector<uint8_t> wrong;   // 1 or 0, of each
};

struct Comparison {
  Interval gap;  // of error
  Answer answer = Answer::undecided;
};

struct Verdict {
  bool interrupted = false;  // nothing below but `runs` is set
  std::vector<ArmRun> runs;  // finished ones, seed by seed
  Comparison transfer;       // transfer - scratch: the verdict
  Comparison frozen;         // frozen - scratch
  Comparison thaw;           // transfer - frozen: "helps" means that fine-tuning beats frozen
  double margin = 0;
  int64_t seeds = 0, images = 0;  // images: different ones that judged
  std::optional<int64_t> seeds_needed;
  std::string next;  // what to do now, for people
};

class VerdictObserver : public Observer {
 public:
  virtual void run_started(Arm, uint64_t /*seed*/, int64_t /*number*/, int64_t /*runs*/) {}
  virtual void run_done(const ArmRun&) {}
};

// Trains what is missing in the folder recipe.out (a sub-folder a run, such as transfer-0) and
// answers. Nothing is written before data, weights and options have been checked. A verdict that
// was stopped, or that wants more seeds, goes on with continue_verdict(). Throws Error as
// finetune() does; where a class has too few images for the seeds to hold out different ones; where
// nothing is held out.
Verdict judge_transfer(const VerdictOptions& options, VerdictObserver& observer);

struct VerdictChanges {
  std::optional<int64_t> seeds;  // not fewer than before
  std::optional<int64_t> workers;
  std::optional<Device> device;
};
// Finished runs are not repeated, a run under way goes on where it was. Throws when the data or the
// weights are not what they were.
Verdict continue_verdict(const std::filesystem::path& out, const VerdictChanges& changes,
                         VerdictObserver& observer);
// As started, to be shown; `threads` is what it was started with.
struct StoredVerdict {
  VerdictOptions options;
  int threads = 0;
};
StoredVerdict read_verdict(const std::filesystem::path& out);

// The answer as JSON text: what out/verdict.json holds.
std::string to_json(const Verdict& verdict);

}  // namespace graft
