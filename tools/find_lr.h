// `graft finetune --find-lr`: the learning-rate range test.
#pragma once

#include <filesystem>

#include "transfer/lr_finder.h"

namespace graft {

// Prints the curve and the suggestions, or one JSON object; with a folder also writes
// lr_finder.json and lr_finder.svg there.
void print_learning_rates(const LrFinderResult& result, const std::filesystem::path& folder,
                          bool json);

}  // namespace graft
