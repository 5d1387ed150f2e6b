#include "tools/experiments/solar_runs.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <sstream>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "transfer/features.h"
#include "transfer/metrics.h"
#include "transfer/task_data.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

using Json = nlohmann::ordered_json;

constexpr double kTestPart = 0.25;
constexpr const char* kSolarHelp =
    "; get the photographs with tools/fetch elpv (90 MB, CC BY-NC-SA 4.0), which prints the folder "
    "to give as --data";

RunFolder folder_of(const SolarSettings& settings, const std::string& job) {
  return {settings.out / job};
}

// The order of a list that a seed draws, each class and type spread over it evenly: the first part
// of the list has the same part of each.
std::vector<int64_t> spread(const ImageDataset& cells, const std::vector<int64_t>& from,
                            uint64_t seed) {
  std::map<std::pair<int64_t, std::string>, std::vector<int64_t>> strata;
  for (const int64_t i : from) {
    const Sample& sample = cells.samples[static_cast<size_t>(i)];
    strata[{sample.label, sample.group}].push_back(i);
  }
  std::vector<std::pair<double, int64_t>> order;
  uint64_t stratum = 0;
  for (const auto& [key, members] : strata) {
    const auto n = static_cast<int64_t>(members.size());
    const std::vector<int64_t> drawn = permutation(n, {seed, stratum++, 0});
    for (int64_t i = 0; i < n; ++i) {
      order.emplace_back((static_cast<double>(i) + 0.5) / static_cast<double>(n),
                         members[static_cast<size_t>(drawn[static_cast<size_t>(i)])]);
    }
  }
  std::sort(order.begin(), order.end());
  std::vector<int64_t> result;
  for (const auto& [place, index] : order) result.push_back(index);
  return result;
}

ImageDataset part_of(const ImageDataset& cells, const std::vector<int64_t>& indices) {
  ImageDataset part{{}, cells.class_names};
  for (const int64_t i : indices) part.samples.push_back(cells.samples[static_cast<size_t>(i)]);
  return part;
}

void write_manifest(const fs::path& path, const ImageDataset& cells,
                    const std::vector<int64_t>& train) {
  std::string lines = "path,label\n";
  for (const Sample& sample : part_of(cells, train).samples) {
    lines += text("\"", fs::absolute(sample.path).string(), "\",",
                  cells.class_names[static_cast<size_t>(sample.label)], "\n");
  }
  write_file_atomically(path, lines);
}

// Each arm as its recipe has it, at the same number of steps; the linear head, which sees stored
// features, for as many epochs as it takes.
FinetuneOptions options_of(const SolarSettings& settings, const SolarJob& job) {
  FinetuneOptions options = job.arm == SolarArm::scratch  ? FinetuneOptions::from_scratch()
                            : job.arm == SolarArm::frozen ? FinetuneOptions::linear_probe()
                                                          : FinetuneOptions::fine_tuning();
  options.out = folder_of(settings, job.name).path;
  options.data = fs::absolute(settings.out / (job.name + ".csv"));
  options.validation = 0;
  options.overwrite = true;  // what a crash left before the first save
  if (job.arm == SolarArm::scratch) {
    options.architecture = read_card(job.weights).architecture;
  } else {
    options.weights = job.weights;
  }
  if (job.arm != SolarArm::frozen) {
    const auto labels = static_cast<int64_t>(job.train.size());
    options.steps = std::max(settings.least_steps,
                             settings.epochs * ((labels + settings.batch - 1) / settings.batch));
    options.augmentation.vertical_flip = true;  // a cell looks the same from any side
  }
  options.batch = settings.batch;
  options.image_size = settings.image_size;
  options.workers = settings.workers;
  options.device = settings.device;
  options.precision = settings.precision;
  options.seed = job.seed;
  return options;
}

std::optional<SolarScore> judge(const SolarSettings& settings, const fs::path& weights,
                                const ImageDataset& test, Observer& observer) {
  FeatureNetwork network = open_features(weights, settings.device, settings.precision);
  const ExtractedFeatures got = extract_features(
      network, test, {.batch = settings.batch, .workers = settings.workers}, [&](int64_t done) {
        Progress progress{Progress::Phase::validation};
        progress.done = done;
        progress.total = std::ssize(test.samples);
        observer.progress(progress);
        return !observer.stop_requested();
      });
  if (!got.features.defined()) return std::nullopt;
  const int64_t classes = got.logits.dim(1);
  const std::vector<float> logits = got.logits.to_vector<float>();
  ConfusionMatrix confusion(classes);
  for (size_t i = 0; i < got.labels.size(); ++i) {
    const auto row = logits.begin() + static_cast<int64_t>(i) * classes;
    confusion.add(got.labels[i], std::max_element(row, row + classes) - row);
  }
  const Metrics metrics = metrics_of(confusion, 1);
  return SolarScore{metrics.accuracy, metrics.balanced_accuracy};
}

SolarResult result_of(const ResultsFolder& results, const std::string& job, const Json& json) {
  SolarResult result;
  try {
    result.labels = json.at("labels");
    result.steps = json.at("steps");
    for (const auto& [name, score] : json.at("scores").items()) {
      result.scores[name] = {score.at("accuracy"), score.at("balanced_accuracy")};
    }
  } catch (const Json::exception& error) {
    results.fail_damaged(job, error.what());
  }
  return result;
}

Json to_json(const SolarResult& result) {
  Json json{{"labels", result.labels}, {"steps", result.steps}};
  for (const auto& [name, score] : result.scores) {
    json["scores"][name] = {{"accuracy", score.accuracy},
                            {"balanced_accuracy", score.balanced_accuracy}};
  }
  return json;
}

}  // namespace

SolarSettings SolarSettings::quick() {
  SolarSettings settings;
  settings.seeds = 2;
  settings.fractions = {0.05, 0.25, 1};
  settings.epochs = 2;
  settings.least_steps = 40;
  settings.batch = 16;
  settings.image_size = 96;
  settings.cells = 800;
  return settings;
}

ImageDataset read_cells(const fs::path& folder, int64_t most) {
  const fs::path list = folder / "labels.csv";
  std::ifstream file(list);
  GRAFT_CHECK(file.is_open(), "solar: ", folder.string(), " has no labels.csv", kSolarHelp);
  ImageDataset cells{{}, {"clean", "defective"}};
  int64_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    std::istringstream words(line);
    std::string name, type;
    double probability = -1;
    if (!(words >> name)) continue;
    GRAFT_CHECK(words >> probability >> type && probability >= 0 && probability <= 1 &&
                    (type == "mono" || type == "poly"),
                list.string(), ": line ", number,
                ": expected a file, a probability and mono or "
                "poly, got \"",
                line, "\"");
    // In the archive the files are below images/, as the list says; fetched they are beside it.
    fs::path path = folder / name;
    if (!fs::exists(path)) path = folder / fs::path(name).filename();
    GRAFT_CHECK(fs::exists(path), list.string(), ": line ", number, ": ", path.string(),
                " is not there", kSolarHelp);
    cells.samples.push_back({path, probability > 0.5 ? 1 : 0, type});
  }
  std::vector<int64_t> all;
  for (size_t i = 0; i < cells.samples.size(); ++i) all.push_back(static_cast<int64_t>(i));
  for (const char* type : {"mono", "poly"}) {
    for (int64_t label : {0, 1}) {
      const auto count = std::count_if(
          cells.samples.begin(), cells.samples.end(),
          [&](const Sample& cell) { return cell.group == type && cell.label == label; });
      GRAFT_CHECK(count >= 4, list.string(), ": expected at least 4 ",
                  cells.class_names[static_cast<size_t>(label)], " cells of type ", type, ", got ",
                  count, kSolarHelp);
    }
  }
  if (most <= 0 || most >= std::ssize(all)) return cells;
  std::vector<int64_t> some = spread(cells, all, 0);
  some.resize(static_cast<size_t>(most));
  std::sort(some.begin(), some.end());
  return part_of(cells, some);
}

CellSplit draw_cells(const ImageDataset& cells, const std::string& type, uint64_t seed) {
  std::vector<int64_t> wanted;
  for (size_t i = 0; i < cells.samples.size(); ++i) {
    if (type.empty() || cells.samples[i].group == type) wanted.push_back(static_cast<int64_t>(i));
  }
  const std::vector<int64_t> order = spread(cells, wanted, seed);
  const auto held =
      static_cast<int64_t>(std::lround(kTestPart * static_cast<double>(order.size())));
  return {spread(cells, {order.begin() + held, order.end()}, seed + 1000),
          {order.begin(), order.begin() + held}};
}

std::vector<int64_t> first_labels(const ImageDataset& cells, const std::vector<int64_t>& train,
                                  double part) {
  const auto most =
      static_cast<size_t>(std::max(2L, std::lround(part * static_cast<double>(train.size()))));
  bool seen[2] = {};
  std::vector<int64_t> first;
  for (const int64_t i : train) {
    bool& known = seen[cells.samples[static_cast<size_t>(i)].label];
    if (first.size() >= most && (known || (seen[0] && seen[1]))) break;
    known = true;
    first.push_back(i);
  }
  return first;
}

fs::path weights_of(const SolarSettings& settings, const std::string& job) {
  return folder_of(settings, job).best();
}

std::optional<SolarResult> run_job(const SolarSettings& settings, const ResultsFolder& results,
                                   const ImageDataset& cells, const SolarJob& job,
                                   Observer& observer) {
  if (const auto known = results.find(job.name)) return result_of(results, job.name, *known);
  const FinetuneOptions options = options_of(settings, job);
  const RunFolder folder = folder_of(settings, job.name);
  FinetuneResult trained;
  if (fs::exists(folder.state()) && fs::exists(folder.config())) {
    ResumeOptions changes;
    changes.workers = options.workers;
    changes.device = options.device;
    trained = resume(folder.path, changes, observer);
  } else {
    write_manifest(options.data, cells, job.train);
    trained = finetune(options, observer);
  }
  if (trained.interrupted) return std::nullopt;
  SolarResult result;
  result.labels = std::ssize(job.train);
  result.steps = trained.steps;
  for (const auto& [name, test] : job.tests) {
    const std::optional<SolarScore> score =
        judge(settings, folder.best(), part_of(cells, test), observer);
    if (!score) return std::nullopt;
    result.scores[name] = *score;
  }
  results.keep(job.name, to_json(result));
  fs::remove(options.data);
  if (!job.keep) folder.remove_run();
  return result;
}

ResultsFolder open_results(const SolarSettings& settings, bool overwrite) {
  return {settings.out,
          {{"experiment", "solar"},
           {"weights_sha256", sha256_hex(settings.weights)},
           {"labels_sha256", sha256_hex(settings.data / "labels.csv")},
           {"fractions", settings.fractions},
           {"few", settings.few},
           {"epochs", settings.epochs},
           {"least_steps", settings.least_steps},
           {"batch", settings.batch},
           {"image_size", settings.image_size},
           {"cells", settings.cells},
           {"precision", text(settings.precision)}},
          overwrite};
}

}  // namespace graft
