// The trainer of adaptations end to end on toys: DANN beats source-only on rotated moons, the
// health panel notices a planted failure before the accuracy does, runs repeat and resume to the
// byte.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <filesystem>
#include <functional>
#include <sstream>

#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "transfer/adapt/adapt.h"
#include "transfer/adapt/methods.h"
#include "transfer/adapt/moons.h"
#include "transfer/adapt/trainer.h"

namespace graft {
namespace {

using test::test_device;
using testing::file_bytes;
using testing::TemporaryFolder;

AdaptRun moons_on_device(const std::string& method, int64_t epochs, double degrees, uint64_t seed) {
  AdaptRun run = moon_run(method, degrees, seed);
  run.options.training.epochs = epochs;
  run.options.training.device = test_device();
  return run;
}

AdaptResult run_of(AdaptRun run) {
  AdaptObserver quiet;
  return AdaptTrainer(std::move(run), quiet).run();
}

TEST_CASE("moons turned by 35 degrees: dann beats source-only on every seed") {
  constexpr int kSeeds = 3;
  double source_only = 0, dann = 0;
  for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
    CAPTURE(seed);
    const auto accuracy = [&](const std::string& method, const std::vector<std::string>& settings) {
      AdaptRun run = moons_on_device(method, 3, 35, seed);
      run.options.settings = settings;
      run.options.steps_per_epoch = 1000;
      run.options.validator = "last";
      return *run_of(std::move(run)).best()->oracle;
    };
    const double plain = accuracy("source_only", {});
    const double adapted = accuracy("dann", {"hidden=100", "depth=1"});
    CHECK(adapted > plain);
    source_only += plain / kSeeds;
    dann += adapted / kSeeds;
  }
  CHECK(source_only < 0.8);
  CHECK(dann > 0.85);
}

// Draws the target's features together, as an adversary does that has won: both domains look alike
// because everything does.
struct Contraction : AdaptMethod {
  Tensor transfer_loss(const DomainPair& pair, const StepPlace& place) override {
    const Tensor& x = pair.target.features;
    const Tensor apart = sub(x, mean(x, {0}, true));
    return mul(mean(mul(apart, apart)),
               static_cast<float>(std::exp(16 * place.progress) * place.strength));
  }
};

AdaptRun failing_run() {
  AdaptRun run = moons_on_device("planted", 24, 10, 3);
  run.options.steps_per_epoch = 50;
  run.own_method = MethodInfo{"planted", "a failure", {}};
  run.own_method->make = [](const MethodSettings&, const MethodContext&) {
    return std::make_unique<Contraction>();
  };
  return run;
}

TEST_CASE("a planted collapse rings the alarm before the accuracy falls, and is backed off from") {
  const std::vector<AdaptReport> epochs = run_of(failing_run()).epochs;
  const auto first = [&](const auto& sign) {
    return std::find_if(epochs.begin(), epochs.end(), sign) - epochs.begin();
  };
  const auto alarm = first([](const AdaptReport& r) { return !r.health.alarms.empty(); });
  double best = 0;
  const auto fall = first([&](const AdaptReport& r) {
    best = std::max(best, *r.oracle);
    return *r.oracle < best - 0.1;
  });
  CHECK(fall < static_cast<int64_t>(epochs.size()));  // it is a failure
  CHECK(alarm < fall);

  AdaptRun careful = failing_run();
  careful.options.back_off = 0.1;
  const std::vector<AdaptReport> calmer = run_of(std::move(careful)).epochs;
  CHECK(calmer.back().strength < 0.5);
  CHECK(calmer.back().health.spread > epochs.back().health.spread);
  // A healthy run rings nothing.
  for (const AdaptReport& r : run_of(moons_on_device("source_only", 3, 35, 3)).epochs) {
    CHECK(r.health.alarms.empty());
  }
}

TEST_CASE("the validators' choices and their regret; the oracle is the last row") {
  std::vector<AdaptReport> reports(3);
  const double source[] = {0.9, 0.8, 0.7}, bnm[] = {0.1, 0.5, 0.3}, oracle[] = {0.4, 0.6, 0.75};
  for (size_t i = 0; i < 3; ++i) {
    reports[i].epoch = static_cast<int64_t>(i) + 1;
    reports[i].validators = {{"source", source[i]}, {"bnm", bnm[i]}};
    reports[i].oracle = oracle[i];
  }
  const std::vector<Choice> rows = choices(reports);
  REQUIRE(rows.size() == 4);
  CHECK(rows[0].validator == "bnm");
  CHECK(rows[0].epoch == 2);
  CHECK(*rows[0].regret == doctest::Approx(0.15));
  CHECK(rows[1].epoch == 1);
  CHECK(*rows[1].regret == doctest::Approx(0.35));
  CHECK(rows[2].validator == "last");
  CHECK(*rows[2].regret == 0);
  CHECK(rows[3].validator == "oracle");
  for (AdaptReport& report : reports) report.oracle.reset();
  CHECK_FALSE(choices(reports).back().regret.has_value());
  CHECK(to_json(adapt_report_from_json(to_json(reports[1]))) == to_json(reports[1]));
}

// Batches of random 8 x 8 pictures.
std::unique_ptr<Batches> noise(int64_t images, float mean, uint64_t seed) {
  struct Noise : Batches {
    Tensor images, labels;
    int64_t at = 0;
    int64_t samples() const override { return images.dim(0); }
    int64_t count() const override { return samples() / 4; }
    void start_epoch(int64_t, int64_t first) override { at = first; }
    bool next(Batch& batch) override {
      if (at >= count()) return false;
      batch.images = narrow(images, at * 4, 4);
      batch.labels = narrow(labels, at * 4, 4);
      batch.number = at++;
      return true;
    }
  };
  auto batches = std::make_unique<Noise>();
  batches->images = normal({images, 8, 8, 3}, mean, 1, {seed, 0, 0});
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < images; ++i) labels.push_back(i % 2);
  batches->labels = Tensor::of(labels);
  return batches;
}

AdaptRun noise_run(const std::string& method, NormMode mode) {
  AdaptRun run;
  run.data.source_train = noise(12, 0, 1);
  run.data.source_held_out = noise(8, 0, 2);
  run.data.target_train = noise(8, 1, 3);
  run.data.target_in_order = noise(8, 1, 3);
  run.model = make_model("small_cnn", {2, 3}, {1, 0, 0});
  run.blank = [] { return make_blank_model("small_cnn", {2, 3}); };
  run.card.architecture = "small_cnn";
  run.options.method = method;
  run.options.norm = mode;
  run.options.training.weights = "given";
  run.options.training.epochs = 2;
  run.options.training.learning_rate = 1e-3f;
  run.options.training.device = test_device();
  return run;
}

TEST_CASE("every method trains on the device, with joint batch norms and with one a domain") {
  for (const MethodInfo& info : adapt_methods()) {
    for (const NormMode mode : {NormMode::joint, NormMode::domain}) {
      // A pass a domain is one to every method with a pass; MCD and DANN stand for them.
      if (mode == NormMode::domain && info.name != "dann" && info.name != "mcd") continue;
      CAPTURE(info.name);
      const AdaptResult result = run_of(noise_run(info.name, mode));
      CHECK(result.epochs.size() == 2);
      CHECK(result.steps == 6);  // the larger domain's batches twice
      CHECK(std::isfinite(result.epochs.back().source_loss));
      for (const auto& [name, value] : result.epochs.back().validators) {
        CAPTURE(name);
        CHECK(std::isfinite(value));
      }
      for (const NamedTensor& entry : result.model->named_parameters()) {
        const std::vector<float> values = entry.tensor->to_vector<float>();
        CHECK(std::all_of(values.begin(), values.end(), [](float x) { return std::isfinite(x); }));
      }
    }
  }
}

TEST_CASE("what cannot be trained is refused before anything is trained") {
  const auto error_of = [](const std::function<void(AdaptRun&)>& change) {
    AdaptRun run = noise_run("dann", NormMode::joint);
    change(run);
    try {
      run_of(std::move(run));
    } catch (const Error& error) {
      return std::string(error.what());
    }
    return std::string();
  };
  const auto says = [&](const std::string& part, const std::function<void(AdaptRun&)>& change) {
    const std::string error = error_of(change);
    CAPTURE(error);
    CHECK(error.find(part) != std::string::npos);
  };
  says("there is no method \"dan_n\"", [](AdaptRun& run) { run.options.method = "dan_n"; });
  says("there is no validator", [](AdaptRun& run) { run.options.validator = "bnn"; });
  says("did you mean weight?", [](AdaptRun& run) { run.options.settings = {"wieght=1"}; });
  says("there is no layer", [](AdaptRun& run) { run.options.layer = "conv9"; });
  says("nothing", [](AdaptRun& run) { run.options.training.freeze = {"*"}; });
  says("plateau",
       [](AdaptRun& run) { run.options.training.schedule.kind = ScheduleKind::plateau; });
  says("leave --layer out", [](AdaptRun& run) {
    run.options.method = "adda";
    run.options.layer = "block1";
  });
  says("no batch norm", [](AdaptRun& run) { run = moons_on_device("adabn", 1, 35, 1); });
}

// --- from folders

struct StopAfter : AdaptObserver {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};

// Every file of a run but config.json, without timings.
std::string contents(const std::filesystem::path& run) {
  std::string all;
  for (const char* name : {"best.safetensors", "last.safetensors", "state.safetensors"}) {
    all += file_bytes(run / name);
  }
  std::istringstream lines(file_bytes(run / "metrics.jsonl"));
  for (std::string line; std::getline(lines, line);) all += line.substr(0, line.find("\"timing\""));
  return all;
}

AdaptOptions folder_options(const TemporaryFolder& folder, const std::string& out) {
  AdaptOptions options;
  options.training = FinetuneOptions::from_scratch();
  options.training.data = folder / "source";
  options.training.architecture = "small_cnn";
  options.training.image_size = 16;
  options.training.batch = 8;
  options.training.epochs = 2;
  options.training.workers = 0;
  options.training.out = folder / out;
  options.training.device = test_device();
  options.target = folder / "target";
  return options;
}

TEST_CASE("an adaptation that is stopped and resumed ends with the same bytes") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "source", 12, 16, 1);
  testing::write_stripes(folder / "target", 14, 16, 2);
  AdaptObserver quiet;
  for (const std::string method : {"dann", "adda"}) {
    CAPTURE(method);
    AdaptOptions options = folder_options(folder, method + "-whole");
    options.method = method;
    options.settings = {"hidden=16"};
    options.norm = method == "dann" ? NormMode::domain : NormMode::joint;
    options.target_labels = true;
    adapt(options, quiet);
    options.training.out = folder / (method + "-stopped");
    StopAfter stop(2);  // within the first epoch
    const AdaptResult first = adapt(options, stop);
    CHECK(first.interrupted);
    CHECK(first.steps == 2);
    StopAfter again(4);  // past the second epoch's first steps
    CHECK(resume_adapt(options.training.out, {}, again).interrupted);
    const AdaptResult rest = resume_adapt(options.training.out, {}, quiet);
    CHECK(rest.epochs.size() == 2);
    CHECK(contents(folder / (method + "-stopped")) == contents(folder / (method + "-whole")));
    CHECK(load_model(options.training.out / "best.safetensors").card.class_names.size() == 2);
  }
}

TEST_CASE("domains that do not fit together are refused, and nothing is written") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "source", 4, 16, 1);
  testing::write_stripes(folder / "target", 4, 16, 2);
  std::filesystem::create_directories(folder / "empty");
  const auto error_of = [&](const std::function<void(AdaptOptions&)>& change) {
    AdaptOptions options = folder_options(folder, "run");
    change(options);
    try {
      AdaptObserver quiet;
      adapt(options, quiet);
    } catch (const Error& error) {
      CHECK_FALSE(std::filesystem::exists(folder / "run"));
      return std::string(error.what());
    }
    return std::string();
  };
  CHECK(error_of([&](AdaptOptions& o) { o.target = folder / "empty"; }).find("no image") !=
        std::string::npos);
  std::filesystem::rename(folder / "target" / "down", folder / "target" / "left");
  const std::string differ = error_of([](AdaptOptions&) {});
  CHECK(differ.find("only the source has [down]") != std::string::npos);
  CHECK(differ.find("only the target has [left]") != std::string::npos);
  std::filesystem::remove_all(folder / "target" / "left");
  CHECK(error_of([](AdaptOptions&) {}).find("single class, \"across\"") != std::string::npos);
  const std::filesystem::path flat = folder / "target" / "across";
  const std::string unlabelled = error_of([&](AdaptOptions& o) {
    o.target = flat;
    o.target_labels = true;
  });
  CHECK(unlabelled.find("have no labels") != std::string::npos);
}

}  // namespace
}  // namespace graft
