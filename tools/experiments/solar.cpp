// graft experiment solar: what labels are worth to three ways of training, and what one type of
// solar cells teaches about the other.
#include <cmath>
#include <iostream>
#include <memory>

#include "engine/io/weights.h"
#include "tools/chart.h"
#include "tools/command.h"
#include "tools/experiments/experiments.h"
#include "tools/experiments/reporter.h"
#include "tools/experiments/solar_runs.h"
#include "tools/numbers.h"
#include "tools/stop_signal.h"
#include "tools/table.h"
#include "transfer/measure/statistics.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

struct SolarFlags {
  std::string data, weights, out;
  bool quick = false, force = false, json = false;
  int64_t seeds = 0, least_steps = 0, image_size = 0, cells = 0, workers = 1;
  ComputeOptions compute;
};

const std::pair<SolarArm, const char*> kArms[] = {{SolarArm::scratch, "scratch"},
                                                  {SolarArm::frozen, "frozen"},
                                                  {SolarArm::fine_tuning, "fine-tuning"}};
const std::pair<const char*, const char*> kTypes[] = {{"mono", "poly"}, {"poly", "mono"}};

std::string part_name(double part) { return text(std::lround(part * 100)); }

// Every run of the experiment, sources before those that start from them.
std::vector<SolarJob> jobs_of(const SolarSettings& settings, const ImageDataset& cells) {
  std::vector<SolarJob> jobs;
  for (int64_t s = 0; s < settings.seeds; ++s) {
    const auto seed = static_cast<uint64_t>(s);
    const auto add = [&](const std::string& name, SolarArm arm,
                         std::vector<int64_t> train) -> auto& {
      SolarJob job;
      job.name = text(name, "-seed", seed);
      job.arm = arm;
      job.seed = seed;
      job.weights = settings.weights;
      job.train = std::move(train);
      jobs.push_back(std::move(job));
      return jobs.back();
    };
    const CellSplit both = draw_cells(cells, "", seed);
    for (const double part : settings.fractions) {
      for (const auto& [arm, name] : kArms) {
        add(text(name, "-", part_name(part)), arm, first_labels(cells, both.train, part)).tests = {
            {"cells", both.test}};
      }
    }
    std::map<std::string, CellSplit> split;
    for (const auto& [type, other] : kTypes) split[type] = draw_cells(cells, type, seed);
    for (const auto& [type, other] : kTypes) {
      SolarJob& source = add(type, SolarArm::fine_tuning, split[type].train);
      source.tests = {{"mono", split["mono"].test}, {"poly", split["poly"].test}};
      source.keep = true;
    }
    for (const auto& [from, to] : kTypes) {
      const std::vector<int64_t> few = first_labels(cells, split[to].train, settings.few);
      add(text("imagenet-to-", to), SolarArm::fine_tuning, few).tests = {{to, split[to].test}};
      SolarJob& job = add(text(from, "-to-", to), SolarArm::fine_tuning, few);
      job.tests = {{to, split[to].test}};
      job.weights = weights_of(settings, text(from, "-seed", seed));
    }
  }
  return jobs;
}

class Results {
 public:
  explicit Results(int64_t seeds) : seeds_(seeds) {}
  void add(const std::string& job, SolarResult result) { by_job_[job] = std::move(result); }
  size_t size() const { return by_job_.size(); }
  const SolarResult& of(const std::string& name, int64_t seed) const {
    return by_job_.at(text(name, "-seed", seed));
  }
  // Balanced accuracy on a test set, a number a seed.
  std::vector<double> balanced(const std::string& name, const std::string& test) const {
    return collect(name, test, &SolarScore::balanced_accuracy);
  }
  std::vector<double> accuracy(const std::string& name, const std::string& test) const {
    return collect(name, test, &SolarScore::accuracy);
  }
  // Of the same seeds.
  Interval gain(const std::string& with, const std::string& without,
                const std::string& test) const {
    std::vector<double> differences = balanced(with, test);
    const std::vector<double> less = balanced(without, test);
    for (size_t i = 0; i < differences.size(); ++i) differences[i] -= less[i];
    return mean_interval(differences);
  }

 private:
  std::vector<double> collect(const std::string& name, const std::string& test,
                              double SolarScore::*score) const {
    std::vector<double> values;
    for (int64_t s = 0; s < seeds_; ++s) values.push_back(of(name, s).scores.at(test).*score);
    return values;
  }

  int64_t seeds_;
  std::map<std::string, SolarResult> by_job_;
};

Chart value_curve(const SolarSettings& settings, const Results& results) {
  Chart chart;
  chart.title = "What labels are worth";
  chart.x_title = "labelled cells";
  chart.y_title = "balanced accuracy";
  chart.others = {{"scratch", {}}, {"frozen", {}}};
  for (const double part : settings.fractions) {
    const auto value = [&](const std::string& arm) {
      return mean_of(results.balanced(text(arm, "-", part_name(part)), "cells"));
    };
    chart.x.push_back(static_cast<double>(results.of("frozen-" + part_name(part), 0).labels));
    chart.y.push_back(value("fine-tuning"));
    for (auto& [name, curve] : chart.others) curve.push_back(value(name));
  }
  return chart;
}

// The fewest labels with which fine-tuning surely does better than scratch with all of them, by the
// interval over paired seeds; "" where none do.
std::string multiplier(const SolarSettings& settings, const Results& results) {
  const std::string all = part_name(settings.fractions.back());
  const int64_t labels = results.of("frozen-" + all, 0).labels;
  for (const double part : settings.fractions) {
    const int64_t few = results.of("frozen-" + part_name(part), 0).labels;
    if (few == labels) break;
    const Interval gain = results.gain("fine-tuning-" + part_name(part), "scratch-" + all, "cells");
    if (gain.low <= 0) continue;
    return text("fine-tuning on ", few, " labels does better than training from scratch on ",
                labels, ": a label is worth at least ",
                fixed(static_cast<double>(labels) / static_cast<double>(few), 1));
  }
  return "";
}

void print_text(const SolarSettings& settings, const Results& results) {
  std::cout << settings.seeds << " seeds, each with a quarter of the cells to judge; balanced "
            << "accuracy in %, gains in points with 95 % intervals over paired seeds\n\n";
  Table labels({"labels, %", "cells", "scratch", "frozen", "fine-tuning", "fine-tuning - scratch",
                "fine-tuning - frozen"});
  for (const double part : settings.fractions) {
    const auto name = [&](const std::string& arm) { return text(arm, "-", part_name(part)); };
    const auto cell = [&](const std::string& arm) {
      return in_percent(mean_of(results.balanced(name(arm), "cells")));
    };
    labels.row({part_name(part), text(results.of(name("frozen"), 0).labels), cell("scratch"),
                cell("frozen"), cell("fine-tuning"),
                points(results.gain(name("fine-tuning"), name("scratch"), "cells")),
                points(results.gain(name("fine-tuning"), name("frozen"), "cells"))});
  }
  const Chart chart = value_curve(settings, results);
  std::cout << labels.text() << "\n"
            << chart.y_title << " over " << chart.x_title
            << ": * fine-tuning, f frozen, s scratch\n"
            << to_text(chart);
  if (const std::string line = multiplier(settings, results); !line.empty())
    std::cout << line << "\n";

  Table types({"<trained on", "judged on mono", "judged on poly"});
  for (const auto& [type, other] : kTypes) {
    types.row({text(type, ", ", results.of(type, 0).labels, " cells"),
               in_percent(mean_of(results.balanced(type, "mono"))),
               in_percent(mean_of(results.balanced(type, "poly")))});
  }
  Table transfer({"<fine-tuned to", "cells", "from ImageNet", "<from the other type", "gain"});
  for (const auto& [from, to] : kTypes) {
    const std::string plain = text("imagenet-to-", to), moved = text(from, "-to-", to);
    transfer.row({to, text(results.of(plain, 0).labels),
                  in_percent(mean_of(results.balanced(plain, to))),
                  text(from, " ", in_percent(mean_of(results.balanced(moved, to)))),
                  points(results.gain(moved, plain, to))});
  }
  std::cout << "\n" << types.text() << "\n" << transfer.text();
}

void print_json_lines(const SolarSettings& settings, const Results& results) {
  for (const double part : settings.fractions) {
    Json line{{"table", "labels"}, {"part", part}};
    const auto name = [&](const std::string& arm) { return text(arm, "-", part_name(part)); };
    line["labels"] = results.of(name("frozen"), 0).labels;
    for (const auto& [arm, word] : kArms) {
      line[word] = {{"accuracy", results.accuracy(name(word), "cells")},
                    {"balanced_accuracy", results.balanced(name(word), "cells")}};
    }
    line["gain_over_scratch"] =
        json_of(results.gain(name("fine-tuning"), name("scratch"), "cells"));
    line["gain_over_frozen"] = json_of(results.gain(name("fine-tuning"), name("frozen"), "cells"));
    print_json(line);
  }
  for (const auto& [type, other] : kTypes) {
    print_json({{"table", "types"},
                {"trained_on", type},
                {"labels", results.of(type, 0).labels},
                {"mono", results.balanced(type, "mono")},
                {"poly", results.balanced(type, "poly")}});
  }
  for (const auto& [from, to] : kTypes) {
    const std::string plain = text("imagenet-to-", to), moved = text(from, "-to-", to);
    print_json({{"table", "transfer"},
                {"from", from},
                {"to", to},
                {"labels", results.of(plain, 0).labels},
                {"imagenet", results.balanced(plain, to)},
                {"other_type", results.balanced(moved, to)},
                {"gain", json_of(results.gain(moved, plain, to))}});
  }
}

SolarSettings settings_of(const SolarFlags& options) {
  SolarSettings settings = options.quick ? SolarSettings::quick() : SolarSettings();
  settings.data = options.data;
  settings.weights = options.weights;
  settings.out = options.out;
  if (options.seeds > 0) settings.seeds = options.seeds;
  if (options.least_steps > 0) settings.least_steps = options.least_steps;
  if (options.image_size > 0) settings.image_size = options.image_size;
  if (options.cells > 0) settings.cells = options.cells;
  settings.workers = options.workers;
  settings.device = options.compute.apply();
  settings.precision = options.compute.precision;
  return settings;
}

void run_solar(const SolarFlags& options) {
  catch_stop_signals();
  const SolarSettings settings = settings_of(options);
  const ImageDataset cells = read_cells(settings.data, settings.cells);
  const ResultsFolder folder = open_results(settings, options.force);
  Results results(settings.seeds);
  ExperimentReporter reporter;
  const std::vector<SolarJob> jobs = jobs_of(settings, cells);
  for (const SolarJob& job : jobs) {
    reporter.start(job.name, results.size() + 1, jobs.size());
    std::optional<SolarResult> result;
    try {
      result = run_job(settings, folder, cells, job, reporter);
    } catch (const Error& error) {
      reporter.failed(error, results.size(), jobs.size());
    }
    if (!result) reporter.stopped(results.size(), jobs.size());
    std::string line = text(job.name, ": ", result->labels, " labels, ", result->steps, " steps");
    for (const auto& [test, score] : result->scores) {
      line += text(", ", test, " ", in_percent(score.balanced_accuracy), " %");
    }
    reporter.done(line);
    results.add(job.name, *result);
  }
  reporter.clear();
  write_file_atomically(settings.out / "curve.svg", to_svg(value_curve(settings, results)));
  options.json ? print_json_lines(settings, results) : print_text(settings, results);
}

}  // namespace

void add_solar(CLI::App& experiment) {
  auto options = std::make_shared<SolarFlags>();
  CLI::App* command = add_command(
      experiment, "solar",
      "Solar cells: the worth of labels, and mono cells helping with poly ones",
      "graft experiment solar --data ELPV --weights lite0.safetensors --out solar\n"
      "graft experiment solar --data ELPV --weights lite0.safetensors --out quick --quick");
  command->add_option("--data", options->data, "the folder that tools/fetch elpv prints")
      ->required();
  command->add_option("--weights", options->weights, "pre-trained weights from graft convert")
      ->required();
  command
      ->add_option("--out", options->out,
                   "folder of the results; what is finished there is not run again")
      ->required();
  command->add_flag("--quick", options->quick,
                    "800 cells of 96 pixels, 2 seeds, 3 numbers of labels: minutes on a CPU");
  command
      ->add_option("--seeds", options->seeds, "repetitions (5; quick 2); more can be added later")
      ->check(CLI::Range(2, 1000));
  command->add_option("--steps", options->least_steps, "of the shortest runs (100; quick 40)")
      ->check(CLI::Range(1, 1000000));
  command->add_option("--image-size", options->image_size, "in pixels (the weights' own; quick 96)")
      ->check(CLI::Range(8, 4096));
  command->add_option("--cells", options->cells, "photographs to use (all; quick 800)")
      ->check(CLI::Range(16, 1000000));
  command->add_option("--workers", options->workers, "threads that decode images (1)")
      ->check(CLI::Range(0, 256));
  options->compute.add_to(*command);
  add_json_option(*command, options->json);
  command->add_flag("--force", options->force, "replace the experiment that --out holds");
  command->callback([options] { run_solar(*options); });
}

}  // namespace graft
