#include "transfer/adapt/domain_head.h"

#include <cmath>

#include "layers/init.h"

namespace graft {

DomainHead::DomainHead(int64_t in_features, const DomainHeadOptions& options, RngKey key)
    : outputs_(options.outputs), dropout_(options.dropout) {
  int64_t width = in_features;
  for (int64_t i = 0; i <= options.depth; ++i) {
    const int64_t next = i < options.depth ? options.hidden : options.outputs;
    layers_.push_back(std::make_shared<Linear>(width, next, derive(key, static_cast<uint64_t>(i))));
    child(text("fc", i + 1), std::static_pointer_cast<Module>(layers_.back()));
    width = next;
  }
}

Tensor DomainHead::forward(const Tensor& x) {
  Tensor y = x;
  for (size_t i = 0; i + 1 < layers_.size(); ++i) {
    y = relu((*layers_[i])(y));
    if (dropout_ > 0 && training()) y = dropout(y, dropout_, true, next_key());
  }
  y = (*layers_.back())(y);
  return outputs_ == 1 ? reshape(y, {-1}) : y;
}

std::vector<MethodOption> domain_head_options(int64_t hidden, int64_t depth) {
  return {{"hidden", text(hidden), "width of the adversary's hidden layers", 1, 65536},
          {"depth", text(depth), "hidden layers of the adversary", 0, 16},
          {"dropout", "0", "after each of them", 0, 0.95}};
}

DomainHeadOptions domain_head_of(const MethodSettings& settings) {
  return {settings.integer("hidden"), settings.integer("depth"),
          static_cast<float>(settings.number("dropout"))};
}

DomainHeadOptions class_head_of(const MethodSettings& settings, const MethodContext& context) {
  DomainHeadOptions options = domain_head_of(settings);
  options.outputs = context.classes;
  return options;
}

Tensor domain_loss(const Tensor& source_logits, const Tensor& target_logits) {
  const Tensor source = bce_with_logits(
      source_logits, Tensor::full(source_logits.shape(), 1, source_logits.device()));
  const Tensor target = bce_with_logits(
      target_logits, Tensor::full(target_logits.shape(), 0, target_logits.device()));
  return mul(add(source, target), 0.5f);
}

Tensor reversed_domain_loss(DomainHead& head, const DomainPair& pair, float lambda) {
  return domain_loss(head(grad_reverse(pair.source.aligned, lambda)),
                     head(grad_reverse(pair.target.aligned, lambda)));
}

double adversarial_ramp(double gamma, double progress) {
  return gamma == 0 ? 1 : 2 / (1 + std::exp(-gamma * progress)) - 1;
}

}  // namespace graft
