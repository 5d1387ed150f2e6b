#include "transfer/finetune.h"

#include <omp.h>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/adapters.h"
#include "transfer/training_loop.h"

namespace graft {

FinetuneResult finetune(const FinetuneOptions& options, Observer& observer) {
  const RunFolder folder{options.out};
  const bool keeps = !options.out.empty();
  GRAFT_CHECK(!keeps || options.overwrite || !folder.holds_run(), options.out.string(),
              ": already holds a run; continue it with --resume ", options.out.string(),
              ", replace it with --force, or choose another --out");
  PreparedRun run = prepare(options, observer);
  RunConfig config{options, run.data.sha256, "", omp_get_max_threads()};
  if (keeps && !options.weights.empty()) config.weights_sha256 = sha256_hex(options.weights);
  run.weights_sha256 = config.weights_sha256;
  const ModelCard card = run.card;
  const Plan plan = run.plan;
  const auto images = static_cast<int64_t>(run.data.split.train.size());
  const auto held_out = static_cast<int64_t>(run.data.split.held_out.size());
  TrainingLoop loop(std::move(run), observer);  // throws on what cannot be trained
  if (keeps) {
    folder.start_afresh();
    write_config(folder, config, card, images, held_out);
    write_plan(folder, plan);
  }
  try {
    return loop.run();
  } catch (const std::exception& error) {
    // Nothing was learnt yet: leave no run that blocks the next try.
    if (keeps && !loop.has_trained()) folder.remove_run();
    if (keeps && loop.has_trained()) fail_resumably(error, "finetune", folder.path);
    throw;
  }
}

FinetuneResult finetune(const FinetuneOptions& options) {
  Observer quiet;
  return finetune(options, quiet);
}

PlannedRun plan_finetune(const FinetuneOptions& options, Observer& observer) {
  const PreparedRun run = prepare(options, observer);
  for (const std::string& note : check_objective(options, run.plan, *run.model)) {
    observer.message(note);
  }
  PlannedRun planned;
  planned.objective = describe_objective(options);
  planned.plan = run.plan;
  planned.train_images = static_cast<int64_t>(run.data.split.train.size());
  planned.validation_images = static_cast<int64_t>(run.data.split.held_out.size());
  int64_t epoch = 0;
  for (const Phase& phase : planned.plan.phases) {
    planned.layers.push_back(layer_rows(*run.model, phase, options.optimizer));
    apply_freeze(*run.model, phase);
    set_training_mode(*run.model, phase);
    planned.cache.push_back(plan_cache(*run.model, options, run.card.preprocessing,
                                       planned.train_images, planned.validation_images, epoch,
                                       epoch + phase.epochs)
                                .line);
    epoch += phase.epochs;
  }
  planned.steps_per_epoch = (planned.train_images + options.batch - 1) / options.batch;
  return planned;
}

FinetuneResult resume(const std::filesystem::path& path, const ResumeOptions& changes,
                      Observer& observer) {
  const RunFolder folder{path};
  const RunConfig config = read_config(folder);
  folder.remove_leftovers();
  PreparedRun run;
  run.options = config.options;
  run.options.out = path;
  if (!changes.data.empty()) run.options.data = changes.data;
  if (changes.workers) run.options.workers = *changes.workers;
  if (changes.device) run.options.device = *changes.device;
  run.data = read_task_data(run.options.data, run.options.validation, run.options.split_seed);
  GRAFT_CHECK(run.data.sha256 == config.data_sha256, run.options.data.string(),
              ": is not the data the run was started with (files, labels, sizes or the split "
              "differ); restore it, or start a new run");
  describe(run.data, observer);
  if (config.threads != omp_get_max_threads()) {
    observer.message(text("the run was started with ", config.threads,
                          " threads and continues with ", omp_get_max_threads(),
                          ": its last bits may differ"));
  }
  GRAFT_CHECK(
      !run.options.regularise.needs_start() ||
          sha256_hex(run.options.weights) == config.weights_sha256,
      run.options.weights.string(),
      ": are not the weights the run was started with, and its objective holds on to those; "
      "restore the file");
  StoredState stored = read_state(folder);
  run.card = std::move(stored.card);
  run.state = std::move(stored.state);
  run.model = make_model(run.card.architecture,
                         {run.card.classes, run.card.in_channels, run.options.dropout},
                         {run.options.seed, 0, 0});
  set_drop_path(*run.model, run.card.architecture, run.options);
  run.weights_sha256 = config.weights_sha256;
  attach_adapters(run.options, *run.model, observer);
  run.model->load_strict(run.state.model, folder.state().string());
  run.plan = read_plan(folder, run.options);
  check_plan(run.plan, run.card.architecture, *run.model);
  run.proofs = read_freeze_proofs(folder);
  run.reports = read_metrics(folder, run.state.epoch);
  observer.message(
      run.state.finished
          ? text("the run is finished: ", run.state.epoch, " epochs, ", run.state.step, " steps")
          : text("continuing in epoch ", run.state.epoch + 1, " after step ", run.state.step));
  try {
    return TrainingLoop(std::move(run), observer).run();
  } catch (const std::exception& error) {
    fail_resumably(error, "finetune", folder.path);
  }
}

}  // namespace graft
