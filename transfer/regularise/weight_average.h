// Averages of the weights over a phase, which are judged and kept in the place of the last ones.
//
//   EMA  Polyak and Juditsky (1992): average = w + d (average - w) after every step, where d is the
//        decay, at most (1 + t) / (10 + t) in step t: an average over few steps would be the
//        start's. Running statistics are averaged, too.
//   SWA  Izmailov et al. (UAI 2018): the mean of the weights at the ends of epochs, from a part of
//        the phase on. Statistics of batch norms that use a batch's belong to none of the averaged
//        weights and are estimated anew, by a pass over the training images without augmentation.
//
// Traps: SWA wants a rate that stays high to the end (--schedule constant); EMA's decay counts in
// steps: 0.999 looks back a thousand of them.
#pragma once

#include <functional>
#include <map>
#include <string>
#include <vector>

#include "transfer/batches.h"
#include "transfer/plan.h"
#include "transfer/regularise/options.h"

namespace graft {

class WeightAverage {
 public:
  // Of what may change in the phase, from its values now. The model outlives the average.
  WeightAverage(ImageModel& model, const Phase& phase, const RegulariseOptions& options);
  // To be called after a step, and at the end of an epoch (of the phase, from 1) of so many; twice
  // for the same epoch, it counts once.
  void after_step();
  void after_epoch(int64_t epoch, int64_t epochs);
  // Whether there is something to judge: for EMA a step was taken, for SWA an epoch counted.
  bool begun() const { return count_ > 0; }

  // For a resumed run: everything that it holds, on the CPU.
  std::map<std::string, Tensor> state() const;
  int64_t count() const { return count_; }
  // Throws Error when the state is that of another model or phase.
  void load(const std::map<std::string, Tensor>& state, int64_t count);

  // The model holds the average as long as this lives; then the weights, statistics and counters it
  // had before.
  class Guard {
   public:
    explicit Guard(WeightAverage& average);
    ~Guard();
    Guard(const Guard&) = delete;
    Guard& operator=(const Guard&) = delete;

   private:
    WeightAverage& average_;
    std::vector<Tensor> before_;
  };

 private:
  struct Entry {
    std::string name;
    Tensor* tensor;
    Tensor average;  // undefined for a counter, which is kept but not averaged
  };
  void mix_in(float keep);

  RegulariseOptions options_;
  std::vector<Entry> entries_;
  int64_t count_ = 0;  // EMA: steps; SWA: averaged epochs
};

// Sets the running statistics of the batch norms that use batch statistics in this phase to the
// mean over these batches. Leaves the model in inference mode. `keep_going` is called after every
// batch; when it returns false, so does this.
bool estimate_statistics(ImageModel& model, const Phase& phase, Batches& images, Device device,
                         const std::function<bool(int64_t)>& keep_going);

}  // namespace graft
