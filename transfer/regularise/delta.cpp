// DELTA (Li et al., "DELTA: deep learning transfer using feature map with attention", ICLR 2019):
// the feature maps A of the network stay near those of the starting one, A0, on the same images,
//
//   weight / 2 * sum over the last stage of every resolution, and over its channels c, of
//                a_c |A_c - A0_c|^2 / (images * positions)
//
// Without attention every a_c is 1. With it a channel weighs what it is worth to the new task: a
// classifier is fitted to the features of the starting network, and its loss on some of the images
// is measured anew with each channel of a map set to 0 (the paper sets filters to 0; of the last
// convolution of a stage, before its batch norm and the block's residual). Of the losses' increases
// d_c over the C channels of a map, as in the authors' code,
//
//   a = C softmax((d - mean d) / (5 deviation of d))
//
// Traps: A0 comes from running statistics, so with batch statistics (--batch-norm train) the term
// is not 0 at the start. Every step runs the starting network, too: about a third more work, and
// its weights in memory. Attention runs the stages behind each map once for every channel.
#include <algorithm>
#include <cmath>
#include <deque>
#include <numeric>

#include "engine/autograd.h"
#include "kernels/error.h"
#include "layers/tap.h"
#include "transfer/measure/logistic.h"
#include "transfer/regularise/regulariser.h"

namespace graft {
namespace {

constexpr const char* kAttention = "delta.attention.";
constexpr double kTemperature = 5;

std::vector<float> attention_of(const std::vector<double>& increase) {
  const auto n = static_cast<double>(increase.size());
  const double mean = std::accumulate(increase.begin(), increase.end(), 0.0) / n;
  double variance = 0;
  for (const double d : increase) variance += (d - mean) * (d - mean) / n;
  const double scale = variance > 0 ? 1 / (kTemperature * std::sqrt(variance)) : 0;
  double total = 0;
  std::vector<double> share;
  for (const double d : increase) total += share.emplace_back(std::exp((d - mean) * scale));
  std::vector<float> attention;
  for (const double s : share) attention.push_back(static_cast<float>(n * s / total));
  return attention;
}

class Delta : public Regulariser {
 public:
  Delta(ImageModel& model, const RegulariseOptions& options, const Start& start)
      : start_(start.model()),
        weight_(options.delta),
        images_(options.delta_images),
        device_(model.named_parameters().front().tensor->device()) {
    start_->to(device_);
    start_->set_precision(model.precision());
    start_->eval();
    for (size_t i = 0; i < model.stages().size(); ++i) {
      const Stage& stage = model.stages()[i];
      if (stage.modules().empty()) continue;  // a pooling shows nothing new
      behind_.push_back(i + 1);
      names_.push_back(stage.name());
      ours_.emplace_back(model, stage.name());
      theirs_.emplace_back(*start_, stage.name());
    }
  }

  Tensor term(const Tensor& images, const Tensor&) override {
    if (!ours_.back().has_output() || !ours_.back().output().requires_grad()) return Tensor();
    {
      const NoGrad no_grad;
      start_->features(images);
    }
    Tensor total;
    for (size_t i = 0; i < ours_.size(); ++i) {
      Tensor now = ours_[i].output();
      if (!now.requires_grad() || !last_of_resolution(ours_, i)) continue;
      now = cast(now, Dtype::f32);
      Tensor before = cast(theirs_[i].output(), Dtype::f32);
      if (images_ > 0) {
        const Tensor& root = roots_.at(names_[i]);
        now = mul(now, root);
        before = mul(before, root);
      }
      const auto places = static_cast<float>(now.numel() / now.dim(-1));
      const Tensor part = mul(mse_loss(now, before, Reduction::sum), weight_ / 2 / places);
      total = total.defined() ? add(total, part) : part;
    }
    clear_theirs();
    return total;
  }
  void clear() override {
    for (Tap& tap : ours_) tap.clear();
  }

  bool wants_measuring() const override { return images_ > 0 && attention_.empty(); }
  bool measure(Batches& images, const std::function<bool(int64_t)>& keep_going) override {
    const NoGrad no_grad;
    const Dtype precision = start_->precision();
    start_->set_precision(Dtype::f32);  // a channel changes the loss by little
    const bool done = weigh_channels(images, keep_going);
    start_->set_precision(precision);
    clear_theirs();
    return done;
  }
  std::map<std::string, Tensor> state() const override { return attention_; }
  void load(const std::map<std::string, Tensor>& state) override {
    if (images_ == 0) return;
    for (const std::string& name : names_) {
      const auto found = state.find(kAttention + name);
      if (found != state.end()) set_attention(name, found->second);
    }
  }

 private:
  static bool last_of_resolution(const std::deque<Tap>& taps, size_t i) {
    if (i + 1 == taps.size()) return true;
    const Tensor &a = taps[i].output(), &b = taps[i + 1].output();
    return a.rank() != b.rank() || a.numel() / a.dim(-1) != b.numel() / b.dim(-1);
  }
  void clear_theirs() {
    for (Tap& tap : theirs_) tap.clear();
  }
  void set_attention(const std::string& name, const Tensor& attention) {
    std::vector<float> root = attention.to_vector<float>();
    for (float& a : root) a = std::sqrt(a);
    attention_[kAttention + name] = attention;
    roots_[name] = Tensor::of(root).to(device_);
  }

  bool weigh_channels(Batches& images, const std::function<bool(int64_t)>& keep_going) {
    const Features all = compute_features(*start_, images, device_, keep_going);
    if (!all.values.defined()) return false;
    const auto probe = LogisticRegression::fit(all.values, all.labels, start_->classes(), {});
    std::vector<float> weight, bias;
    probe.linear_layer(weight, bias);
    const Tensor w = Tensor::of(weight, {probe.classes(), probe.width()}).to(device_);
    const Tensor b = Tensor::of(bias).to(device_);
    // The sum of the images' losses when the stages from `first` on see x.
    const auto loss = [&](const Tensor& x, size_t first, const Tensor& labels) {
      const Tensor features = start_->run_stages(x, first, start_->stages().size());
      CrossEntropyOptions each;
      each.reduction = Reduction::none;
      const std::vector<float> losses =
          cross_entropy(linear(features, w, b), labels, each).to_vector<float>();
      return std::accumulate(losses.begin(), losses.end(), 0.0);
    };
    std::map<size_t, std::vector<double>> increases;
    DeviceBatches there(images, device_);
    there.start_epoch(0, 0);
    int64_t done = 0;
    for (Batch batch; done < images_ && there.next(batch);) {
      const int64_t n = std::min(batch.labels.numel(), images_ - done);
      const Tensor labels = narrow(batch.labels, 0, n);
      start_->features(narrow(batch.images, 0, n));
      done += n;
      std::map<size_t, Tensor> maps;  // of now: the taps see the runs below, too
      for (size_t i = 0; i < theirs_.size(); ++i) {
        if (last_of_resolution(theirs_, i)) maps[i] = theirs_[i].output();
      }
      for (const auto& [i, map] : maps) {
        const auto channels = static_cast<size_t>(map.dim(-1));
        std::vector<double>& increase = increases[i];
        increase.resize(channels);
        const double whole = loss(map, behind_[i], labels);
        for (size_t c = 0; c < channels; ++c) {
          std::vector<float> keep(channels, 1.0f);
          keep[c] = 0;
          const Tensor without = mul(map, Tensor::of(keep).to(device_));
          increase[c] += loss(without, behind_[i], labels) - whole;
        }
        if (!keep_going(done)) return false;
      }
    }
    for (const auto& [i, increase] : increases) {
      set_attention(names_[i], Tensor::of(attention_of(increase)));
    }
    return true;
  }

  std::unique_ptr<ImageModel> start_;
  float weight_;
  int64_t images_;  // to measure attention on; 0: none
  Device device_;
  std::vector<size_t> behind_;  // of each tapped stage: the next one
  std::vector<std::string> names_;
  std::deque<Tap> ours_, theirs_;
  std::map<std::string, Tensor> attention_;  // a as the state names it, on the CPU
  std::map<std::string, Tensor> roots_;      // its square roots by stage, on the device
};

}  // namespace

std::unique_ptr<Regulariser> make_delta(ImageModel& model, const RegulariseOptions& options,
                                        const Start& start) {
  return std::make_unique<Delta>(model, options, start);
}

}  // namespace graft
