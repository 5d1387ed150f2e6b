#include "transfer/adapt/adapt.h"

#include <omp.h>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/adapt/methods.h"
#include "transfer/adapt/run_files.h"
#include "transfer/adapt/target_data.h"
#include "transfer/prepared_run.h"

namespace graft {
namespace {

void open_batches(AdaptRun& run, const TaskData& source, const TargetData& target) {
  const FinetuneOptions& options = run.options.training;
  LoaderOptions judging;
  judging.batch_size = options.batch;
  judging.channels = options.channels;
  judging.workers = options.workers;
  judging.seed = options.seed;
  judging.bad_image = options.bad_image;
  judging.for_gpu = !options.device.is_cpu();
  std::vector<int64_t> everything(target.images.samples.size());
  for (size_t i = 0; i < everything.size(); ++i) everything[i] = static_cast<int64_t>(i);
  const auto open = [&](const ImageDataset& data, const std::vector<int64_t>& indices,
                        const LoaderOptions& loader) {
    return image_batches(data, indices, run.card.preprocessing, options.augmentation, loader);
  };
  const auto training = [&](size_t images, uint64_t seed) {
    LoaderOptions loader = judging;
    loader.shuffle = loader.train = true;
    loader.seed = seed;
    // Batches of one size: a last one of a few images is a poor sample of a domain.
    loader.drop_last = static_cast<int64_t>(images) >= options.batch;
    return loader;
  };
  run.data.source_train =
      open(source.all, source.split.train, training(source.split.train.size(), options.seed));
  run.data.source_held_out = open(source.all, source.split.held_out, judging);
  // A seed of its own: domains of one size must not be visited in one order.
  run.data.target_train =
      open(target.images, everything, training(everything.size(), options.seed + 1));
  run.data.target_in_order = open(target.images, everything, judging);
  run.data.target_labelled = run.options.target_labels;
}

TargetData open_target(const AdaptOptions& options, const TaskData& source,
                       AdaptObserver& observer) {
  TargetData target = read_target(options.target, source.all.class_names);
  GRAFT_CHECK(!options.target_labels || target.labelled, options.target.string(),
              ": --target-labels wants class folders or a manifest, and these images have no "
              "labels");
  observer.message(
      text(target.images.samples.size(), " target images",
           options.target_labels ? ", labels for the report only" : ", labels not looked at"));
  if (!target.skipped.empty()) {
    observer.message(text(target.skipped.size(),
                          " target files are not images and are skipped, "
                          "such as ",
                          target.skipped.front()));
  }
  return target;
}

void set_blank(AdaptRun& run) {
  run.blank = [card = run.card, training = run.options.training] {
    auto blank =
        make_blank_model(card.architecture, {card.classes, card.in_channels, training.dropout});
    set_drop_path(*blank, card.architecture, training);
    return blank;
  };
}

}  // namespace

AdaptResult adapt(const AdaptOptions& given, AdaptObserver& observer) {
  const MethodInfo& method = adapt_method(given.method);
  check_adapt_options(given, method);
  AdaptRun run;
  run.options = given;
  FinetuneOptions& training = run.options.training;
  training.batch_norm =
      given.norm == NormMode::frozen ? BatchNormPolicy::frozen_stats : BatchNormPolicy::train;
  GRAFT_CHECK(training.validation > 0,
              "adapt: validation must be above 0: the source's held-out images judge every epoch");
  GRAFT_CHECK(training.steps == 0 && training.plan.empty() && training.preset.empty(),
              "adapt: its length is counted in epochs, and it has no phases; give neither steps "
              "nor a plan");
  const RunFolder folder{training.out};
  const bool keeps = !training.out.empty();
  GRAFT_CHECK(!keeps || training.overwrite || !folder.holds_run(), training.out.string(),
              ": already holds a run; continue it with --resume ", training.out.string(),
              ", replace it with --force, or choose another --out");
  PreparedRun prepared = prepare(training, observer);
  const TargetData target = open_target(run.options, prepared.data, observer);
  run.model = std::move(prepared.model);
  run.card = prepared.card;
  set_blank(run);
  open_batches(run, prepared.data, target);
  AdaptConfig config{run.options, prepared.data.sha256, target.sha256, "", omp_get_max_threads()};
  if (keeps && !training.weights.empty()) config.weights_sha256 = sha256_hex(training.weights);
  AdaptTrainer trainer(std::move(run), observer);  // throws on what cannot be trained
  if (keeps) {
    folder.start_afresh();
    write_adapt_config(folder, config,
                       MethodSettings(method.name, method.options, given.settings).all());
  }
  try {
    return trainer.run();
  } catch (const std::exception& error) {
    // Nothing was learnt yet: leave no run that blocks the next try.
    if (keeps && !trainer.has_trained()) folder.remove_run();
    if (keeps && trainer.has_trained()) fail_resumably(error, "adapt", folder.path);
    throw;
  }
}

AdaptResult resume_adapt(const std::filesystem::path& path, std::optional<Device> device,
                         AdaptObserver& observer) {
  const RunFolder folder{path};
  const AdaptConfig config = read_adapt_config(folder);
  folder.remove_leftovers();
  AdaptRun run;
  run.options = config.options;
  FinetuneOptions& training = run.options.training;
  if (device) training.device = *device;
  const TaskData source = read_task_data(training.data, training.validation, training.split_seed);
  describe(source, observer);
  const TargetData target = open_target(run.options, source, observer);
  for (const auto& [now, before, where] :
       {std::tuple{source.sha256, config.source_sha256, training.data},
        std::tuple{target.sha256, config.target_sha256, run.options.target}}) {
    GRAFT_CHECK(now == before, where.string(),
                ": is not the data the run was started with (files, labels, sizes or the split "
                "differ); restore it, or start a new run");
  }
  if (config.threads != omp_get_max_threads()) {
    observer.message(text("the run was started with ", config.threads,
                          " threads and continues with ", omp_get_max_threads(),
                          ": its last bits may differ"));
  }
  StoredAdaptState stored = read_adapt_state(folder);
  run.card = std::move(stored.card);
  run.state = std::move(stored.state);
  run.tensors = std::move(stored.tensors);
  set_blank(run);
  run.model = run.blank();
  run.reports = read_adapt_metrics(folder, run.state.epoch);
  run.proofs = read_freeze_proofs(folder);
  GRAFT_CHECK(run.proofs.size() == 1, folder.freeze_proof().string(), ": holds ", run.proofs.size(),
              " phases, expected 1; start the run again with --force");
  open_batches(run, source, target);
  observer.message(run.state.finished ? text("the run is finished: ", run.state.epoch, " epochs")
                                      : text("continuing in epoch ", run.state.epoch + 1,
                                             " after step ", run.state.step));
  AdaptTrainer trainer(std::move(run), observer);  // throws where what is frozen has moved
  try {
    return trainer.run();
  } catch (const std::exception& error) {
    fail_resumably(error, "adapt", folder.path);
  }
}

}  // namespace graft
