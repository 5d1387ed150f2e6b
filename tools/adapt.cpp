// `graft adapt`: the command line of transfer/adapt/adapt.h.
#include "transfer/adapt/adapt.h"

#include <iostream>
#include <set>

#include "tools/command.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "tools/table.h"
#include "transfer/adapt/judge.h"
#include "transfer/adapt/methods.h"
#include "transfer/adapt/run_files.h"

namespace graft {
namespace {

std::string epoch_line(const AdaptReport& report) {
  const Health& health = report.health;
  return text("epoch ", report.epoch, ": source accuracy ", percent(report.source_accuracy),
              "; domains told apart ", percent(health.domain_accuracy), ", largest class ",
              percent(health.largest_share), ", balance ", fixed(health.balance, 2),
              report.oracle ? "; oracle target accuracy " + percent(*report.oracle) : "", "; ",
              clock_time(report.seconds), report.best ? " *" : "");
}

class Reporter : public AdaptObserver {
 public:
  explicit Reporter(bool json) : json_(json) {}
  void message(const std::string& line) override { bar_.line(line); }
  void progress(const Progress& now) override {
    const double part = static_cast<double>(now.done) / static_cast<double>(now.total);
    const std::string before = text("epoch ", now.epoch, "/", now.epochs);
    if (now.phase == Progress::Phase::training) {
      bar_.show(part, before,
                text("loss ", fixed(now.loss, 4), " accuracy ", percent(now.accuracy), " ",
                     fixed(now.images_per_second, 1), " images/s of each domain"));
    } else {
      bar_.show(part, before + " validation", "");
    }
  }
  void adapted(const AdaptReport& report) override {
    bar_.line(epoch_line(report));
    for (const std::string& alarm : report.health.alarms) bar_.line("ALARM " + alarm);
    if (!json_) return;
    nlohmann::ordered_json line{{"event", "epoch"}};
    line.update(nlohmann::ordered_json::parse(to_json(report)));
    print_json(line);
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
  ProgressBar bar_;
};

template <class Value>
void add_choice(CLI::App& command, const std::string& flag, Value& value,
                const std::string& about) {
  std::set<std::string> allowed;
  for (const auto& entry : names_of<Value>()) allowed.insert(entry.first);
  command
      .add_option_function<std::string>(
          flag,
          [&value](const std::string& name) {
            for (const auto& [known, candidate] : names_of<Value>()) {
              if (known == name) value = candidate;
            }
          },
          about)
      ->check(CLI::IsMember(allowed));
}

class AdaptCommand {
 public:
  explicit AdaptCommand(CLI::App& app);
  void run();
  CLI::App* app() { return command_; }

 private:
  void add_options();
  void list_methods() const;
  AdaptOptions resolve();
  AdaptResult carry_on(Reporter& reporter);
  void print_result(const AdaptResult& result) const;

  CLI::App* command_;
  AdaptOptions options_;
  std::string source_, target_, weights_, out_, resume_;
  bool list_ = false, json_ = false;
  ComputeOptions compute_;
};

AdaptCommand::AdaptCommand(CLI::App& app) {
  command_ = add_command(
      app, "adapt", "Train on labelled pictures for others that have no labels",
      "graft adapt --list-methods\n"
      "graft adapt --source photos --target drone --method dann --weights lite0.safetensors --out "
      "run\n"
      "graft adapt --source photos --target drone --method cdan_e --set weight=0.5 --weights "
      "lite0.safetensors --out run\n"
      "graft adapt --source mnist --target mnist-m --target-labels --method adabn --arch small_cnn "
      "--out run\n"
      "graft adapt --resume run");
  options_.training = FinetuneOptions::fine_tuning();
  add_options();
  compute_.add_to(*command_);
  add_json_option(*command_, json_);
}

void AdaptCommand::add_options() {
  FinetuneOptions& training = options_.training;
  CLI::App& command = *command_;
  command.add_option("--source", source_, "labelled images: class folders or a CSV manifest");
  command.add_option("--target", target_,
                     "images to adapt to; a folder of images, or class folders whose names are "
                     "compared with the source's");
  command.add_flag(
      "--target-labels", options_.target_labels,
      "report accuracy by the target's class folders, as oracle; never used to choose");
  command.add_option("--method", options_.method, "see --list-methods")->capture_default_str();
  command.add_option("--set", options_.settings, "option of the method, NAME=VALUE; repeatable");
  command.add_flag("--list-methods", list_, "print the methods with their options, and stop");
  command.add_option("--weights", weights_, "pre-trained weights from graft convert");
  command.add_option("--arch", training.architecture, "architecture to train from scratch instead")
      ->check(known_architecture());
  command.add_option("--out", out_, "folder of the run, to be made");
  command.add_option("--resume", resume_, "folder of an interrupted run to continue");
  command.add_flag("--force", training.overwrite, "replace the run that --out holds");
  command.add_option("--layer", options_.layer,
                     "whose output is to look alike in both domains (the head's input)");
  command
      .add_option("--validator", options_.validator,
                  "what chooses the epoch, without target labels: source, entropy, bnm, snd, "
                  "dev, reverse, knn, mmd or last")
      ->capture_default_str();
  command
      .add_option("--back-off", options_.back_off,
                  "factor on the adaptation's strength at every alarm; 1: none")
      ->capture_default_str();
  add_choice(command, "--batch-norm", options_.norm,
             "frozen, joint or domain (frozen; joint from scratch)");
  command.add_option("--freeze", training.freeze, "parts that do not train; * and ? match");
  command.add_option("--validation", training.validation, "part of the source that is held out")
      ->capture_default_str();
  command.add_option("--split-seed", training.split_seed, "draws that part")->capture_default_str();
  command.add_option("--channels", training.channels, "3 for colour, 1 for grey")
      ->capture_default_str();
  command.add_option("--image-size", training.image_size, "side of the input (the weights' own)");
  command.add_flag("--horizontal-flip,!--no-horizontal-flip", training.augmentation.horizontal_flip,
                   "mirror at random (on)");
  command.add_option("--epochs", training.epochs, "passes over the larger domain")
      ->capture_default_str();
  command.add_option("--steps-per-epoch", options_.steps_per_epoch, "instead of such a pass");
  command.add_option("--batch", training.batch, "images of each domain in a step")
      ->capture_default_str();
  add_choice(command, "--optimizer", training.optimizer, "adamw or sgd (adamw)");
  command.add_option("--lr", training.learning_rate,
                     "peak learning rate (5e-4; from scratch 2e-3)");
  command.add_option("--head-lr-multiplier", training.head_multiplier, "the head's rate over --lr")
      ->capture_default_str();
  command
      .add_option("--extra-lr-multiplier", options_.extra_multiplier,
                  "that of the method's own parts, such as a domain classifier")
      ->capture_default_str();
  command.add_option("--momentum", training.momentum, "of sgd")->capture_default_str();
  command.add_option("--weight-decay", training.weight_decay, "not on biases and norms")
      ->capture_default_str();
  command.add_option("--clip-norm", training.clip_norm, "largest joint norm of a part's gradients");
  add_choice(command, "--schedule", training.schedule.kind,
             "constant, cosine, one-cycle, step, polynomial, slanted-triangular or dann "
             "(one-cycle)");
  command.add_option("--patience", training.patience,
                     "stop after so many epochs without a better one (0: no)");
  command.add_option("--seed", training.seed, "of weights, order and augmentation")
      ->capture_default_str();
  command.add_option("--workers", training.workers, "threads that decode images, a domain")
      ->capture_default_str();
  command.add_option("--save-minutes", training.save_minutes, "save at least this often")
      ->capture_default_str();
}

void AdaptCommand::list_methods() const {
  Table table({"<method", "<option", "<default", "<what"});
  for (const MethodInfo& method : adapt_methods()) {
    if (json_) {
      nlohmann::ordered_json line{{"method", method.name}, {"about", method.about}};
      line["options"] = nlohmann::ordered_json::object();
      for (const MethodOption& option : method.options) line["options"][option.name] = option.value;
      print_json(line);
      continue;
    }
    table.row({method.name, "", "", method.about});
    for (const MethodOption& option : method.options) {
      table.row({"", option.name, option.value, option.about});
    }
  }
  if (!json_) std::cout << table.text();
}

AdaptOptions AdaptCommand::resolve() {
  const auto given = [&](const char* flag) { return command_->count(flag) > 0; };
  if (out_.empty()) throw UsageError("adapt: --out RUN is missing: the folder for the results");
  if (source_.empty()) throw UsageError("adapt: --source is missing: the labelled images");
  if (target_.empty()) throw UsageError("adapt: --target is missing: the images to adapt to");
  if (given("--weights") == given("--arch")) {
    throw UsageError(
        "adapt: give either --weights, from graft convert, or --arch to train from "
        "scratch");
  }
  AdaptOptions options = options_;
  FinetuneOptions& training = options.training;
  training.data = source_;
  training.weights = weights_;
  training.out = out_;
  options.target = target_;
  if (given("--arch")) {
    const FinetuneOptions recipe = FinetuneOptions::from_scratch();
    training.batch_norm = recipe.batch_norm;
    training.batch_norm_momentum = recipe.batch_norm_momentum;
    if (!given("--lr")) training.learning_rate = recipe.learning_rate;
  } else if (!given("--batch-norm")) {
    options.norm = NormMode::frozen;
  }
  try {
    check_adapt_options(options, adapt_method(options.method));
    check_options(training);
  } catch (const Error& error) {
    std::string message = error.what();
    if (message.starts_with("finetune: ")) message.replace(0, 10, "adapt: ");
    throw UsageError(message);
  }
  training.device = compute_.apply();
  training.precision = compute_.precision;
  return options;
}

AdaptResult AdaptCommand::carry_on(Reporter& reporter) {
  const std::set<std::string> allowed{"resume", "threads", "device", "json", "help"};
  for (const CLI::Option* option : command_->get_options()) {
    const std::string name = option->get_lnames().front();
    if (option->count() > 0 && allowed.count(name) == 0) {
      throw UsageError(text("adapt: --", name,
                            " cannot change while a run is resumed; only "
                            "--threads and --device can"));
    }
  }
  if (compute_.threads == 0) compute_.threads = read_adapt_config({resume_}).threads;
  const Device device = compute_.apply();
  const bool given = command_->count("--device") > 0;
  return resume_adapt(resume_, given ? std::optional(device) : std::nullopt, reporter);
}

void AdaptCommand::run() {
  if (list_) {
    list_methods();
    return;
  }
  catch_stop_signals();
  Reporter reporter(json_);
  const AdaptResult result = resume_.empty() ? adapt(resolve(), reporter) : carry_on(reporter);
  reporter.clear();
  print_result(result);
}

void AdaptCommand::print_result(const AdaptResult& result) const {
  const RunFolder folder{resume_.empty() ? out_ : resume_};
  const std::vector<Choice> rows = choices(result.epochs);
  if (json_) {
    nlohmann::ordered_json line{{"event", result.interrupted ? "interrupted" : "done"},
                                {"run", folder.path.string()},
                                {"epochs", result.epochs.size()},
                                {"steps", result.steps},
                                {"stopped_early", result.stopped_early},
                                {"choices", nlohmann::ordered_json::array()}};
    for (const Choice& row : rows) {
      nlohmann::ordered_json choice{
          {"validator", row.validator}, {"epoch", row.epoch}, {"score", row.score}};
      if (row.accuracy) choice["oracle_target_accuracy"] = *row.accuracy;
      if (row.regret) choice["regret"] = *row.regret;
      line["choices"].push_back(choice);
    }
    if (result.best() != nullptr) {
      line["best"] = nlohmann::ordered_json::parse(to_json(*result.best()));
      line["weights"] = folder.best().string();
    }
    print_json(line);
  }
  if (result.interrupted) {
    std::cerr << "stopped after step " << result.steps
              << "; everything is saved. Continue with:\n  graft adapt --resume "
              << folder.path.string() << "\n";
    throw Exit{stopped_exit_code()};
  }
  if (json_ || result.best() == nullptr) return;
  std::vector<std::string> titles{"epoch"}, names;
  for (const auto& [name, score] : result.epochs.front().validators) names.push_back(name);
  titles.insert(titles.end(), names.begin(), names.end());
  for (const char* title : {"domains apart", "largest class", "alarms"}) titles.emplace_back(title);
  const bool labelled = result.epochs.front().oracle.has_value();
  if (labelled) titles.emplace_back("oracle");
  Table epochs(titles);
  for (const AdaptReport& report : result.epochs) {
    std::vector<std::string> cells{text(report.epoch, report.best ? " *" : "")};
    for (const std::string& name : names) cells.push_back(fixed(report.validators.at(name), 3));
    cells.push_back(percent(report.health.domain_accuracy));
    cells.push_back(percent(report.health.largest_share));
    cells.push_back(text(report.health.alarms.size()));
    if (labelled) cells.push_back(percent(*report.oracle));
    epochs.row(cells);
  }
  std::cout << epochs.text() << "\n";
  if (labelled) {
    Table table({"<chosen by", "epoch", "oracle accuracy", "regret"});
    for (const Choice& row : rows) {
      table.row({row.validator, text(row.epoch), percent(*row.accuracy), percent(*row.regret)});
    }
    std::cout << table.text() << "\n";
  }
  std::cout << (result.stopped_early ? "stopped early; " : "") << "epoch " << result.best_epoch
            << " is kept\nweights: " << folder.best().string()
            << "\ntry:     graft predict --weights " << folder.best().string() << " IMAGE\n";
}

}  // namespace

void add_adapt(CLI::App& app) {
  auto command = std::make_shared<AdaptCommand>(app);
  command->app()->callback([command] { command->run(); });
}

}  // namespace graft
