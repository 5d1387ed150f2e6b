#include "transfer/regularise/weight_average.h"

#include <algorithm>
#include <set>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "kernels/error.h"
#include "layers/norm.h"

namespace graft {

WeightAverage::WeightAverage(ImageModel& model, const Phase& phase,
                             const RegulariseOptions& options)
    : options_(options) {
  std::set<std::string> frozen;
  for (const NamedTensor& entry : frozen_tensors(model, phase)) frozen.insert(entry.name);
  for (const NamedTensor& entry : model.named_tensors()) {
    if (frozen.count(entry.name) > 0) continue;
    const bool counter = entry.layout == FileLayout::counter;
    entries_.push_back({entry.name, entry.tensor, counter ? Tensor() : entry.tensor->clone()});
  }
}

// average = w + keep (average - w): exactly w where keep is 0.
void WeightAverage::mix_in(float keep) {
  const NoGrad no_grad;
  for (Entry& entry : entries_) {
    if (!entry.average.defined()) continue;
    const Tensor now = entry.tensor->detach();
    entry.average = keep == 0 ? now.clone() : add(now, mul(sub(entry.average, now), keep));
  }
}

void WeightAverage::after_step() {
  if (options_.ema < 0) return;
  ++count_;
  const auto t = static_cast<float>(count_);
  mix_in(std::min(options_.ema, (1 + t) / (10 + t)));
}

void WeightAverage::after_epoch(int64_t epoch, int64_t epochs) {
  if (options_.swa < 0) return;
  const auto before =
      static_cast<int64_t>(static_cast<double>(options_.swa) * static_cast<double>(epochs));
  if (epoch - before <= count_) return;
  ++count_;
  mix_in(static_cast<float>(count_ - 1) / static_cast<float>(count_));
}

std::map<std::string, Tensor> WeightAverage::state() const {
  std::map<std::string, Tensor> state;
  for (const Entry& entry : entries_) {
    if (entry.average.defined()) state[entry.name] = entry.average.to(kCpu).clone();
  }
  return state;
}

void WeightAverage::load(const std::map<std::string, Tensor>& state, int64_t count) {
  count_ = count;
  for (Entry& entry : entries_) {
    if (!entry.average.defined()) continue;
    const auto found = state.find(entry.name);
    GRAFT_CHECK(found != state.end() && found->second.shape() == entry.average.shape(),
                "weight average: the state has no ", entry.name, " of ", entry.average,
                "; start the run again with --force");
    entry.average = found->second.to(entry.average.device()).clone();
  }
}

WeightAverage::Guard::Guard(WeightAverage& average) : average_(average) {
  for (Entry& entry : average_.entries_) {
    before_.push_back(entry.tensor->clone());
    if (entry.average.defined()) entry.tensor->copy_from(entry.average);
  }
}
WeightAverage::Guard::~Guard() {
  for (size_t i = 0; i < before_.size(); ++i) {
    average_.entries_[i].tensor->copy_from(before_[i]);
  }
}

bool estimate_statistics(ImageModel& model, const Phase& phase, Batches& images, Device device,
                         const std::function<bool(int64_t)>& keep_going) {
  set_training_mode(model, phase);
  struct Norm {
    BatchNorm2d* norm;
    float momentum, stochastic;
  };
  std::vector<Norm> norms;
  for (const auto& [name, module] : model.named_modules()) {
    auto* norm = dynamic_cast<BatchNorm2d*>(module);
    if (norm == nullptr || norm->uses_running_statistics()) continue;
    norms.push_back({norm, norm->momentum(), norm->stochastic()});
  }
  model.eval();  // no dropout
  for (const Norm& entry : norms) {
    entry.norm->train();
    entry.norm->set_stochastic(0);
  }
  const NoGrad no_grad;
  images.start_epoch(0, 0);
  bool complete = true;
  float batches = 0;
  int64_t done = 0;
  for (Batch batch; complete && images.next(batch);) {
    batches += 1;
    for (const Norm& entry : norms) entry.norm->set_momentum(1 / batches);
    model.forward(batch.images.to(device));
    done += batch.images.dim(0);
    complete = keep_going(done);
  }
  for (const Norm& entry : norms) {
    entry.norm->set_momentum(entry.momentum);
    entry.norm->set_stochastic(entry.stochastic);
  }
  model.eval();
  return complete;
}

}  // namespace graft
