// graft experiment moons: every method of adaptation on inter-twinning moons, the target turned.
#include "transfer/adapt/moons.h"

#include <iostream>
#include <memory>

#include "tools/command.h"
#include "tools/experiments/adapt_runs.h"
#include "tools/experiments/experiments.h"
#include "tools/numbers.h"
#include "tools/stop_signal.h"
#include "tools/table.h"
#include "transfer/adapt/methods.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kTask = "moons";
constexpr const char* kBaseline = "source_only";
constexpr int64_t kEpochs = 10;

struct MoonsFlags {
  std::string out;
  double degrees = 35;
  int64_t seeds = 5, steps = 3000;
  bool force = false, json = false;
  ComputeOptions compute;
};

// The features are 15 numbers: adversaries of one hidden layer of 100 units instead of 1024 and
// more. Everything else is the methods' default.
std::vector<std::string> settings_of(const MethodInfo& method) {
  std::vector<std::string> settings;
  for (const MethodOption& option : method.options) {
    if (option.name == "hidden") settings.emplace_back("hidden=100");
    if (option.name == "depth") settings.emplace_back("depth=1");
  }
  return settings;
}

// Those that need no batch norm, which the network has none of.
std::vector<const MethodInfo*> methods() {
  std::vector<const MethodInfo*> all;
  for (const MethodInfo& method : adapt_methods()) {
    if (method.name != "adabn") all.push_back(&method);
  }
  return all;
}

std::vector<AdaptJob> jobs_of(const MoonsFlags& options, Device device) {
  std::vector<AdaptJob> jobs;
  for (const MethodInfo* method : methods()) {
    for (int64_t seed = 1; seed <= options.seeds; ++seed) {
      jobs.push_back({kTask, method->name, static_cast<uint64_t>(seed), [=] {
                        AdaptRun run =
                            moon_run(method->name, options.degrees, static_cast<uint64_t>(seed));
                        run.options.settings = settings_of(*method);
                        run.options.steps_per_epoch = options.steps / kEpochs;
                        run.options.training.epochs = kEpochs;
                        run.options.training.device = device;
                        run.options.training.precision = options.compute.precision;
                        return run;
                      }});
    }
  }
  return jobs;
}

void print_text(const MoonsFlags& options, const AdaptResults& results) {
  std::cout << "Moons, the target turned by " << options.degrees << " degrees; " << options.seeds
            << " seeds, " << options.steps
            << " steps. Target accuracy in %: means, and gains in points\nover " << kBaseline
            << " with 95 % intervals over paired seeds. \"bnm\" is the epoch chosen without target "
               "labels, \"oracle\" the\nbest one by them.\n\n";
  Table table({"<method", "last epoch", "worst seed", "gain", "bnm", "oracle"});
  for (const MethodInfo* method : methods()) {
    const auto mean = [&](double TargetScore::*score) {
      return in_percent(mean_of(results.of(kTask, method->name, score)));
    };
    const std::vector<double> last = results.of(kTask, method->name, &TargetScore::last);
    const bool baseline = method->name == kBaseline;
    table.row(
        {method->name, mean(&TargetScore::last),
         in_percent(*std::min_element(last.begin(), last.end())),
         baseline ? "" : points(results.gain(kTask, method->name, kBaseline, &TargetScore::last)),
         mean(&TargetScore::chosen), mean(&TargetScore::oracle)});
  }
  std::cout << table.text();
}

void print_json_lines(const AdaptResults& results) {
  for (const MethodInfo* method : methods()) {
    print_json(
        {{"method", method->name},
         {"last", results.of(kTask, method->name, &TargetScore::last)},
         {"bnm", results.of(kTask, method->name, &TargetScore::chosen)},
         {"oracle", results.of(kTask, method->name, &TargetScore::oracle)},
         {"gain", json_of(results.gain(kTask, method->name, kBaseline, &TargetScore::last))}});
  }
}

void run_moons(const MoonsFlags& options) {
  catch_stop_signals();
  const Device device = options.compute.apply();
  const ResultsFolder folder(options.out,
                             {{"experiment", "moons"},
                              {"degrees", options.degrees},
                              {"steps", options.steps},
                              {"precision", text(options.compute.precision)}},
                             options.force);
  const AdaptResults results(jobs_of(options, device), folder);
  options.json ? print_json_lines(results) : print_text(options, results);
}

}  // namespace

void add_moons(CLI::App& experiment) {
  auto options = std::make_shared<MoonsFlags>();
  CLI::App* command = add_command(
      experiment, "moons", "Every method of domain adaptation on two moons: needs no data",
      "graft experiment moons --out moons\n"
      "graft experiment moons --out quick --seeds 2 --steps 500 --degrees 20");
  command
      ->add_option("--out", options->out,
                   "folder of the results; what is finished there is not run again")
      ->required();
  command->add_option("--degrees", options->degrees, "by which the target is turned (35)")
      ->check(CLI::Range(-180.0, 180.0));
  command->add_option("--seeds", options->seeds, "repetitions (5); more can be added later")
      ->check(CLI::Range(2, 1000));
  command->add_option("--steps", options->steps, "of every run (3000), in 10 epochs")
      ->check(CLI::Range(10, 1000000));
  options->compute.add_to(*command);
  add_json_option(*command, options->json);
  command->add_flag("--force", options->force, "replace the experiment that --out holds");
  command->callback([options] { run_moons(*options); });
}

}  // namespace graft
