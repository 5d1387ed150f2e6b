// Co-Tuning (You, Kou, Long and Wang, "Co-Tuning for transfer learning", NeurIPS 2020): the head
// that the weights were made with stays beside the new one and trains, too, on what it would say of
// the image's new class:
//
//   weight * mean over the batch of  - sum over source classes s of p(s | y) log softmax(W f + b)_s
//
// with f the features, y the new label and p(s | y) from co_tuning.h, measured once before the
// first step. Of a mixed batch p is mixed as the labels are. Traps: f is what the last stage gives,
// before the dropout of the new head. Label smoothing and class weights concern the new head alone.
// Only features that train gain by it: where they are frozen, neither does the source head train.
#include "transfer/regularise/co_tuning.h"

#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "kernels/error.h"
#include "layers/linear.h"
#include "layers/tap.h"
#include "transfer/regularise/regulariser.h"

namespace graft {

CategoryRelation::CategoryRelation(int64_t target_classes, int64_t source_classes)
    : target_classes_(target_classes),
      source_classes_(source_classes),
      sums_(static_cast<size_t>(target_classes * source_classes)),
      counts_(static_cast<size_t>(target_classes)) {}

void CategoryRelation::add(const Tensor& logits, const Tensor& labels) {
  const std::vector<float> values = logits.to_vector<float>();
  const float* row = values.data();
  std::vector<double> p(static_cast<size_t>(source_classes_));
  for (const int64_t label : labels.to_vector<int64_t>()) {
    const auto largest = static_cast<double>(*std::max_element(row, row + source_classes_));
    double total = 0;
    for (double& share : p) total += share = std::exp(static_cast<double>(*row++) - largest);
    double* sum = sums_.data() + label * source_classes_;
    for (const double share : p) *sum++ += share / total;
    ++counts_[static_cast<size_t>(label)];
  }
}

Tensor CategoryRelation::rows() const {
  Tensor rows({target_classes_, source_classes_});
  float* out = rows.mutable_data<float>();
  for (size_t i = 0; i < sums_.size(); ++i) {
    const int64_t count = counts_[i / static_cast<size_t>(source_classes_)];
    out[i] = static_cast<float>(sums_[i] / static_cast<double>(std::max<int64_t>(count, 1)));
  }
  return rows;
}

namespace {

constexpr const char* kWeight = "co_tuning.weight";
constexpr const char* kBias = "co_tuning.bias";
constexpr const char* kRelation = "co_tuning.relation";

class CoTuning : public Regulariser {
 public:
  CoTuning(ImageModel& model, const RegulariseOptions& options, const Start& start)
      : model_(model),
        features_(model, model.stages().back().name()),
        weight_(options.co_tuning),
        device_(model.named_parameters().front().tensor->device()) {
    const std::unique_ptr<ImageModel> source = start.source();
    head_ = std::make_unique<Linear>(source->feature_width(), source->classes());
    for (const NamedTensor& parameter : source->named_parameters()) {
      if (parameter.name == source->head_name() + ".weight") {
        head_->weight.copy_from(*parameter.tensor);
      }
      if (parameter.name == source->head_name() + ".bias") head_->bias.copy_from(*parameter.tensor);
    }
    head_->to(device_);
  }

  Tensor target(const Tensor& labels) const override {
    const int64_t classes = relation_.dim(0), width = relation_.dim(1), n = labels.dim(0);
    const float* row = relation_.data<float>();
    Tensor result = Tensor::zeros({n, width});
    float* out = result.mutable_data<float>();
    if (labels.dtype() == Dtype::i64) {
      for (int64_t i = 0; i < n; ++i, out += width) {
        std::copy_n(row + labels.data<int64_t>()[i] * width, width, out);
      }
      return result;
    }
    const float* share = labels.data<float>();
    for (int64_t i = 0; i < n; ++i, out += width) {
      for (int64_t c = 0; c < classes; ++c, ++share) {
        if (*share == 0) continue;
        for (int64_t s = 0; s < width; ++s) out[s] += *share * row[c * width + s];
      }
    }
    return result;
  }

  Tensor term(const Tensor&, const Tensor& target) override {
    if (!features_.has_output() || !features_.output().requires_grad()) return Tensor();
    return mul(cross_entropy(source_logits(features_.output()), target), weight_);
  }
  void clear() override { features_.clear(); }

  std::vector<NamedTensor> parameters() override {
    return {{kWeight, &head_->weight, FileLayout::same}, {kBias, &head_->bias, FileLayout::same}};
  }

  bool wants_measuring() const override { return !relation_.defined(); }
  bool measure(Batches& images, const std::function<bool(int64_t)>& keep_going) override {
    const NoGrad no_grad;
    model_.eval();
    CategoryRelation relation(model_.classes(), head_->weight.dim(0));
    DeviceBatches there(images, device_);
    there.start_epoch(0, 0);
    int64_t done = 0;
    for (Batch batch; there.next(batch);) {
      const Tensor logits = source_logits(model_.features(batch.images));
      there.prefetch();
      relation.add(logits, batch.labels);
      done += batch.labels.numel();
      if (!keep_going(done)) return false;
    }
    relation_ = relation.rows();
    return true;
  }

  std::map<std::string, Tensor> state() const override {
    if (wants_measuring()) return {};
    return {{kWeight, head_->weight.detach().to(kCpu).clone()},
            {kBias, head_->bias.detach().to(kCpu).clone()},
            {kRelation, relation_}};
  }
  void load(const std::map<std::string, Tensor>& state) override {
    if (state.count(kRelation) == 0) return;
    const auto take = [&](const char* name, const Shape& shape) {
      const auto found = state.find(name);
      GRAFT_CHECK(found != state.end() && found->second.shape() == shape,
                  "Co-Tuning: the state has no ", name, " of ", shape,
                  "; start the run again with --force");
      return found->second;
    };
    head_->weight.copy_from(take(kWeight, head_->weight.shape()));
    head_->bias.copy_from(take(kBias, head_->bias.shape()));
    relation_ = take(kRelation, {model_.classes(), head_->weight.dim(0)});
  }

 private:
  Tensor source_logits(const Tensor& features) const {
    return cast((*head_)(cast(features, model_.precision())), Dtype::f32);
  }

  ImageModel& model_;
  Tap features_;
  float weight_;
  Device device_;
  std::unique_ptr<Linear> head_;
  Tensor relation_;  // f32 (classes, source classes) on the CPU
};

}  // namespace

std::unique_ptr<Regulariser> make_co_tuning(ImageModel& model, const RegulariseOptions& options,
                                            const Start& start) {
  return std::make_unique<CoTuning>(model, options, start);
}

}  // namespace graft
