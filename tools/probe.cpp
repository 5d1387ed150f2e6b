// `graft probe`: what a network's features know about a task, without training it.
#include "transfer/probe.h"

#include <iostream>

#include "tools/command.h"
#include "tools/kept_result.h"
#include "tools/numbers.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "tools/table.h"
#include "transfer/features.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

struct ProbeFlags {
  std::string weights, data, test_data, features, test_features;
  double held_out = 0.25;
  int64_t batch = 32, workers = 1;
  ProbeOptions probe;
  bool json = false;
  ComputeOptions compute;
  KeptResult kept;
};

FeatureTable table_of(FeatureNetwork& network, const std::string& folder,
                      const ProbeFlags& options) {
  const ImageDataset data = read_images(folder, "");
  ProgressBar bar;
  const auto total = static_cast<double>(data.samples.size());
  ExtractedFeatures extracted = extract_features(
      network, data, {.batch = options.batch, .workers = options.workers}, [&](int64_t done) {
        bar.show(static_cast<double>(done) / total, "features",
                 text(done, " of ", data.samples.size(), " images"));
        return stop_signal() == 0;
      });
  bar.clear();
  if (stop_signal() != 0) throw Exit{stopped_exit_code()};
  return {std::move(extracted.features), std::move(extracted.labels), data.class_names};
}

ProbeResult judge(const ProbeFlags& options) {
  FeatureTable train, test;
  const bool apart = !options.test_data.empty() || !options.test_features.empty();
  if (!options.features.empty()) {
    train = read_features(options.features);
    if (apart) test = read_features(options.test_features);
  } else {
    const Device device = options.compute.apply();
    catch_stop_signals();
    FeatureNetwork network = open_features(options.weights, device, options.compute.precision);
    train = table_of(network, options.data, options);
    if (apart) test = table_of(network, options.test_data, options);
  }
  if (apart) return probe(train, test, options.probe);
  const SplitTable split = split_table(train, options.held_out, options.probe.seed);
  return probe(split.train, split.test, options.probe);
}

nlohmann::ordered_json json_of(const ProbeScore& score) {
  return {{"accuracy", json_of(score.accuracy)},
          {"balanced_accuracy", json_of(score.balanced_accuracy)}};
}

nlohmann::ordered_json to_json(const ProbeResult& result) {
  nlohmann::ordered_json tried = nlohmann::ordered_json::array();
  for (size_t i = 0; i < result.validation.l2.size(); ++i) {
    tried.push_back({{"l2", result.validation.l2[i]},
                     {"accuracy", result.validation.accuracy[i]},
                     {"loss", result.validation.loss[i]}});
  }
  return {{"train", result.train},
          {"test", result.test},
          {"features", result.width},
          {"classes", result.class_names},
          {"l2", result.l2},
          {"cross_validation", tried},
          {"logistic", json_of(result.logistic)},
          {"nearest", json_of(result.nearest)},
          {"largest_class", result.largest_class},
          {"difference", json_of(result.difference)}};
}

void print_text(const ProbeResult& result, const ProbeOptions& options) {
  std::cout << result.train << " images to fit, " << result.test << " to judge, "
            << result.class_names.size() << " classes, " << result.width
            << " features; % with 95 % intervals over the judged images\n\n";
  Table table({"<classifier", "accuracy", "balanced accuracy"});
  table.row({text("logistic regression, l2 ", result.l2), in_percent(result.logistic.accuracy),
             in_percent(result.logistic.balanced_accuracy)});
  table.row({text(std::min(options.neighbours, result.train), " nearest neighbours"),
             in_percent(result.nearest.accuracy), in_percent(result.nearest.balanced_accuracy)});
  table.row({"the largest class", in_percent(result.largest_class),
             in_percent(1.0 / static_cast<double>(result.class_names.size()))});
  std::cout << table.text()
            << "\nlogistic regression - neighbours: " << in_percent(result.difference)
            << " points\n";
  const std::vector<double>& l2 = result.validation.l2;
  if (l2.size() > 1 && (result.l2 == l2.front() || result.l2 == l2.back())) {
    std::cout << "the penalty is the " << (result.l2 == l2.front() ? "smallest" : "largest")
              << " of those tried; give others with --l2\n";
  }
}

void run_probe(const ProbeFlags& options) {
  if (options.features.empty() == (options.weights.empty() || options.data.empty())) {
    throw UsageError("probe: give --weights and --data, or --features");
  }
  if (options.features.empty() ? !options.test_features.empty() : !options.test_data.empty()) {
    throw UsageError("probe: --test goes with --features, --test-data with --data");
  }
  options.kept.begin();
  const ProbeResult result = judge(options);
  if (options.json) {
    print_json(to_json(result));
  } else {
    print_text(result, options.probe);
  }
  options.kept.write(to_json(result), {{"weights", options.weights, ""},
                                       {"data", options.data, ""},
                                       {"test-data", options.test_data, ""},
                                       {"features", options.features, ""},
                                       {"test", options.test_features, ""}});
}

}  // namespace

void add_probe(CLI::App& app) {
  auto options = std::make_shared<ProbeFlags>();
  CLI::App* command = add_command(
      app, "probe", "Judge a network's features: logistic regression and nearest neighbours",
      "graft probe --weights lite0.safetensors --data photos\n"
      "graft probe --features train.safetensors --test test.safetensors --json\n"
      "graft probe --weights lite0.safetensors --data photos --out probed");
  command->add_option("--weights", options->weights, "weights from graft convert or finetune");
  command->add_option("--data", options->data,
                      "folder with one sub-folder a class, or a CSV manifest (path,label)");
  command->add_option("--test-data", options->test_data,
                      "the same of the images to judge on (a part of --data)");
  command->add_option("--features", options->features,
                      "a file from graft extract, .safetensors or .npy, instead");
  command->add_option("--test", options->test_features, "the same of the images to judge on");
  command
      ->add_option("--held-out", options->held_out,
                   "part of each class to judge on, where nothing else is given for it")
      ->check(CLI::Range(0.01, 0.99))
      ->capture_default_str();
  command->add_option("--l2", options->probe.l2, "penalties to choose from (1e-5 ... 10)")
      ->delimiter(',')
      ->check(CLI::PositiveNumber);
  command->add_option("--folds", options->probe.folds, "of the cross-validation that chooses")
      ->check(CLI::Range(2, 100))
      ->capture_default_str();
  command->add_option("--neighbours", options->probe.neighbours, "that vote")
      ->check(CLI::Range(1, 100000))
      ->capture_default_str();
  command->add_option("--seed", options->probe.seed, "of the split and the folds")
      ->capture_default_str();
  command->add_option("--batch", options->batch, "images a forward pass")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--workers", options->workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  options->kept.add_to(*command);
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_probe(*options); });
}

}  // namespace graft
