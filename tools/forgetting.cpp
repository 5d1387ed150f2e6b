// `graft forgetting`: what fine-tuning made a network forget of its source task.
#include "transfer/forgetting.h"

#include <iostream>

#include "tools/command.h"
#include "tools/kept_result.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "tools/table.h"

namespace graft {
namespace {

struct ForgettingFlags {
  ForgettingOptions forgetting;
  std::string before, after, data;
  bool json = false;
  ComputeOptions compute;
  KeptResult kept;
};

nlohmann::ordered_json json_of(const KeptAccuracy& kept) {
  return {{"before", json_of(kept.before)},
          {"after", json_of(kept.after)},
          {"change", json_of(kept.change)}};
}

std::string in_words(const Forgetting& result) {
  if (result.probe.change.high < 0) {
    return "forgotten: the features know less of the source than they did. Slow the features down "
           "(--head-lr-multiplier, --preset discriminative) or freeze some of them (--freeze)";
  }
  if (result.head.change.high < 0) {
    return "the features still know the source, but its old head does not fit them any more: "
           "train a new head for the source task";
  }
  return "no forgetting is seen on these images";
}

void print_text(const Forgetting& result) {
  Table table({"<source accuracy, %", "before", "after", "change", "95 % interval"});
  const auto row = [&](const std::string& name, const KeptAccuracy& kept) {
    table.row({name, in_percent(kept.before.value), in_percent(kept.after.value),
               in_percent(kept.change.value),
               text(in_percent(kept.change.low), " to ", in_percent(kept.change.high))});
  };
  row("old head", result.head);
  row("new probe", result.probe);
  std::cout << result.images << " source images in " << result.classes << " classes\n\n"
            << table.text() << "\n"
            << in_words(result) << "\n";
}

void run_forgetting(const ForgettingFlags& options) {
  ForgettingOptions forgetting = options.forgetting;
  forgetting.before = options.before;
  forgetting.after = options.after;
  forgetting.data = options.data;
  forgetting.device = options.compute.apply();
  forgetting.precision = options.compute.precision;
  options.kept.begin();
  catch_stop_signals();
  ProgressBar bar;
  const Forgetting result = measure_forgetting(forgetting, [&](int64_t done, int64_t total) {
    bar.show(static_cast<double>(done) / static_cast<double>(total), "features",
             text(done, " of ", total, " images"));
    return stop_signal() == 0;
  });
  bar.clear();
  if (result.images == 0) throw Exit{stopped_exit_code()};
  const nlohmann::ordered_json json{{"images", result.images},
                                    {"classes", result.classes},
                                    {"head", json_of(result.head)},
                                    {"probe", json_of(result.probe)}};
  if (options.json) {
    print_json(json);
  } else {
    print_text(result);
  }
  options.kept.write(json, {{"before", options.before, ""},
                            {"after", options.after, ""},
                            {"data", options.data, forgetting.split}});
}

}  // namespace

void add_forgetting(CLI::App& app) {
  auto options = std::make_shared<ForgettingFlags>();
  CLI::App* command = add_command(
      app, "forgetting", "Measure what fine-tuning made a network forget of its source task",
      "graft forgetting --before source.safetensors --after run/best.safetensors --data "
      "source-test\n"
      "graft forgetting --before a.safetensors --after b.safetensors --data labels.csv --split "
      "test --json\n"
      "graft forgetting --before a.safetensors --after b.safetensors --data source-test --out "
      "kept");
  command->add_option("--before", options->before, "the source's weights, with their head")
      ->required();
  command->add_option("--after", options->after, "the weights that were fine-tuned from them")
      ->required();
  command
      ->add_option("--data", options->data,
                   "images of the source task that it did not train on: a folder with one "
                   "sub-folder a class, or a CSV manifest")
      ->required();
  command->add_option("--split", options->forgetting.split,
                      "only the manifest's rows (or the sub-folder) of this split");
  command->add_option("--seed", options->forgetting.seed, "deals the images to the probe's folds")
      ->capture_default_str();
  command->add_option("--batch", options->forgetting.reading.batch, "images a forward pass")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command
      ->add_option("--workers", options->forgetting.reading.workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  options->kept.add_to(*command);
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_forgetting(*options); });
}

}  // namespace graft
