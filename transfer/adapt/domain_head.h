// The small classifiers of the adversarial methods: hidden layers with ReLU and dropout, then one
// logit, above 0 for the source, or one for each class (MCD, MDD).
#pragma once

#include "layers/linear.h"
#include "transfer/adapt/method.h"

namespace graft {

struct DomainHeadOptions {
  int64_t hidden = 1024;
  int64_t depth = 2;  // hidden layers; 0: a linear classifier
  float dropout = 0;
  int64_t outputs = 1;
};

class DomainHead : public Module {
 public:
  DomainHead(int64_t in_features, const DomainHeadOptions& options, RngKey key);
  // (n, in) -> (n) with one output, else (n, outputs)
  Tensor forward(const Tensor& x) override;

 private:
  std::vector<std::shared_ptr<Linear>> layers_;
  int64_t outputs_;
  float dropout_;
};

// "hidden", "depth" and "dropout" as options of a method, and back.
std::vector<MethodOption> domain_head_options(int64_t hidden, int64_t depth);
DomainHeadOptions domain_head_of(const MethodSettings& settings);
// The same with an output for each class.
DomainHeadOptions class_head_of(const MethodSettings& settings, const MethodContext& context);

// Binary cross-entropy of telling the domains apart from their logits: the mean over the source's
// and that over the target's, averaged, so that batches of different sizes count alike.
Tensor domain_loss(const Tensor& source_logits, const Tensor& target_logits);

// That loss for a pair's aligned features, whose gradient is turned round and scaled by lambda.
Tensor reversed_domain_loss(DomainHead& head, const DomainPair& pair, float lambda);

// 2 / (1 + exp(-gamma p)) - 1, from 0 to about 1 with the progress (Ganin et al. 2016); 1 for gamma
// 0.
double adversarial_ramp(double gamma, double progress);

}  // namespace graft
