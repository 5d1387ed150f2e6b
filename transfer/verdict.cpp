#include "transfer/verdict.h"

#include <algorithm>
#include <cmath>
#include <omp.h>
#include <set>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/features.h"
#include "transfer/task_data.h"
#include "transfer/verdict_folder.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

constexpr Arm kArms[] = {Arm::transfer, Arm::frozen, Arm::scratch};

void check_options(const VerdictOptions& options) {
  GRAFT_CHECK(options.seeds >= 2 && options.seeds <= 1000,
              "verdict: expected 2 to 1000 seeds, got ", options.seeds);
  GRAFT_CHECK(options.margin >= 0 && options.margin < 1,
              "verdict: expected a margin from 0 to below 1, got ", options.margin);
  GRAFT_CHECK(!options.recipe.weights.empty(),
              "verdict: no weights given; what is to be judged is a source");
  GRAFT_CHECK(!options.recipe.out.empty(), "verdict: no folder for the runs given");
  GRAFT_CHECK(options.recipe.bad_image == BadImage::error,
              "verdict: unreadable images cannot be skipped, or the arms would be judged on "
              "different ones; remove them");
}

FinetuneOptions options_of(const VerdictOptions& options, const VerdictFolder& folder, Arm arm,
                           uint64_t seed) {
  FinetuneOptions run = options.recipe;
  run.seed = run.split_seed = seed;
  run.out = folder.run(arm, seed);
  run.overwrite = true;  // what a crash left before the first save
  if (arm == Arm::scratch) run.weights = folder.initial(seed);
  if (arm == Arm::frozen) {
    run.freeze_features = true;
    run.batch_norm = BatchNormPolicy::frozen_stats;
    run.batch_norm_momentum = -1;
    run.augmentation = {};
    run.augmentation.horizontal_flip = false;  // every image goes through the network once
    run.learning_rate = options.frozen_learning_rate;
  }
  return run;
}

TaskData data_of(const VerdictOptions& options, uint64_t seed) {
  return read_task_data(options.recipe.data, options.recipe.validation, seed);
}

// Each class can be judged, and by as many different images as there are seeds.
void check_data(const VerdictOptions& options, const TaskData& data) {
  const std::string name = options.recipe.data.string();
  GRAFT_CHECK(!data.split.held_out.empty(), name,
              ": nothing is held out, so no arm can be judged; hold out a part");
  std::vector<int64_t> judging(data.all.class_names.size());
  for (const int64_t i : data.split.held_out) {
    ++judging[static_cast<size_t>(data.all.samples[static_cast<size_t>(i)].label)];
  }
  const std::vector<int64_t> all = data.all.class_counts();
  for (size_t c = 0; c < judging.size(); ++c) {
    GRAFT_CHECK(judging[c] > 0, name, ": class \"", data.all.class_names[c],
                "\" has no validation image; add some");
    GRAFT_CHECK(!data.drawn || all[c] >= options.seeds, name, ": class \"", data.all.class_names[c],
                "\" has ", all[c], " images, too few for ", options.seeds,
                " seeds to hold out different ones; add images or use fewer seeds");
  }
}

// Weights of the source's kind, drawn anew: all that tells the arm "scratch" from "transfer".
void write_initial(const VerdictOptions& options, const VerdictFolder& folder, uint64_t seed) {
  const fs::path path = folder.initial(seed);
  if (fs::exists(path)) return;
  const ModelCard card = read_card(options.recipe.weights);
  const auto model =
      make_model(card.architecture,
                 {.classes = std::max<int64_t>(card.classes, 1), .in_channels = card.in_channels},
                 {seed, 1, 0});
  StateDict state = model->state_dict();
  if (card.classes == 0) {
    for (const char* end : {".weight", ".bias"}) state.erase(model->head_name() + end);
  }
  fs::create_directories(path.parent_path());
  write_safetensors(path, state, to_metadata(card));
}

class Judge {
 public:
  Judge(const VerdictOptions& options, VerdictObserver& observer)
      : options_(options), folder_{options.recipe.out}, observer_(observer) {}

  Verdict run() {
    Verdict verdict;
    verdict.margin = options_.margin;
    verdict.seeds = options_.seeds;
    int64_t number = 0;
    for (int64_t i = 0; i < options_.seeds; ++i) {
      const uint64_t seed = options_.recipe.seed + static_cast<uint64_t>(i);
      for (const Arm arm : kArms) {
        ++number;
        std::optional<ArmRun> run = read_judged(folder_, arm, seed);
        if (!run) {
          observer_.run_started(arm, seed, number, options_.seeds * std::ssize(kArms));
          run = train(arm, seed);
          if (!run) {
            verdict.interrupted = true;
            return verdict;
          }
        }
        observer_.run_done(*run);
        verdict.runs.push_back(std::move(*run));
      }
    }
    conclude(verdict);
    write_file_atomically(folder_.answer(), to_json(verdict) + "\n");
    return verdict;
  }

 private:
  // None: a stop was requested.
  std::optional<ArmRun> train(Arm arm, uint64_t seed) {
    const FinetuneOptions options = options_of(options_, folder_, arm, seed);
    const RunFolder folder{options.out};
    FinetuneResult result;
    if (fs::exists(folder.state()) && fs::exists(folder.config())) {
      ResumeOptions changes;
      changes.workers = options.workers;
      changes.device = options.device;
      result = resume(folder.path, changes, observer_);
    } else {
      if (arm == Arm::scratch) write_initial(options_, folder_, seed);
      result = finetune(options, observer_);
    }
    if (result.interrupted) return std::nullopt;
    std::optional<ArmRun> run = judge(arm, seed, folder.last());
    if (!run) return std::nullopt;
    for (const EpochReport& epoch : result.epochs) run->seconds += epoch.seconds;
    write_judged(folder_, *run);
    folder_.tidy(arm, seed);
    return run;
  }

  std::optional<ArmRun> judge(Arm arm, uint64_t seed, const fs::path& weights) {
    const FinetuneOptions& recipe = options_.recipe;
    const TaskData data = data_of(options_, seed);
    ImageDataset held_out{{}, data.all.class_names};
    for (const int64_t i : data.split.held_out) {
      held_out.samples.push_back(data.all.samples[static_cast<size_t>(i)]);
    }
    FeatureNetwork network = open_features(weights, recipe.device, recipe.precision);
    const ExtractedFeatures got = extract_features(
        network, held_out, {.batch = recipe.batch, .workers = recipe.workers}, [&](int64_t done) {
          Progress progress{Progress::Phase::validation};
          progress.done = done;
          progress.total = std::ssize(held_out.samples);
          observer_.progress(progress);
          return !observer_.stop_requested();
        });
    if (!got.features.defined()) return std::nullopt;
    ArmRun run;
    run.arm = arm;
    run.seed = seed;
    run.images = data.split.held_out;
    const std::vector<float> logits = got.logits.to_vector<float>();
    const auto classes = got.logits.dim(1);
    double wrong = 0;
    for (size_t i = 0; i < got.labels.size(); ++i) {
      const auto row = logits.begin() + static_cast<int64_t>(i) * classes;
      run.wrong.push_back(std::max_element(row, row + classes) - row != got.labels[i]);
      wrong += run.wrong.back();
    }
    run.error = wrong / static_cast<double>(run.wrong.size());
    return run;
  }

  std::vector<JudgedPair> pairs(const Verdict& verdict, Arm with, Arm without) const {
    std::vector<JudgedPair> result(static_cast<size_t>(options_.seeds));
    for (const ArmRun& run : verdict.runs) {
      JudgedPair& pair = result[run.seed - options_.recipe.seed];
      pair.images = run.images;
      if (run.arm == with) pair.wrong_with = run.wrong;
      if (run.arm == without) pair.wrong_without = run.wrong;
    }
    return result;
  }

  Comparison compare(const Verdict& verdict, Arm with, Arm without) const {
    const Interval gap = gap_of(pairs(verdict, with, without));
    return {gap, answer_of(gap, options_.margin)};
  }

  void conclude(Verdict& verdict) const {
    verdict.transfer = compare(verdict, Arm::transfer, Arm::scratch);
    verdict.frozen = compare(verdict, Arm::frozen, Arm::scratch);
    verdict.thaw = compare(verdict, Arm::transfer, Arm::frozen);
    std::set<int64_t> images;
    for (const ArmRun& run : verdict.runs) images.insert(run.images.begin(), run.images.end());
    verdict.images = std::ssize(images);
    if (verdict.transfer.answer == Answer::undecided) {
      verdict.seeds_needed =
          pairs_needed(pairs(verdict, Arm::transfer, Arm::scratch), options_.margin);
    }
    verdict.next = advice(verdict);
  }

  std::string advice(const Verdict& verdict) const {
    const std::string data = options_.recipe.data.string();
    const std::string tune = text("graft finetune --data ", data, " --weights ",
                                  options_.recipe.weights.string(), " --out RUN");
    const std::string rank =
        text("look for another source: graft rank --data ", data, " --candidates A B ...");
    const bool frozen_helps = verdict.frozen.answer == Answer::helps;
    switch (verdict.transfer.answer) {
      case Answer::helps:
        if (frozen_helps &&
            (verdict.thaw.answer == Answer::neutral || verdict.thaw.answer == Answer::harms)) {
          return text("keep the features frozen, which is no worse and cheaper: ", tune,
                      " --freeze-features");
        }
        return "fine-tune: " + tune;
      case Answer::harms:
        return frozen_helps ? text(
                                  "the features are good and training them spoils them; keep them "
                                  "frozen (--freeze-features) or start with the head: ",
                                  tune, " --preset lp-ft")
                            : text("train from scratch: graft finetune --data ", data, " --arch ",
                                   read_card(options_.recipe.weights).architecture,
                                   " --from-scratch --out RUN; or ", rank);
      case Answer::neutral:
        return frozen_helps ? text("frozen features help where fine-tuning does not: ", tune,
                                   " --freeze-features")
                            : text(
                                  "at this budget the source makes no difference that matters; "
                                  "judge a shorter budget, where it tells most, or ",
                                  rank);
      case Answer::undecided:
        break;
    }
    if (verdict.seeds_needed) {
      return text("judge more seeds: graft verdict --resume ", folder_.path.string(), " --seeds ",
                  *verdict.seeds_needed);
    }
    return text("more seeds will hardly tell: ", verdict.images,
                " different images judged. Add images, or hold out more with --validation");
  }

  const VerdictOptions& options_;
  VerdictFolder folder_;
  VerdictObserver& observer_;
};

// Whatever ends a verdict under way, an arm's run among it, ends with the verdict's own command.
Verdict judge_resumably(const VerdictOptions& options, VerdictObserver& observer) {
  try {
    return Judge(options, observer).run();
  } catch (const std::exception& error) {
    fail_resumably(error, "verdict", options.recipe.out);
  }
}

}  // namespace

std::string name_of(Arm arm) {
  return arm == Arm::transfer ? "transfer" : arm == Arm::frozen ? "frozen" : "scratch";
}

FinetuneOptions VerdictOptions::default_recipe() {
  FinetuneOptions recipe = FinetuneOptions::from_scratch();
  recipe.learning_rate = 1e-3f;
  return recipe;
}

Verdict judge_transfer(const VerdictOptions& options, VerdictObserver& observer) {
  check_options(options);
  const FinetuneOptions& recipe = options.recipe;
  const VerdictFolder folder{recipe.out};
  GRAFT_CHECK(recipe.overwrite || !fs::exists(folder.config()), recipe.out.string(),
              ": already holds a run; continue it with --resume ", recipe.out.string(),
              ", replace it with --force, or choose another --out");
  // Whatever fine-tuning refuses is refused here, before anything is written.
  plan_finetune(options_of(options, folder, Arm::transfer, recipe.seed), observer);
  const TaskData data = data_of(options, recipe.seed);
  check_data(options, data);
  if (folder.holds_verdict()) folder.remove_verdict();
  std::error_code failed;
  fs::create_directories(folder.path, failed);
  GRAFT_CHECK(!failed, folder.path.string(), ": the folder cannot be made: ", failed.message(),
              "; choose another --out");
  write_config(folder, {options, data.sha256, sha256_hex(recipe.weights), omp_get_max_threads()});
  return judge_resumably(options, observer);
}

Verdict continue_verdict(const fs::path& out, const VerdictChanges& changes,
                         VerdictObserver& observer) {
  const VerdictFolder folder{out};
  VerdictConfig config = read_config(folder);
  VerdictOptions& options = config.options;
  if (changes.seeds) {
    GRAFT_CHECK(*changes.seeds >= options.seeds, out.string(), ": was started with ", options.seeds,
                " seeds, which cannot become ", *changes.seeds, "; name more");
    options.seeds = *changes.seeds;
  }
  if (changes.workers) options.recipe.workers = *changes.workers;
  if (changes.device) options.recipe.device = *changes.device;
  const TaskData data = data_of(options, options.recipe.seed);
  GRAFT_CHECK(data.sha256 == config.data_sha256, options.recipe.data.string(),
              ": is not the data the verdict was started with (files, labels, sizes or the split "
              "differ); restore it, or start a new verdict");
  GRAFT_CHECK(sha256_hex(options.recipe.weights) == config.weights_sha256,
              options.recipe.weights.string(),
              ": are not the weights the verdict was started with; restore them, or start a new "
              "verdict");
  check_data(options, data);
  write_config(folder, config);
  return judge_resumably(options, observer);
}

StoredVerdict read_verdict(const fs::path& out) {
  VerdictConfig config = read_config(VerdictFolder{out});
  return {std::move(config.options), config.threads};
}

}  // namespace graft
