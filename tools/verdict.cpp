// `graft verdict`: did the transfer help?
#include "transfer/verdict.h"

#include <iostream>

#include "tools/command.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "tools/table.h"

namespace graft {
namespace {

struct VerdictFlags {
  VerdictOptions verdict;
  std::string data, weights, out, resume;
  bool no_flip = false, json = false;
  ComputeOptions compute;
};

class Reporter : public VerdictObserver {
 public:
  explicit Reporter(bool json) : json_(json) {}

  // What the data are is told once, before the first run; after that each run has one line.
  void message(const std::string& line) override {
    if (run_.empty()) bar_.line(line);
  }
  void run_started(Arm arm, uint64_t seed, int64_t number, int64_t runs) override {
    run_ = text("run ", number, "/", runs, " ", name_of(arm), " seed ", seed);
  }
  void progress(const Progress& now) override {
    std::string after;
    if (now.phase == Progress::Phase::training) after = text("epoch ", now.epoch, "/", now.epochs);
    bar_.show(static_cast<double>(now.done) / static_cast<double>(now.total), run_, after);
  }
  void run_done(const ArmRun& run) override {
    bar_.line(text(name_of(run.arm), " seed ", run.seed, ": error ", percent(run.error), " of ",
                   run.images.size(), " images, ", clock_time(run.seconds)));
    if (!json_) return;
    print_json({{"event", "run"},
                {"arm", name_of(run.arm)},
                {"seed", run.seed},
                {"error", run.error},
                {"images", run.images.size()}});
  }
  bool stop_requested() override {
    if (stop_signal() == 0) return false;
    if (!told_) bar_.line("stopping: saving the run (press Ctrl-C again to end without saving)");
    told_ = true;
    return true;
  }
  void clear() { bar_.clear(); }

 private:
  bool json_, told_ = false;
  std::string run_;
  ProgressBar bar_;
};

std::string interval(const Interval& gap) {
  return text(points(gap.low), " to ", points(gap.high));
}

std::string sentence(const Verdict& verdict) {
  switch (verdict.transfer.answer) {
    case Answer::helps:
      return "the transfer helps: less error than from random weights";
    case Answer::harms:
      return "the transfer harms: more error than from random weights";
    case Answer::neutral:
      return text("the transfer is neutral: the difference is below the margin of ",
                  in_percent(verdict.margin), " points");
    case Answer::undecided:
      break;
  }
  return "undecided: these runs do not tell whether the transfer helps";
}

void print_text(const Verdict& verdict) {
  Table arms({"<arm", "mean error", "lowest", "highest"});
  for (const Arm arm : {Arm::transfer, Arm::frozen, Arm::scratch}) {
    std::vector<double> errors;
    for (const ArmRun& run : verdict.runs) {
      if (run.arm == arm) errors.push_back(run.error * 100);
    }
    const auto [low, high] = std::minmax_element(errors.begin(), errors.end());
    arms.row({name_of(arm), fixed(mean_of(errors), 1) + " %", fixed(*low, 1), fixed(*high, 1)});
  }
  Table gaps({"<gap of error, in points", "mean", "95 % interval", "<the first"});
  const auto row = [&](const std::string& what, const Comparison& comparison) {
    gaps.row(
        {what, points(comparison.gap.value), interval(comparison.gap), name_of(comparison.answer)});
  };
  row("transfer - scratch", verdict.transfer);
  row("frozen - scratch", verdict.frozen);
  row("transfer - frozen", verdict.thaw);
  std::cout << verdict.seeds << " seeds, judged on " << verdict.images << " different images\n\n"
            << arms.text() << "\n"
            << gaps.text() << "\nverdict: " << sentence(verdict) << "\nnext:    " << verdict.next
            << "\n";
}

Verdict judge(const VerdictFlags& options, const CLI::App& command, Reporter& reporter) {
  const auto given = [&](const char* flag) { return command.count(flag) > 0; };
  ComputeOptions compute = options.compute;
  if (!options.resume.empty()) {
    for (const CLI::Option* option : command.get_options()) {
      const std::string name = option->get_lnames().front();
      const bool allowed = name == "resume" || name == "seeds" || name == "workers" ||
                           name == "threads" || name == "device" || name == "json";
      if (option->count() > 0 && !allowed) {
        throw UsageError(text("verdict: --", name,
                              " cannot change while a verdict is resumed; only --seeds (more), "
                              "--workers, --threads and --device can"));
      }
    }
    VerdictChanges changes;
    if (given("--seeds")) changes.seeds = options.verdict.seeds;
    if (given("--workers")) changes.workers = options.verdict.recipe.workers;
    if (compute.threads == 0) compute.threads = read_verdict(options.resume).threads;
    const Device device = compute.apply();
    if (given("--device")) changes.device = device;
    return continue_verdict(options.resume, changes, reporter);
  }
  for (const char* flag : {"--data", "--weights", "--out"}) {
    if (!given(flag)) throw UsageError(text("verdict: ", flag, " is missing"));
  }
  if (given("--steps") && given("--epochs")) {
    throw UsageError("verdict: --steps and --epochs contradict each other; give one");
  }
  VerdictOptions verdict = options.verdict;
  verdict.recipe.data = options.data;
  verdict.recipe.weights = options.weights;
  verdict.recipe.out = options.out;
  if (options.no_flip) verdict.recipe.augmentation.horizontal_flip = false;
  verdict.recipe.device = compute.apply();
  verdict.recipe.precision = compute.precision;
  return judge_transfer(verdict, reporter);
}

void run_verdict(const VerdictFlags& options, const CLI::App& command) {
  catch_stop_signals();
  Reporter reporter(options.json);
  const Verdict verdict = judge(options, command, reporter);
  reporter.clear();
  const std::string folder = options.resume.empty() ? options.out : options.resume;
  if (options.json) {
    nlohmann::ordered_json line{{"event", verdict.interrupted ? "interrupted" : "done"},
                                {"run", folder}};
    if (!verdict.interrupted) line.update(nlohmann::ordered_json::parse(to_json(verdict)));
    print_json(line);
  }
  if (verdict.interrupted) {
    std::cerr << "stopped; " << verdict.runs.size()
              << " runs are finished and everything is saved. Continue with:\n"
              << "  graft verdict --resume " << folder << "\n";
    throw Exit{stopped_exit_code()};
  }
  if (!options.json) print_text(verdict);
}

}  // namespace

void add_verdict(CLI::App& app) {
  auto options = std::make_shared<VerdictFlags>();
  FinetuneOptions& recipe = options->verdict.recipe;
  CLI::App* command = add_command(
      app, "verdict", "Find out whether a transfer helps or harms",
      "graft verdict --data photos --weights lite0.safetensors --out verdict\n"
      "graft verdict --data photos --weights lite0.safetensors --out verdict --epochs 10 "
      "--seeds 8\n"
      "graft verdict --resume verdict --seeds 12");
  command->add_option("--data", options->data,
                      "folder with one sub-folder a class, folder with train/ and val/, or CSV "
                      "manifest (path,label[,group][,split])");
  command->add_option("--weights", options->weights, "the source: weights from graft convert");
  command->add_option("--out", options->out, "folder of the runs, to be made");
  command->add_option("--resume", options->resume,
                      "folder of a verdict to continue, or to give more --seeds");
  command->add_option("--seeds", options->verdict.seeds, "pairs of runs")
      ->check(CLI::Range(2, 1000))
      ->capture_default_str();
  command->add_option("--margin", options->verdict.margin, "gaps of error below it do not matter")
      ->check(CLI::Range(0.0, 0.99))
      ->capture_default_str();
  command->add_option("--epochs", recipe.epochs, "budget of every run")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  command->add_option("--steps", recipe.steps, "budget in steps instead of --epochs")
      ->check(CLI::Range(1, 1000000000));
  command->add_option("--batch", recipe.batch, "images a step")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--lr", recipe.learning_rate, "peak learning rate with and without source")
      ->capture_default_str();
  command
      ->add_option("--frozen-lr", options->verdict.frozen_learning_rate,
                   "peak learning rate of the head on frozen features")
      ->capture_default_str();
  command->add_option("--seed", recipe.seed, "the first seed")->capture_default_str();
  command
      ->add_option("--validation", recipe.validation,
                   "part of every class that judges, drawn anew for each seed, where the data has "
                   "no split of its own")
      ->capture_default_str();
  command->add_option("--channels", recipe.channels, "3 for colour, 1 for grey")
      ->capture_default_str();
  command->add_option("--image-size", recipe.image_size,
                      "side of the input in pixels (the weights' own)");
  command->add_flag("--no-horizontal-flip", options->no_flip, "never mirror left and right");
  command->add_option("--workers", recipe.workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  options->compute.add_to(*command);
  add_json_option(*command, options->json);
  command->add_flag("--force", recipe.overwrite, "replace the verdict that --out holds");
  command->callback([options, command] { run_verdict(*options, *command); });
}

}  // namespace graft
