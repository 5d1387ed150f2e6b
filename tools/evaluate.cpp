// `graft evaluate`: how well trained weights do on labelled images.
#include <iostream>

#include "tools/command.h"
#include "tools/progress.h"
#include "transfer/evaluation.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

// A larger confusion matrix does not fit on a screen; --json has it at any size.
constexpr int64_t kMostClassesShown = 20;

struct EvaluateOptions {
  std::string weights, data, split, positive, bad_image = "error";
  int64_t batch = 32, workers = 1;
  bool json = false;
  ComputeOptions compute;
};

nlohmann::ordered_json to_json(const EvaluateOptions& options, const Evaluation& result,
                               const std::vector<std::string>& names, int64_t positive) {
  const Metrics& metrics = result.metrics;
  nlohmann::ordered_json json{
      {"weights", options.weights},   {"data", options.data},
      {"samples", metrics.samples},   {"loss", result.loss},
      {"accuracy", metrics.accuracy}, {"balanced_accuracy", metrics.balanced_accuracy},
      {"macro_f1", metrics.macro_f1}};
  if (metrics.positive_f1) {
    json["positive_class"] = names[static_cast<size_t>(positive)];
    json["positive_f1"] = *metrics.positive_f1;
  }
  json["classes"] = nlohmann::ordered_json::array();
  json["confusion"] = nlohmann::ordered_json::array();  // rows: actual, columns: predicted
  for (size_t c = 0; c < names.size(); ++c) {
    const ClassMetrics& one = metrics.per_class[c];
    json["classes"].push_back({{"class", names[c]},
                               {"count", one.count},
                               {"predicted", one.predicted},
                               {"precision", one.precision},
                               {"recall", one.recall},
                               {"f1", one.f1}});
    nlohmann::ordered_json row = nlohmann::ordered_json::array();
    for (size_t p = 0; p < names.size(); ++p) {
      row.push_back(result.confusion.count(static_cast<int64_t>(c), static_cast<int64_t>(p)));
    }
    json["confusion"].push_back(row);
  }
  return json;
}

std::string padded(std::string word, size_t width) {
  word.insert(0, width > word.size() ? width - word.size() : 0, ' ');
  return word;
}

void print_text(const Evaluation& result, const std::vector<std::string>& names, int64_t positive) {
  const Metrics& metrics = result.metrics;
  std::cout << metrics.samples << " images\n"
            << "accuracy           " << fixed(metrics.accuracy, 4) << "\n"
            << "balanced accuracy  " << fixed(metrics.balanced_accuracy, 4) << "\n";
  if (metrics.positive_f1) {
    std::cout << "F1 of \"" << names[static_cast<size_t>(positive)]
              << "\": " << fixed(*metrics.positive_f1, 4) << "\n";
  }
  std::cout << "macro F1           " << fixed(metrics.macro_f1, 4) << "\n"
            << "loss               " << fixed(result.loss, 4) << "\n\n"
            << "precision  recall      F1   count  class\n";
  for (size_t c = 0; c < names.size(); ++c) {
    const ClassMetrics& one = metrics.per_class[c];
    if (one.count + one.predicted == 0) continue;
    std::cout << padded(fixed(one.precision, 4), 9) << padded(fixed(one.recall, 4), 8)
              << padded(fixed(one.f1, 4), 8) << padded(std::to_string(one.count), 8) << "  "
              << names[c] << "\n";
  }
  const int64_t classes = result.confusion.classes();
  if (classes > kMostClassesShown) return;
  std::cout << "\nconfusion matrix (a row an actual class, a column a predicted one)\n";
  for (int64_t actual = 0; actual < classes; ++actual) {
    for (int64_t predicted = 0; predicted < classes; ++predicted) {
      std::cout << padded(std::to_string(result.confusion.count(actual, predicted)), 7);
    }
    std::cout << "  " << names[static_cast<size_t>(actual)] << "\n";
  }
}

void run_evaluate(const EvaluateOptions& options) {
  const Device device = options.compute.apply();
  LoadedModel loaded = load_model(options.weights);
  ImageDataset data = read_images(options.data, options.split);
  match_classes(data, loaded.card, options.data);
  const int64_t positive = positive_class(data.class_names, options.positive);
  std::vector<int64_t> everything(data.samples.size());
  for (size_t i = 0; i < everything.size(); ++i) everything[i] = static_cast<int64_t>(i);

  LoaderOptions reading;
  reading.batch_size = options.batch;
  reading.channels = loaded.card.in_channels;
  reading.workers = options.workers;
  reading.bad_image = options.bad_image == "skip" ? BadImage::skip : BadImage::error;
  reading.for_gpu = !device.is_cpu();
  reading.cache_bytes = 0;  // every image is read once
  const std::unique_ptr<Batches> batches =
      image_batches(data, everything, loaded.card.preprocessing, {}, reading);
  loaded.model->to(device);
  loaded.model->set_precision(options.compute.precision);
  loaded.model->eval();
  ProgressBar bar;
  const double total = static_cast<double>(batches->samples());
  const Evaluation result = evaluate([&](const Tensor& x) { return loaded.model->forward(x); },
                                     loaded.model->classes(), positive, *batches, device,
                                     [&](int64_t done) {
                                       bar.show(static_cast<double>(done) / total, "evaluating",
                                                text(done, " of ", batches->samples(), " images"));
                                       return true;
                                     });
  bar.clear();
  for (const std::string& bad : batches->bad_images()) bar.line("skipped " + bad);
  if (options.json) {
    print_json(to_json(options, result, data.class_names, positive));
  } else {
    print_text(result, data.class_names, positive);
  }
}

}  // namespace

void add_evaluate(CLI::App& app) {
  auto options = std::make_shared<EvaluateOptions>();
  CLI::App* command = add_command(
      app, "evaluate", "Measure trained weights on labelled images",
      "graft evaluate --weights run/best.safetensors --data test-photos\n"
      "graft evaluate --weights run/best.safetensors --data labels.csv --split test --json");
  command->add_option("--weights", options->weights, "weights from graft convert or finetune")
      ->required();
  command
      ->add_option("--data", options->data,
                   "folder with one sub-folder a class, or a CSV manifest (path,label[,split])")
      ->required();
  command->add_option("--split", options->split,
                      "only the manifest's rows (or the sub-folder) of this split");
  command->add_option("--positive", options->positive,
                      "of two classes the one that F1 is about (the second)");
  command->add_option("--batch", options->batch, "images a forward pass")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--workers", options->workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  command->add_option("--on-bad-image", options->bad_image, "error, or skip and name it")
      ->check(CLI::IsMember({"error", "skip"}))
      ->capture_default_str();
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_evaluate(*options); });
}

}  // namespace graft
