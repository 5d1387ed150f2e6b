// graft experiment amazon: Table 1 of the DANN paper, the columns on the original data.
#include <cctype>
#include <iostream>
#include <memory>

#include "engine/io/weights.h"
#include "tools/command.h"
#include "tools/experiments/adapt_runs.h"
#include "tools/experiments/amazon_runs.h"
#include "tools/experiments/experiments.h"
#include "tools/numbers.h"
#include "tools/stop_signal.h"
#include "tools/table.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

// Accuracy in the paper's Table 1 (a), columns NN and DANN, and the rows' order.
struct PaperRow {
  const char *source, *target;
  double nn, dann;
};
constexpr PaperRow kPaper[] = {
    {"books", "dvd", .790, .784},           {"books", "electronics", .747, .733},
    {"books", "kitchen", .778, .779},       {"dvd", "books", .720, .723},
    {"dvd", "electronics", .732, .754},     {"dvd", "kitchen", .778, .783},
    {"electronics", "books", .709, .713},   {"electronics", "dvd", .733, .738},
    {"electronics", "kitchen", .854, .854}, {"kitchen", "books", .708, .709},
    {"kitchen", "dvd", .739, .740},         {"kitchen", "electronics", .841, .843},
};
constexpr const char *kNn = "source_only", *kDann = "dann";

struct AmazonFlags {
  std::string data, out;
  int64_t seeds = 0, epochs = 0;
  bool quick = false, force = false, json = false;
  ComputeOptions compute;
};

std::string task_of(const PaperRow& row) { return text(row.source, "-", row.target); }

std::vector<AdaptJob> jobs_of(const AmazonFlags& options,
                              const std::map<std::string, Reviews>& reviews, Device device) {
  std::vector<AdaptJob> jobs;
  for (const PaperRow& row : kPaper) {
    for (const char* method : {kNn, kDann}) {
      for (int64_t s = 1; s <= options.seeds; ++s) {
        const auto seed = static_cast<uint64_t>(s);
        jobs.push_back({task_of(row), method, seed, [=, &reviews] {
                          AdaptRun run = amazon_run(reviews.at(row.source), reviews.at(row.target),
                                                    method, options.epochs, seed);
                          run.options.training.device = device;
                          run.options.training.precision = options.compute.precision;
                          return run;
                        }});
      }
    }
  }
  return jobs;
}

struct Row {
  std::string name;
  double nn, dann, paper_nn, paper_dann;
  Interval gain;  // of DANN over NN
};

// A row a pair, and their mean; its gain has a value a seed.
std::vector<Row> rows_of(const AmazonFlags& options, const AdaptResults& results) {
  std::vector<Row> rows;
  Row mean{"mean", 0, 0, 0, 0, {}};
  std::vector<double> gains(static_cast<size_t>(options.seeds));
  for (const PaperRow& paper : kPaper) {
    const std::string task = task_of(paper);
    const std::vector<double> nn = results.of(task, kNn, &TargetScore::chosen);
    const std::vector<double> dann = results.of(task, kDann, &TargetScore::chosen);
    rows.push_back({text(paper.source, " -> ", paper.target), mean_of(nn), mean_of(dann), paper.nn,
                    paper.dann, results.gain(task, kDann, kNn, &TargetScore::chosen)});
    constexpr double kPart = 1.0 / std::size(kPaper);
    mean.nn += rows.back().nn * kPart;
    mean.dann += rows.back().dann * kPart;
    mean.paper_nn += paper.nn * kPart;
    mean.paper_dann += paper.dann * kPart;
    for (size_t s = 0; s < gains.size(); ++s) gains[s] += (dann[s] - nn[s]) * kPart;
  }
  mean.gain = mean_interval(gains);
  rows.push_back(mean);
  return rows;
}

void print_text(const AmazonFlags& options, const std::vector<Row>& rows) {
  std::cout << "Amazon reviews, " << options.seeds
            << " seeds; accuracy on the target's test reviews in %, the epoch chosen by the "
               "source's\nheld-out reviews; gains of DANN over NN in points with 95 % intervals "
               "over paired seeds\n\n";
  Table table({"<source -> target", "NN", "paper", "DANN", "paper", "gain", "paper"});
  for (const Row& row : rows) {
    table.row({row.name, in_percent(row.nn), in_percent(row.paper_nn), in_percent(row.dann),
               in_percent(row.paper_dann), points(row.gain),
               text(row.paper_dann < row.paper_nn ? "" : "+",
                    in_percent(row.paper_dann - row.paper_nn))});
  }
  std::cout << table.text();
}

void print_json_lines(const std::vector<Row>& rows) {
  for (const Row& row : rows) {
    print_json({{"pair", row.name},
                {"nn", row.nn},
                {"dann", row.dann},
                {"paper_nn", row.paper_nn},
                {"paper_dann", row.paper_dann},
                {"gain", json_of(row.gain)}});
  }
}

void run_amazon(AmazonFlags options) {
  catch_stop_signals();
  if (options.seeds == 0) options.seeds = options.quick ? 2 : 5;
  if (options.epochs == 0) options.epochs = options.quick ? 5 : 10;
  const Device device = options.compute.apply();
  const std::map<std::string, Reviews> reviews = read_reviews(options.data);
  Json settings{{"experiment", "amazon"},
                {"epochs", options.epochs},
                {"precision", text(options.compute.precision)}};
  for (const std::string product : kProducts) {
    for (const char* part : {"_train", "_test"}) {
      settings["sha256"][product + part] = sha256_hex(review_file(options.data, product + part));
    }
  }
  const ResultsFolder folder(options.out, settings, options.force);
  const AdaptResults results(jobs_of(options, reviews, device), folder);
  const std::vector<Row> rows = rows_of(options, results);
  options.json ? print_json_lines(rows) : print_text(options, rows);
}

}  // namespace

void add_amazon(CLI::App& experiment) {
  auto options = std::make_shared<AmazonFlags>();
  CLI::App* command =
      add_command(experiment, "amazon", "Reviews of products: Table 1 of the DANN paper",
                  "graft experiment amazon --data REVIEWS --out amazon\n"
                  "graft experiment amazon --data REVIEWS --out quick --quick");
  command
      ->add_option("--data", options->data,
                   "folder with books_train.svmlight, books_test.svmlight ...: the folder data of "
                   "github.com/GRAAL-Research/domain_adversarial_neural_network")
      ->required();
  command
      ->add_option("--out", options->out,
                   "folder of the results; what is finished there is not run again")
      ->required();
  command->add_flag("--quick", options->quick, "2 seeds of 5 epochs");
  command
      ->add_option("--seeds", options->seeds, "repetitions (5; quick 2); more can be added later")
      ->check(CLI::Range(2, 1000));
  command->add_option("--epochs", options->epochs, "at most, the best one counts (10; quick 5)")
      ->check(CLI::Range(1, 100000));
  options->compute.add_to(*command);
  add_json_option(*command, options->json);
  command->add_flag("--force", options->force, "replace the experiment that --out holds");
  command->callback([options] { run_amazon(*options); });
}

}  // namespace graft
