#include "layers/models/delta.h"

#include <charconv>
#include <cmath>

#include "kernels/error.h"

namespace graft {
namespace {

constexpr const char* kRank = "graft.lora.rank";
constexpr const char* kAlpha = "graft.lora.alpha";
constexpr const char* kBase = "graft.lora.base";
constexpr const char* kBaseHash = "graft.lora.base_sha256";
constexpr const char* kSuffixA = ".lora_A";

std::string shortest(float value) {
  char digits[32];
  return {digits, std::to_chars(digits, digits + sizeof digits, value).ptr};
}

const std::string& value_of(const WeightFile& file, const char* key) {
  const auto found = file.metadata.find(key);
  GRAFT_CHECK(found != file.metadata.end(), "metadata: lacks ", key,
              ", so it is no delta file of graft finetune --lora");
  return found->second;
}

template <class Number>
Number number_of(const WeightFile& file, const char* key) {
  const std::string& digits = value_of(file, key);
  Number value{};
  const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), value);
  GRAFT_CHECK(error == std::errc() && end == digits.data() + digits.size(), "metadata ", key,
              ": expected a number, got \"", digits, "\"");
  return value;
}

// Gives every layer whose adapter the file holds one.
int64_t add_adapters(Module& model, const WeightFile& file, const LoraOptions& lora,
                     const std::string& source) {
  int64_t count = 0;
  for (const auto& [name, module] : model.named_modules()) {
    auto* layer = dynamic_cast<AdaptedLayer*>(module);
    if (layer == nullptr || file.find(name + kSuffixA) == nullptr) continue;
    GRAFT_CHECK(lora.rank <= layer->largest_rank(), source, ": ", name, kSuffixA,
                ": an adapter of this layer has "
                "a rank of at most ",
                layer->largest_rank(), ", but the file says ", lora.rank);
    layer->add_adapter(lora.rank, lora.scale(), 0, {});
    ++count;
  }
  return count;
}

}  // namespace

StateDict delta_state_dict(Module& model, const std::set<std::string>& others) {
  StateDict delta;
  for (const NamedTensor& entry : model.named_parameters()) {
    if (entry.role != AdapterRole::base) delta[entry.name] = to_file_layout(entry);
  }
  for (const NamedTensor& entry : model.named_tensors()) {
    if (others.contains(entry.name)) delta[entry.name] = to_file_layout(entry);
  }
  return delta;
}

void write_delta(const std::filesystem::path& path, const StateDict& delta, const DeltaCard& card) {
  Metadata metadata = to_metadata(card.model);
  metadata[kRank] = std::to_string(card.lora.rank);
  metadata[kAlpha] = shortest(card.lora.scale() * static_cast<float>(card.lora.rank));
  metadata[kBase] = card.base;
  metadata[kBaseHash] = card.base_sha256;
  write_safetensors(path, delta, metadata);
}

bool is_delta(const WeightFile& file) { return file.metadata.contains(kRank); }

DeltaCard delta_card_of(const WeightFile& file) {
  DeltaCard card;
  card.model = card_of(file);
  card.lora.rank = number_of<int64_t>(file, kRank);
  card.lora.alpha = number_of<float>(file, kAlpha);
  GRAFT_CHECK(card.lora.rank > 0 && std::isfinite(card.lora.alpha) && card.lora.alpha > 0,
              "metadata: expected a rank and an alpha above 0, got ", card.lora.rank, " and ",
              card.lora.alpha);
  card.base = value_of(file, kBase);
  card.base_sha256 = value_of(file, kBaseHash);
  return card;
}

int64_t load_delta(Module& model, const WeightFile& delta, const WeightFile& base,
                   const std::string& source) {
  LoraOptions lora;
  try {
    lora = delta_card_of(delta).lora;
  } catch (const Error& error) {
    fail(source, ": ", error.what());
  }
  const int64_t adapters = add_adapters(model, delta, lora, source);
  StateDict state;
  for (const FileTensor& entry : delta.tensors) state[entry.name] = entry.tensor;
  for (const FileTensor& entry : base.tensors) state.emplace(entry.name, entry.tensor);
  model.load_strict(state, source);
  return adapters;
}

MergedDelta merge_delta(const std::filesystem::path& base, const std::filesystem::path& delta,
                        const std::filesystem::path& out, bool overwrite) {
  GRAFT_CHECK(overwrite || !std::filesystem::exists(out), out.string(),
              ": is there already; replace it with --force, or choose another name");
  const WeightFile changes = read_safetensors(delta);
  MergedDelta merged;
  std::unique_ptr<ImageModel> model;
  try {
    merged.card = delta_card_of(changes);
    const ModelCard& card = merged.card.model;
    model = make_blank_model(card.architecture,
                             {.classes = card.classes, .in_channels = card.in_channels});
  } catch (const Error& error) {
    fail(delta.string(), ": ", error.what());
  }
  const std::string hash = sha256_hex(base);
  GRAFT_CHECK(hash == merged.card.base_sha256, delta.string(), ": was trained on ",
              merged.card.base, " with SHA-256 ", merged.card.base_sha256, ", but ", base.string(),
              " has ", hash, "; give the weights that the run was started with");
  merged.adapters =
      load_delta(*model, changes, read_weights(base), text(delta.string(), " on ", base.string()));
  merged.replaced = static_cast<int64_t>(changes.tensors.size()) - 2 * merged.adapters;
  write_safetensors(out, merged_state_dict(*model), to_metadata(merged.card.model));
  merged.output_sha256 = sha256_hex(out);
  return merged;
}

}  // namespace graft
