#include "layers/lora.h"

#include <algorithm>
#include <cmath>

#include "engine/autograd.h"
#include "engine/near_names.h"
#include "layers/init.h"
#include "layers/name_pattern.h"

namespace graft {
namespace {

// (out, rank), or for a filter (out, 1, 1, rank)
Shape b_shape(const Tensor& weight, int64_t rank) {
  Shape shape(weight.shape().size(), 1);
  shape.front() = weight.dim(0);
  shape.back() = rank;
  return shape;
}

struct Candidate {
  std::string name;
  AdaptedLayer* layer;
};

std::vector<Candidate> layers_of(Module& root) {
  std::vector<Candidate> layers;
  for (const auto& [name, module] : root.named_modules()) {
    if (auto* layer = dynamic_cast<AdaptedLayer*>(module)) layers.push_back({name, layer});
  }
  return layers;
}

bool any_matches(const std::vector<std::string>& patterns, const std::string& name) {
  return std::any_of(patterns.begin(), patterns.end(),
                     [&](const std::string& pattern) { return matches(pattern, name); });
}

// Why no layer that `pattern` names takes an adapter; "" when one does.
std::string refusal(const std::string& pattern, int64_t rank,
                    const std::vector<Candidate>& candidates) {
  std::vector<std::string> names;
  std::string best;
  int64_t largest = -1;
  for (const auto& [name, layer] : candidates) {
    names.push_back(name);
    if (!matches(pattern, name) || layer->largest_rank() <= largest) continue;
    largest = layer->largest_rank();
    best = name;
  }
  if (largest < 0) {
    return text("no linear layer or convolution beside the head matches \"", pattern, "\"",
                did_you_mean(pattern, names));
  }
  if (largest >= rank) return "";
  if (largest == 0) {
    return text(best,
                " is too thin for an adapter: it has as many values as one of rank 1, or "
                "fewer (depthwise convolutions are so); name other layers");
  }
  return text("rank ", rank, " is too large: an adapter of ", best,
              " is smaller than its weight up to rank ", largest);
}

}  // namespace

int64_t AdaptedLayer::largest_rank() const {
  const int64_t out = weight.dim(0), in = weight.numel() / out;
  return (out * in - 1) / (groups() * in + out);
}

void AdaptedLayer::add_adapter(int64_t rank, float scale, float dropout, RngKey key) {
  GRAFT_CHECK(adapter_ == nullptr, "lora: the layer has an adapter; merge it first");
  GRAFT_CHECK(rank > 0 && rank <= largest_rank(), "lora: expected a rank from 1 to ",
              largest_rank(), " for a weight of ", weight.shape(), ", got ", rank);
  Shape shape = weight.shape();
  shape.front() = groups() * rank;
  Tensor a(shape);
  default_uniform(a, fan_in_of(a), key);
  const Device device = weight.device();
  adapter_ = std::make_unique<Adapter>(Adapter{
      a.to(device), Tensor::zeros(b_shape(weight, rank), Dtype::f32, device), scale, dropout});
  const FileLayout layout = weight.rank() == 4 ? FileLayout::conv_filter : FileLayout::same;
  parameter("lora_A", adapter_->a, layout, AdapterRole::adapter);
  parameter("lora_B", adapter_->b, layout, AdapterRole::adapter);
}

void AdaptedLayer::drop_adapter() {
  remove_adapter_parameters();
  adapter_.reset();
}

Tensor AdaptedLayer::merged_weight() const {
  const NoGrad guard;
  const Adapter* adapter = active_adapter();
  if (adapter == nullptr) return weight;
  // On the CPU, so that a file does not depend on the device it was made on.
  const int64_t g = groups(), rank = adapter->b.dim(-1);
  const Tensor product = matmul(reshape(adapter->b.detach().to(kCpu), {g, weight.dim(0) / g, rank}),
                                reshape(adapter->a.detach().to(kCpu), {g, rank, -1}));
  return add(weight.detach().to(kCpu), mul(reshape(product, weight.shape()), adapter->scale))
      .to(weight.device());
}

Tensor AdaptedLayer::dropped(const Tensor& x) const {
  if (!training() || adapter_->dropout == 0) return x;
  return dropout(x, adapter_->dropout, true, next_key());
}

AttachedAdapters attach_adapters(Module& root, const LoraOptions& options,
                                 const std::vector<std::string>& whole, RngKey key) {
  GRAFT_CHECK(options.rank > 0, "lora: expected a rank from 1, got ", options.rank);
  GRAFT_CHECK(std::isfinite(options.alpha) && options.alpha >= 0,
              "lora: expected an alpha above 0, got ", options.alpha);
  GRAFT_CHECK(options.dropout >= 0 && options.dropout < 1,
              "lora: expected a dropout in [0, 1), got ", options.dropout);
  GRAFT_CHECK(!has_adapters(root), "lora: the model has adapters already; merge them first");
  std::vector<Candidate> candidates = layers_of(root);
  std::erase_if(candidates,
                [&](const Candidate& candidate) { return any_matches(whole, candidate.name); });
  const std::vector<std::string> wanted =
      options.layers.empty() ? std::vector<std::string>{"*"} : options.layers;
  for (const std::string& pattern : wanted) {
    const std::string reason = refusal(pattern, options.rank, candidates);
    GRAFT_CHECK(reason.empty(), "lora: ", reason);
  }
  AttachedAdapters attached;
  for (size_t i = 0; i < candidates.size(); ++i) {
    const auto& [name, layer] = candidates[i];
    if (!any_matches(wanted, name)) continue;
    if (options.rank > layer->largest_rank()) {
      attached.left_out.push_back(name);
      continue;
    }
    layer->add_adapter(options.rank, options.scale(), options.dropout, derive(key, i));
    attached.layers.push_back(name);
  }
  for (const auto& [name, module] : root.named_modules()) {
    if (!any_matches(whole, name)) module->set_role(AdapterRole::base);
  }
  for (const NamedTensor& entry : root.named_parameters()) {
    if (entry.role == AdapterRole::adapter) attached.values += entry.tensor->numel();
    if (entry.role == AdapterRole::base) entry.tensor->set_requires_grad(false);
  }
  return attached;
}

bool has_adapters(Module& root) {
  const std::vector<NamedTensor> parameters = root.named_parameters();
  return std::any_of(parameters.begin(), parameters.end(),
                     [](const NamedTensor& entry) { return entry.role == AdapterRole::adapter; });
}

StateDict merged_state_dict(Module& root) {
  const LoraMerged merged(root);
  StateDict state;
  for (const NamedTensor& entry : root.named_tensors()) {
    if (entry.role != AdapterRole::adapter) state[entry.name] = to_file_layout(entry);
  }
  return state;
}

void merge_adapters(Module& root) {
  for (const auto& [name, layer] : layers_of(root)) {
    if (!layer->adapted()) continue;
    const bool trains = layer->weight.requires_grad();
    layer->weight = layer->merged_weight().set_requires_grad(trains);
    layer->drop_adapter();
  }
  for (const auto& [name, module] : root.named_modules()) module->set_role(AdapterRole::none);
}

LoraMerged::LoraMerged(Module& root) {
  for (const auto& [name, layer] : layers_of(root)) {
    if (!layer->adapted()) continue;
    weights_.emplace_back(layer, layer->weight);
    layer->weight = layer->merged_weight();
    layer->adapter_->merged = true;
  }
}

LoraMerged::~LoraMerged() {
  for (const auto& [layer, weight] : weights_) {
    layer->weight = weight;
    layer->adapter_->merged = false;
  }
}

}  // namespace graft
