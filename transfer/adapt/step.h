// One training step as a method of domain adaptation sees it.
#pragma once

#include <array>
#include <initializer_list>
#include <map>
#include <string>

#include "engine/optim.h"
#include "layers/tap.h"
#include "transfer/adapt/domain_norm.h"

namespace graft {

// What the network makes of one domain's batch; f32, part of the graph.
struct DomainPass {
  Tensor features;  // (n, feature width): the head's input
  Tensor logits;    // (n, classes)
  // (n, aligned width): what is to look alike in both domains. The features, or the output of the
  // layer that --layer names, averaged over positions.
  Tensor aligned;
};

struct DomainPair {
  DomainPass source, target;
  Tensor source_labels;  // i64 (source rows), on the host
};

struct StepPlace {
  double progress = 0;  // part of the run that is done, 0 to below 1
  double strength = 1;  // of the adaptation: below 1 once the health panel has backed off
  int64_t step = 0;     // from 0
};

// What an update moves. Each part has an optimizer of its own.
enum class Part : uint8_t {
  features,  // all of the network but its head
  head,
  extra,  // the method's own modules
};

using PartOptimizers = std::array<Optimizer*, 3>;  // indexed by Part; null where nothing trains

class AdaptStep {
 public:
  // source and target: images or vectors on the model's device; labels on the host. layer: the tap
  // of what is aligned, or null for the features. target may be undefined for a method that does
  // not use it.
  AdaptStep(ImageModel& model, DomainNorm& norm, Tap* layer, const PartOptimizers& optimizers,
            const Tensor& source, const Tensor& source_labels, const Tensor& target,
            const StepPlace& place);

  // Both domains through the network, as the batch-norm mode asks: as one batch (joint), else a
  // pass each. Without a target: the source alone.
  DomainPair pass();
  // One domain by itself.
  DomainPass source_pass();
  DomainPass target_pass();
  // What `model` (such as a method's own copy) makes of a domain's batch; aligned is its features.
  static DomainPass pass_through(ImageModel& model, const Tensor& x);

  // Gradients of a loss (one element), and a step of these parts. All gradients are zero
  // afterwards. Throws when the loss is not finite.
  void update(const Tensor& loss,
              std::initializer_list<Part> parts = {Part::features, Part::head, Part::extra});

  // A number for the epoch's report, such as a part of the loss; one element.
  void note(const std::string& name, const Tensor& value);
  void note(const std::string& name, double value) { notes_[name] = value; }
  const std::map<std::string, double>& notes() const { return notes_; }

  // Notes the source's accuracy in the batch and returns its cross-entropy.
  Tensor source_loss(const DomainPass& source);

  ImageModel& model() { return model_; }
  const Tensor& source_images() const { return source_; }
  const Tensor& target_images() const { return target_; }
  const Tensor& source_labels() const { return labels_; }
  const StepPlace& place() const { return place_; }

 private:
  DomainPass pass_of(const Tensor& x, Domain domain);
  Tensor aligned_of(const Tensor& features) const;

  ImageModel& model_;
  DomainNorm& norm_;
  Tap* layer_;
  PartOptimizers optimizers_;
  Tensor source_, labels_, target_;
  StepPlace place_;
  std::map<std::string, double> notes_;
};

}  // namespace graft
