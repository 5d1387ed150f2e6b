#include "transfer/adapt/step.h"

#include <cmath>

#include "engine/autograd.h"
#include "kernels/error.h"
#include "transfer/adapt/method.h"

namespace graft {

void AdaptMethod::step(AdaptStep& step) {
  const DomainPair pair = step.pass();
  const Tensor classification = step.source_loss(pair.source);
  const Tensor transfer = transfer_loss(pair, step.place());
  if (!transfer.defined()) {
    step.update(classification);
    return;
  }
  step.note("transfer_loss", transfer);
  step.update(add(classification, transfer));
}

AdaptStep::AdaptStep(ImageModel& model, DomainNorm& norm, Tap* layer,
                     const PartOptimizers& optimizers, const Tensor& source,
                     const Tensor& source_labels, const Tensor& target, const StepPlace& place)
    : model_(model),
      norm_(norm),
      layer_(layer),
      optimizers_(optimizers),
      source_(source),
      labels_(source_labels),
      target_(target),
      place_(place) {}

Tensor AdaptStep::aligned_of(const Tensor& features) const {
  if (layer_ == nullptr) return features;
  Tensor output = cast(layer_->output(), Dtype::f32);
  layer_->clear();
  return output.rank() == 4 ? mean(output, {1, 2}) : output;
}

DomainPass AdaptStep::pass_through(ImageModel& model, const Tensor& x) {
  DomainPass pass;
  const Tensor features = model.features(x);
  pass.logits = model.head(features);
  pass.features = pass.aligned = cast(features, Dtype::f32);
  return pass;
}

DomainPass AdaptStep::pass_of(const Tensor& x, Domain domain) {
  norm_.use(domain);
  DomainPass pass = pass_through(model_, x);
  pass.aligned = aligned_of(pass.features);
  return pass;
}

DomainPass AdaptStep::source_pass() { return pass_of(source_, Domain::source); }
DomainPass AdaptStep::target_pass() { return pass_of(target_, Domain::target); }

DomainPair AdaptStep::pass() {
  DomainPair pair;
  pair.source_labels = labels_;
  if (!target_.defined()) {
    pair.source = source_pass();
  } else if (norm_.mode() == NormMode::joint) {
    const int64_t n = source_.dim(0), m = target_.dim(0);
    const DomainPass both = pass_of(concat({source_, target_}), Domain::target);
    const auto part = [](const Tensor& x, int64_t start, int64_t count) {
      return slice(x, 0, start, count);
    };
    pair.source = {part(both.features, 0, n), part(both.logits, 0, n), part(both.aligned, 0, n)};
    pair.target = {part(both.features, n, m), part(both.logits, n, m), part(both.aligned, n, m)};
  } else {
    pair.source = source_pass();
    pair.target = target_pass();
  }
  return pair;
}

Tensor AdaptStep::source_loss(const DomainPass& source) {
  const Tensor loss = cross_entropy(source.logits, labels_);
  const std::vector<int64_t> predicted = argmax(source.logits.detach()).to_vector<int64_t>();
  const std::vector<int64_t> actual = labels_.to_vector<int64_t>();
  int64_t correct = 0;
  for (size_t i = 0; i < actual.size(); ++i) correct += predicted[i] == actual[i];
  note("source_loss", loss);
  note("source_accuracy", static_cast<double>(correct) / static_cast<double>(actual.size()));
  return loss;
}

void AdaptStep::update(const Tensor& loss, std::initializer_list<Part> parts) {
  const double value = static_cast<double>(loss.item());
  GRAFT_CHECK(std::isfinite(value), "adapt: the loss is ", value, " at step ", place_.step + 1,
              "; lower the learning rate (--lr), clip the gradients (--clip-norm 1), or weaken the "
              "adaptation");
  backward(loss);
  for (const Part part : parts) {
    Optimizer* optimizer = optimizers_[static_cast<size_t>(part)];
    if (optimizer != nullptr) optimizer->step();
  }
  for (Optimizer* optimizer : optimizers_) {
    if (optimizer != nullptr) optimizer->zero_grad();
  }
}

void AdaptStep::note(const std::string& name, const Tensor& value) {
  notes_[name] = static_cast<double>(value.item());
}

}  // namespace graft
