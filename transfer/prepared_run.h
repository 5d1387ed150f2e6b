// A run made ready: data, model and plan, checked, before anything is written or trained.
#pragma once

#include <memory>
#include <vector>

#include "transfer/finetune.h"
#include "transfer/regularise/regulariser.h"
#include "transfer/task_data.h"

namespace graft {

struct PreparedRun {
  FinetuneOptions options;
  TaskData data;
  std::unique_ptr<ImageModel> model;
  ModelCard card;
  std::string weights_sha256;  // of the file it starts from; "" from scratch
  Plan plan;
  RunState state;  // of a new run: all zero
  std::vector<EpochReport> reports;
  std::vector<FreezeProof> proofs;
};

// A new run. Tells the observer what it found; throws on what finetune() refuses.
PreparedRun prepare(const FinetuneOptions& options, Observer& observer);

// Reads the weights of a run from pre-trained ones once more. The run outlives it.
Start start_of(const PreparedRun& run);

// Sets the drop path of a model's blocks as options.drop_path says. Throws where it has none.
void set_drop_path(ImageModel& model, const std::string& architecture,
                   const FinetuneOptions& options);

// Who trains and who judges, in lines for people.
void describe(const TaskData& data, Observer& observer);

}  // namespace graft
