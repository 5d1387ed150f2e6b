// A run with LoRA (layers/lora.h): which layers get adapters, and its delta file.
#pragma once

#include "layers/models/delta.h"
#include "transfer/prepared_run.h"

namespace graft {

// As options.lora says; does nothing where its rank is 0. The head trains in full. Tells the
// observer what it did.
void attach_adapters(const FinetuneOptions& options, ImageModel& model, Observer& observer);

// What lora.safetensors holds: the adapters, the head, batch norms that a phase lets train or move,
// and a first layer that was changed for grey images.
StateDict delta_of(PreparedRun& run);
DeltaCard delta_card(const PreparedRun& run);

}  // namespace graft
