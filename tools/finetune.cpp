// `graft finetune`: the command line of transfer/finetune.h.
#include "transfer/finetune.h"

#include <algorithm>
#include <iostream>
#include <set>

#include "tools/command.h"
#include "tools/find_lr.h"
#include "tools/numbers.h"
#include "tools/plan_view.h"
#include "tools/progress.h"
#include "tools/regularise_flags.h"
#include "tools/stop_signal.h"

namespace graft {
namespace {

std::string epoch_line(const EpochReport& report) {
  std::string line = text("epoch ", report.epoch, ": train loss ", fixed(report.train_loss, 4),
                          " accuracy ", percent(report.train_accuracy));
  if (report.validation) {
    const EpochReport::Validation& v = *report.validation;
    line += text("; validation loss ", fixed(v.loss, 4), " accuracy ", percent(v.accuracy),
                 " balanced ", percent(v.balanced_accuracy), " F1 ",
                 fixed(v.positive_f1.value_or(v.macro_f1), 3));
  }
  return line + text("; ", fixed(report.images_per_second, 1), " images/s, ",
                     clock_time(report.seconds), report.best ? " *" : "");
}

class Reporter : public Observer {
 public:
  explicit Reporter(bool json) : json_(json) {}

  void message(const std::string& line) override { bar_.line(line); }

  void progress(const Progress& now) override {
    epochs_ = now.epochs;
    const double part = static_cast<double>(now.done) / static_cast<double>(now.total);
    std::string before = text("epoch ", now.epoch, "/", now.epochs), after;
    if (now.phase == Progress::Phase::features) {
      before = "features";
      if (now.images_per_second > 0) after = fixed(now.images_per_second, 1) + " images/s";
    } else if (now.phase == Progress::Phase::validation) {
      before += " validation";
    } else {
      after = text("loss ", fixed(now.loss, 4), " accuracy ", percent(now.accuracy), " ",
                   fixed(now.images_per_second, 1), " images/s");
    }
    if (now.seconds_left >= 0) after += " " + clock_time(now.seconds_left) + " left";
    bar_.show(part, before, after);
  }

  void epoch_done(const EpochReport& report) override {
    // Of a linear probe's hundred short epochs only the better ones are told.
    if (report.best || epochs_ <= 20 || report.seconds > 2) bar_.line(epoch_line(report));
    if (!json_) return;
    nlohmann::ordered_json line{{"event", "epoch"}};
    line.update(nlohmann::ordered_json::parse(to_json(report)));
    print_json(line);
    std::cout.flush();
  }

  bool stop_requested() override {
    if (stop_signal() == 0) return false;
    if (!told_) bar_.line("stopping: saving the run (press Ctrl-C again to end without saving)");
    told_ = true;
    return true;
  }

  ProgressBar& bar() { return bar_; }

 private:
  bool json_;
  bool told_ = false;
  int64_t epochs_ = 0;
  ProgressBar bar_;
};

// The command line: every option that was given replaces a value of the recipe.
class FinetuneCommand {
 public:
  explicit FinetuneCommand(CLI::App& app);
  void run();
  CLI::App* app() { return command_; }

 private:
  template <class Get>
  CLI::Option* add(const std::string& flags, Get get, const std::string& description);
  void add_data();
  void add_model();
  void add_training();
  FinetuneOptions resolve();
  FinetuneResult carry_on(Reporter& reporter);
  void print_result(const FinetuneResult& result) const;

  CLI::App* command_;
  std::vector<std::function<void(FinetuneOptions&)>> assignments_;
  std::string out_, resume_;
  bool from_scratch_ = false, dry_run_ = false, find_rate_ = false, json_ = false;
  ComputeOptions compute_;
};

template <class Get>
CLI::Option* FinetuneCommand::add(const std::string& flags, Get get,
                                  const std::string& description) {
  using Value = std::remove_reference_t<decltype(get(std::declval<FinetuneOptions&>()))>;
  if constexpr (std::is_enum_v<Value>) {
    auto name = std::make_shared<std::string>();
    std::set<std::string> allowed;
    for (const auto& entry : names_of<Value>()) allowed.insert(entry.first);
    CLI::Option* option =
        command_->add_option(flags, *name, description)->check(CLI::IsMember(allowed));
    assignments_.push_back([=](FinetuneOptions& options) {
      if (option->count() == 0) return;
      for (const auto& [known, value] : names_of<Value>()) {
        if (known == *name) get(options) = value;
      }
    });
    return option;
  } else {
    // Paths are read as strings: CLI11 would take them for containers.
    constexpr bool path = std::is_same_v<Value, std::filesystem::path>;
    auto value = std::make_shared<std::conditional_t<path, std::string, Value>>();
    CLI::Option* option;
    if constexpr (std::is_same_v<Value, bool>) {
      option = command_->add_flag(flags, *value, description);
    } else {
      option = command_->add_option(flags, *value, description);
    }
    assignments_.push_back([=](FinetuneOptions& options) {
      if (option->count() > 0) get(options) = *value;
    });
    return option;
  }
}

// A member of FinetuneOptions as add() wants it.
#define GRAFT_MEMBER(member) \
  [](FinetuneOptions & o) -> auto& { return o.member; }

void FinetuneCommand::add_data() {
  add("--data", GRAFT_MEMBER(data),
      "folder with one sub-folder a class, folder with train/ and val/, or CSV manifest "
      "(path,label[,group][,split])");
  add("--validation", GRAFT_MEMBER(validation),
      "part held out of every class, where the data has no split of its own (0.2)");
  add("--split-seed", GRAFT_MEMBER(split_seed), "draws that split (0), whatever --seed is");
  add("--on-bad-image", GRAFT_MEMBER(bad_image), "error, or skip and name it (error)");
  add("--channels", GRAFT_MEMBER(channels), "3 for colour, 1 for grey (3)");
  add("--image-size", GRAFT_MEMBER(image_size), "side of the input in pixels (the weights' own)");
  add("--horizontal-flip,!--no-horizontal-flip", GRAFT_MEMBER(augmentation.horizontal_flip),
      "mirror left and right at random (on; off with --freeze-features)");
  add("--vertical-flip", GRAFT_MEMBER(augmentation.vertical_flip), "mirror top and bottom (off)");
  add("--random-crop", GRAFT_MEMBER(augmentation.random_resized_crop),
      "random part of the image, resized (off)");
  add("--min-scale", GRAFT_MEMBER(augmentation.min_scale), "least area of that part (0.08)");
  add("--brightness", GRAFT_MEMBER(augmentation.brightness), "colour jitter (0)");
  add("--contrast", GRAFT_MEMBER(augmentation.contrast), "colour jitter (0)");
  add("--saturation", GRAFT_MEMBER(augmentation.saturation), "colour jitter (0)");
  add("--hue", GRAFT_MEMBER(augmentation.hue), "colour jitter (0)");
  add("--randaugment", GRAFT_MEMBER(augmentation.randaugment_ops),
      "number of RandAugment operations (0)");
  add("--randaugment-magnitude", GRAFT_MEMBER(augmentation.randaugment_magnitude), "0 to 30 (9)");
}

void FinetuneCommand::add_model() {
  add("--weights", GRAFT_MEMBER(weights), "pre-trained weights from graft convert");
  add("--arch", GRAFT_MEMBER(architecture), "architecture for --from-scratch; see graft info")
      ->check(known_architecture());
  command_->add_flag("--from-scratch", from_scratch_, "random weights instead of --weights");
  add("--dropout", GRAFT_MEMBER(dropout), "before the head (the architecture's own)");
  add("--drop-path", GRAFT_MEMBER(drop_path),
      "of EfficientNet's last block, less before it (the architecture's own)");
  add("--preset", GRAFT_MEMBER(preset), "a plan in phases; graft plan lists them");
  add("--plan", GRAFT_MEMBER(plan), "file with a plan in phases, such as graft plan writes");
  add("--freeze", GRAFT_MEMBER(freeze),
      "parts that do not train, such as layer1 or features.0; * and ? match; repeatable");
  add("--freeze-features", GRAFT_MEMBER(freeze_features), "train the head only (linear probe)");
  add("--batch-norm", GRAFT_MEMBER(batch_norm),
      "statistics: train, frozen-stats, frozen-all, adapt-stats (frozen-stats; train from "
      "scratch)");
  add("--batch-norm-momentum", GRAFT_MEMBER(batch_norm_momentum),
      "share of a batch in the statistics (the architecture's own; 0.1 from scratch)");
  add("--lora", GRAFT_MEMBER(lora.rank),
      "train adapters of this rank beside the layers, not their weights; the head in full");
  add("--lora-alpha", GRAFT_MEMBER(lora.alpha),
      "adapters count alpha / rank times (as large as the rank)");
  add("--lora-layers", GRAFT_MEMBER(lora.layers),
      "layers that get one, such as layer4 or *.conv2; * and ? match; repeatable (all)");
  add("--lora-dropout", GRAFT_MEMBER(lora.dropout), "of what adapters see in training (0)");
}

void FinetuneCommand::add_training() {
  add("--epochs", GRAFT_MEMBER(epochs), "passes over the data (5; linear probe 100)");
  add("--steps", GRAFT_MEMBER(steps), "number of steps instead of --epochs");
  add("--batch", GRAFT_MEMBER(batch), "images a step (32)");
  add("--optimizer", GRAFT_MEMBER(optimizer), "adamw or sgd (adamw)");
  add("--lr", GRAFT_MEMBER(learning_rate),
      "peak learning rate (5e-4; linear probe 3e-3; from scratch 2e-3)");
  add("--head-lr-multiplier", GRAFT_MEMBER(head_multiplier), "the head's rate over --lr (1)");
  add("--momentum", GRAFT_MEMBER(momentum), "of sgd (0.9)");
  add("--weight-decay", GRAFT_MEMBER(weight_decay), "not on biases and norms (0.01)");
  add("--clip-norm", GRAFT_MEMBER(clip_norm), "largest joint norm of the gradients (0: any)");
  add("--schedule", GRAFT_MEMBER(schedule.kind),
      "constant, cosine, one-cycle, step, polynomial, slanted-triangular, plateau or dann "
      "(one-cycle)");
  add("--warmup", GRAFT_MEMBER(schedule.warmup),
      "rising part; not of one-cycle, slanted-triangular and dann (0)");
  add("--rise", GRAFT_MEMBER(schedule.rise),
      "rising part of one-cycle and slanted-triangular (0.3)");
  add("--gamma", GRAFT_MEMBER(schedule.gamma), "factor of step and plateau (0.1)");
  add("--step-part", GRAFT_MEMBER(schedule.step_part), "part of the run between steps (1/3)");
  add("--power", GRAFT_MEMBER(schedule.power), "of polynomial (1)");
  add("--plateau-epochs", GRAFT_MEMBER(schedule.plateau_epochs),
      "epochs without a better value before plateau lowers the rate (2)");
  add("--label-smoothing", GRAFT_MEMBER(label_smoothing), "0 to below 1 (0)");
  add("--class-weights", GRAFT_MEMBER(class_weights), "none or balanced (none)");
  add("--metric", GRAFT_MEMBER(criterion),
      "what picks the best epoch: accuracy, balanced_accuracy, f1 or loss (accuracy)");
  add("--positive", GRAFT_MEMBER(positive_class),
      "of two classes the one that F1 is about (the second in the alphabet)");
  add("--patience", GRAFT_MEMBER(patience),
      "stop after so many epochs without a better one (0: no)");
  add("--seed", GRAFT_MEMBER(seed), "of weights, order and augmentation (0)");
  add("--workers", GRAFT_MEMBER(workers), "threads that decode images (1)");
  add("--cache", GRAFT_MEMBER(cache.kind),
      "what is kept of frozen first stages, which then run once an image: f32, bf16 or off (f32)");
  add("--cache-views", GRAFT_MEMBER(cache.views),
      "augmented views kept of each image, used in turn (0: augmented images are not kept)");
  add("--cache-memory", GRAFT_MEMBER(cache.memory), "MiB; what is larger needs --cache-dir (1024)");
  add("--cache-dir", GRAFT_MEMBER(cache.folder), "folder that keeps it for later runs");
  add("--graphs,!--no-graphs", GRAFT_MEMBER(graphs),
      "on CUDA: run whole steps as recorded graphs (yes)");
  add("--save-minutes", GRAFT_MEMBER(save_minutes), "save at least this often (5)");
}
#undef GRAFT_MEMBER

FinetuneCommand::FinetuneCommand(CLI::App& app) {
  command_ = add_command(
      app, "finetune", "Train a pre-trained model on your own images",
      "graft finetune --data photos --weights lite0.safetensors --out run\n"
      "graft finetune --data photos --weights lite0.safetensors --out probe --freeze-features\n"
      "graft finetune --data photos --weights lite0.safetensors --out run --preset lp-ft "
      "--dry-run\n"
      "graft finetune --data photos --weights lite0.safetensors --out run --lora 4 --lr 5e-3\n"
      "graft finetune --data photos --weights lite0.safetensors --out run --mixup 0.2 --ema 0.99\n"
      "graft finetune --data photos --arch small_cnn --from-scratch --epochs 20 --out scratch\n"
      "graft finetune --resume run");
  command_->add_option("--out", out_, "folder of the run, to be made");
  command_->add_option("--resume", resume_, "folder of an interrupted run to continue");
  add_data();
  add_model();
  add_training();
  assignments_.push_back(add_regularise_flags(*command_));
  command_->add_flag("--dry-run", dry_run_, "print what would train, layer by layer, and stop");
  command_->add_flag("--find-lr", find_rate_,
                     "instead of training try learning rates from 1e-7 to 10 and suggest one");
  compute_.add_to(*command_);
  add_json_option(*command_, json_);
  add(
      "--force", [](FinetuneOptions & o) -> auto& { return o.overwrite; },
      "replace the run that --out holds");
}

FinetuneOptions FinetuneCommand::resolve() {
  const auto given = [&](const char* flag) { return command_->count(flag) > 0; };
  if (out_.empty() && !dry_run_ && !find_rate_)
    throw UsageError("finetune: --out RUN is missing: the folder for the results");
  if (!given("--data")) throw UsageError("finetune: --data is missing: the folder of your images");
  if (from_scratch_ && given("--weights")) {
    throw UsageError("finetune: --from-scratch and --weights contradict each other");
  }
  if (from_scratch_ != given("--arch")) {
    throw UsageError("finetune: --arch NAME and --from-scratch go together; graft info lists them");
  }
  if (!from_scratch_ && !given("--weights")) {
    throw UsageError(
        "finetune: --weights is missing; get some with graft convert, or train "
        "with --arch NAME --from-scratch");
  }
  if (given("--lora") && command_->get_option("--lora")->as<int64_t>() < 1) {
    throw UsageError("finetune: --lora: expected a rank from 1, such as 8");
  }
  if (given("--steps") && given("--epochs")) {
    throw UsageError("finetune: --steps and --epochs contradict each other; give one");
  }
  FinetuneOptions options = from_scratch_                ? FinetuneOptions::from_scratch()
                            : given("--freeze-features") ? FinetuneOptions::linear_probe()
                                                         : FinetuneOptions::fine_tuning();
  for (const auto& assign : assignments_) assign(options);
  options.out = out_;
  try {
    check_options(options);
  } catch (const Error& error) {
    throw UsageError(error.what());
  }
  options.device = compute_.apply();
  options.precision = compute_.precision;
  return options;
}

FinetuneResult FinetuneCommand::carry_on(Reporter& reporter) {
  const std::set<std::string> allowed{"--resume", "--data", "--workers", "--threads",
                                      "--device", "--json", "--help"};
  for (const CLI::Option* option : command_->get_options()) {
    if (option->count() > 0 && allowed.count("--" + option->get_lnames().front()) == 0) {
      throw UsageError(text("finetune: --", option->get_lnames().front(),
                            " cannot change while a run is resumed; only --data (moved), "
                            "--workers, --threads and --device can"));
    }
  }
  ResumeOptions changes;
  FinetuneOptions given;
  for (const auto& assign : assignments_) assign(given);
  if (command_->count("--data") > 0) changes.data = given.data;
  if (command_->count("--workers") > 0) changes.workers = given.workers;
  if (compute_.threads == 0) compute_.threads = read_config({resume_}).threads;
  const Device device = compute_.apply();
  if (command_->count("--device") > 0) changes.device = device;
  return resume(resume_, changes, reporter);
}

void FinetuneCommand::run() {
  catch_stop_signals();
  Reporter reporter(json_);
  if ((dry_run_ || find_rate_) && !resume_.empty()) {
    throw UsageError("finetune: --dry-run and --find-lr are for a new run, not for --resume");
  }
  if (dry_run_) {
    print_planned(plan_finetune(resolve(), reporter), json_);
  } else if (find_rate_) {
    const LrFinderResult found = find_learning_rate(resolve(), {}, reporter);
    reporter.bar().clear();
    print_learning_rates(found, out_, json_);
  } else if (resume_.empty()) {
    print_result(finetune(resolve(), reporter));
  } else {
    print_result(carry_on(reporter));
  }
}

void FinetuneCommand::print_result(const FinetuneResult& result) const {
  const RunFolder folder{resume_.empty() ? out_ : resume_};
  for (const std::string& bad : result.bad_images) std::cerr << "skipped " << bad << "\n";
  std::set<std::string> frozen;
  for (const FreezeProof& proof : result.proofs) {
    for (const auto& [name, hash] : proof.sha256) {
      if (proof.verified) frozen.insert(name);
    }
  }
  if (json_) {
    nlohmann::ordered_json line{{"event", result.interrupted ? "interrupted" : "done"},
                                {"run", folder.path.string()},
                                {"epochs", result.epochs.size()},
                                {"steps", result.steps},
                                {"stopped_early", result.stopped_early},
                                {"bad_images", result.bad_images.size()},
                                {"frozen_proven", frozen.size()}};
    if (result.best() != nullptr) {
      line["best"] = nlohmann::ordered_json::parse(to_json(*result.best()));
      line["weights"] = folder.best().string();
      if (exists(folder.lora())) line["delta"] = folder.lora().string();
    }
    print_json(line);
  }
  if (result.interrupted) {
    std::cerr << "stopped after step " << result.steps
              << "; everything is saved. Continue with:\n  graft finetune --resume "
              << folder.path.string() << "\n";
    throw Exit{stopped_exit_code()};
  }
  if (json_ || result.best() == nullptr) return;
  if (!frozen.empty()) {
    std::cout << "frozen:  " << frozen.size() << " tensors, not a byte moved (SHA-256 in "
              << folder.freeze_proof().string() << ")\n";
  }
  std::cout << (result.stopped_early ? "stopped early; " : "") << "best "
            << epoch_line(*result.best()) << "\n"
            << "weights: " << folder.best().string() << "\n";
  if (exists(folder.lora())) {
    std::cout << "delta:   " << folder.lora().string() << " (" << file_size(folder.lora())
              << " bytes; graft merge puts it into the weights again)\n";
  }
  std::cout << "try:     graft predict --weights " << folder.best().string() << " IMAGE\n";
}

}  // namespace

void add_finetune(CLI::App& app) {
  auto command = std::make_shared<FinetuneCommand>(app);
  command->app()->callback([command] { command->run(); });
}

}  // namespace graft
