// The flags of `graft finetune` against overfitting.
#pragma once

#include <CLI/CLI.hpp>
#include <functional>

#include "transfer/options.h"

namespace graft {

// Adds them; the result puts what was given into the options. Throws UsageError on a value that is
// none.
std::function<void(FinetuneOptions&)> add_regularise_flags(CLI::App& command);

}  // namespace graft
