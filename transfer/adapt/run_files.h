// The files of an adaptation: those of a fine-tuning run (run_folder.h) without the plan,
// written in the same order, the state last.
#pragma once

#include "transfer/adapt/trainer.h"

namespace graft {

struct AdaptConfig {
  AdaptOptions options;
  std::string source_sha256, target_sha256, weights_sha256;
  int threads = 0;
};
void write_adapt_config(const RunFolder& folder, const AdaptConfig& config,
                        const std::vector<MethodOption>& settings);
// Throws when the folder holds no adaptation.
AdaptConfig read_adapt_config(const RunFolder& folder);

void write_adapt_metrics(const RunFolder& folder, const std::vector<AdaptReport>& reports);
std::vector<AdaptReport> read_adapt_metrics(const RunFolder& folder, int64_t count);

struct StoredAdaptState {
  AdaptState state;
  std::map<std::string, Tensor> tensors;
  ModelCard card;
};
void write_adapt_state(const RunFolder& folder, const AdaptState& state,
                       const std::map<std::string, Tensor>& tensors, const ModelCard& card);
StoredAdaptState read_adapt_state(const RunFolder& folder);

// The names of the norm modes in options, files and messages.
template <>
const std::vector<std::pair<std::string, NormMode>>& names_of();

}  // namespace graft
