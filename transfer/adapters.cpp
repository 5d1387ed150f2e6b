#include "transfer/adapters.h"

#include "layers/init.h"
#include "layers/norm.h"

namespace graft {
namespace {

constexpr uint64_t kAdapterKey = 1;  // part of the run's seed; the model's weights are drawn from 0

bool moves(const Plan& plan, const std::string& norm) {
  for (const Phase& phase : plan.phases) {
    const BatchNormPolicy policy = batch_norm_policy(phase, norm);
    if (policy == BatchNormPolicy::train || policy == BatchNormPolicy::adapt_stats) return true;
  }
  return false;
}

}  // namespace

void attach_adapters(const FinetuneOptions& options, ImageModel& model, Observer& observer) {
  const LoraOptions& lora = options.lora;
  if (lora.rank == 0) return;
  const AttachedAdapters attached =
      attach_adapters(model, lora, {model.head_name()}, derive({options.seed, 0, 0}, kAdapterKey));
  observer.message(
      text("lora: rank ", lora.rank, ", alpha ", lora.scale() * static_cast<float>(lora.rank),
           ": adapters of ", attached.values, " values beside ", attached.layers.size(), " layers",
           attached.left_out.empty() ? std::string()
                                     : text("; ", attached.left_out.size(),
                                            " are too thin for one and stay as they are, such as ",
                                            attached.left_out.front())));
}

StateDict delta_of(PreparedRun& run) {
  ImageModel& model = *run.model;
  std::set<std::string> others;
  if (run.options.channels == 1) others.insert(model.stem_name() + ".weight");
  for (const auto& [name, module] : model.named_modules()) {
    if (dynamic_cast<BatchNorm2d*>(module) == nullptr || !moves(run.plan, name)) continue;
    for (const NamedTensor& own : module->named_tensors()) others.insert(name + "." + own.name);
  }
  return delta_state_dict(model, others);
}

DeltaCard delta_card(const PreparedRun& run) {
  return {run.card, run.options.lora, run.options.weights.filename().string(), run.weights_sha256};
}

}  // namespace graft
