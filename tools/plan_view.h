// How a plan is shown to people and to machines.
#pragma once

#include "transfer/finetune.h"

namespace graft {

// What --dry-run prints: a table a phase, or one JSON object.
void print_planned(const PlannedRun& planned, bool json);

}  // namespace graft
