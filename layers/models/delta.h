// Delta files: what fine-tuning with adapters (layers/lora.h) added to a model, without the model.
// A safetensors file with the adapters, and in full every other tensor that is not the base's: the
// new head, batch norms that trained. Its metadata are the model card of the result, the adapters'
// rank and alpha, and the SHA-256 of the base's file, without which the numbers mean nothing.
#pragma once

#include <filesystem>
#include <set>
#include <string>

#include "engine/io/weights.h"
#include "layers/lora.h"
#include "layers/models/zoo.h"

namespace graft {

struct DeltaCard {
  ModelCard model;   // of the result
  LoraOptions lora;  // rank and alpha
  std::string base;  // file name of the base weights
  std::string base_sha256;
};

// The adapters of a model, what trains in full beside them, and the tensors named in `others`.
StateDict delta_state_dict(Module& model, const std::set<std::string>& others);
void write_delta(const std::filesystem::path& path, const StateDict& delta, const DeltaCard& card);

bool is_delta(const WeightFile& file);
// Throws when a key is missing or malformed.
DeltaCard delta_card_of(const WeightFile& file);

// Makes `model`, which has no adapters, what `delta` makes of `base`, with the adapters beside the
// weights; returns how many layers have one. Knows no architecture, so it serves modules that are
// not of the zoo. Throws with `source` when the tensors do not fit. Does not look at the base's
// hash.
int64_t load_delta(Module& model, const WeightFile& delta, const WeightFile& base,
                   const std::string& source);

struct MergedDelta {
  DeltaCard card;
  int64_t adapters = 0, replaced = 0;  // layers with an adapter, and tensors that came in full
  std::string output_sha256;
};
// Writes the model that `delta` makes of `base`: the weights that the run which wrote the delta
// kept as its best ones, to the byte. Throws when `base` is not the file that the delta was trained
// on, when the tensors do not fit, and when `out` exists and `overwrite` is not set.
MergedDelta merge_delta(const std::filesystem::path& base, const std::filesystem::path& delta,
                        const std::filesystem::path& out, bool overwrite);

}  // namespace graft
