#include "transfer/adapt/domain_norm.h"

#include <algorithm>
#include <memory>

#include "engine/autograd.h"
#include "kernels/error.h"
#include "layers/tap.h"

namespace graft {
namespace {

struct NamedNorm {
  std::string name;
  BatchNorm2d* layer;
};

std::vector<NamedNorm> batch_norms(Module& network) {
  std::vector<NamedNorm> norms;
  for (const auto& [name, module] : network.named_modules()) {
    if (auto* norm = dynamic_cast<BatchNorm2d*>(module)) norms.push_back({name, norm});
  }
  return norms;
}

// Sums over batches, in double.
struct Pooled {
  double count = 0;
  std::vector<double> sum, squares;  // of x and of x^2

  void add(double n, const std::vector<float>& mean, const std::vector<float>& variance) {
    sum.resize(mean.size());
    squares.resize(mean.size());
    for (size_t c = 0; c < mean.size(); ++c) {
      const double m = static_cast<double>(mean[c]), v = static_cast<double>(variance[c]);
      sum[c] += n * m;
      squares[c] += (n - 1) * v + n * m * m;
    }
    count += n;
  }
  void write(BatchNorm2d& norm) const {
    std::vector<float> mean, variance;
    for (size_t c = 0; c < sum.size(); ++c) {
      const double m = sum[c] / count;
      mean.push_back(static_cast<float>(m));
      variance.push_back(
          static_cast<float>(std::max(0.0, (squares[c] - count * m * m) / (count - 1))));
    }
    norm.running_mean.copy_from(Tensor::of(mean).to(norm.running_mean.device()));
    norm.running_var.copy_from(Tensor::of(variance).to(norm.running_var.device()));
  }
};

}  // namespace

DomainNorm::DomainNorm(Module& network, NormMode mode) : mode_(mode) {
  for (const NamedNorm& norm : batch_norms(network)) {
    norms_.push_back({norm.name, norm.layer, Tensor(), Tensor()});
    norm.layer->freeze_statistics(mode == NormMode::frozen);
    if (mode == NormMode::domain) {
      norms_.back().mean = norm.layer->running_mean.clone();
      norms_.back().variance = norm.layer->running_var.clone();
    }
  }
}

size_t DomainNorm::count(Module& network) { return batch_norms(network).size(); }

void DomainNorm::use(Domain domain) {
  if (mode_ != NormMode::domain || domain == in_use_) return;
  for (Norm& norm : norms_) {
    std::swap(norm.layer->running_mean, norm.mean);
    std::swap(norm.layer->running_var, norm.variance);
  }
  in_use_ = domain;
}

StateDict DomainNorm::source_state() const {
  GRAFT_CHECK(in_use_ == Domain::target, "domain norm: the source's statistics are in use");
  StateDict state;
  for (const Norm& norm : norms_) {
    if (!norm.mean.defined()) continue;
    state[norm.name + ".running_mean"] = norm.mean.to(kCpu).clone();
    state[norm.name + ".running_var"] = norm.variance.to(kCpu).clone();
  }
  return state;
}

void DomainNorm::load_source_state(const StateDict& state) {
  for (Norm& norm : norms_) {
    if (!norm.mean.defined()) continue;
    const auto load = [&](const std::string& name, Tensor& to) {
      const auto found = state.find(norm.name + name);
      GRAFT_CHECK(found != state.end() && found->second.shape() == to.shape(),
                  "domain norm: ", norm.name, name,
                  " is missing or has another shape; start the run again");
      to.copy_from(found->second.to(to.device()));
    };
    load(".running_mean", norm.mean);
    load(".running_var", norm.variance);
  }
}

void estimate_statistics(ImageModel& model, Batches& images, Device device) {
  const NoGrad guard;
  const std::vector<NamedNorm> norms = batch_norms(model);
  GRAFT_CHECK(!norms.empty(), "adabn: the network has no batch norm");
  struct Before {
    float momentum;
    bool frozen;
  };
  std::vector<std::unique_ptr<Tap>> taps;
  std::vector<Before> before;
  model.eval();  // dropout stays off
  for (const NamedNorm& norm : norms) {
    taps.push_back(std::make_unique<Tap>(model, norm.name));
    before.push_back({norm.layer->momentum(), norm.layer->statistics_frozen()});
    norm.layer->set_momentum(1);  // the running statistics are the last batch's
    norm.layer->freeze_statistics(false);
    norm.layer->train(true);
  }
  std::vector<Pooled> pooled(norms.size());
  DeviceBatches there(images, device);
  there.start_epoch(0, 0);
  for (Batch batch; there.next(batch);) {
    model.features(batch.images);
    for (size_t i = 0; i < norms.size(); ++i) {
      const Tensor& output = taps[i]->output();
      const double n = static_cast<double>(output.numel() / output.dim(-1));
      pooled[i].add(n, norms[i].layer->running_mean.to_vector<float>(),
                    norms[i].layer->running_var.to_vector<float>());
      taps[i]->clear();
    }
  }
  for (size_t i = 0; i < norms.size(); ++i) {
    pooled[i].write(*norms[i].layer);
    norms[i].layer->set_momentum(before[i].momentum);
    norms[i].layer->freeze_statistics(before[i].frozen);
  }
  model.eval();
}

KeptBuffers::KeptBuffers(Module& network) {
  for (const NamedTensor& entry : network.named_buffers()) {
    kept_.emplace_back(entry.tensor, entry.tensor->clone());
  }
}

void KeptBuffers::restore() {
  for (auto& [tensor, kept] : kept_) tensor->copy_from(kept);
}

}  // namespace graft
