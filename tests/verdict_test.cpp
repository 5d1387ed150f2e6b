// The verdict end to end, on pictures that the test makes: a source that harms, one that helps, one
// that is nothing; stopping and going on; what is refused before anything trains.
#include "transfer/verdict.h"

#include <doctest/doctest.h>
#include <fstream>
#include <nlohmann/json.hpp>

#include "engine/io/weights.h"
#include "tests/support/lost_device.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "tests/support/weight_bytes.h"
#include "transfer/features.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using testing::file_bytes;
using testing::TemporaryFolder;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// A target of 20 pictures a class, and sources: trained on the same task ("good"), on the same
// pictures with the two labels exchanged ("permuted"), and not at all ("random").
struct World {
  World() {
    testing::write_stripes(folder / "target", 20, 16, 1);
    testing::write_stripes(folder / "good", 30, 16, 2);
    testing::write_stripes(folder / "permuted", 30, 16, 2);
    fs::rename(folder / "permuted" / "across", folder / "permuted" / "x");
    fs::rename(folder / "permuted" / "down", folder / "permuted" / "across");
    fs::rename(folder / "permuted" / "x", folder / "permuted" / "down");
    train("good");
    train("permuted");
    LoadedModel random = load_model(source("good"));
    random.model->initialise({99, 0, 0});
    fs::create_directories(source("random").parent_path());
    write_safetensors(source("random"), random.model->state_dict(), to_metadata(random.card));
  }
  void train(const std::string& name) {
    FinetuneOptions options = FinetuneOptions::from_scratch();
    options.data = folder / name;
    options.architecture = "small_cnn";
    options.image_size = 16;
    options.batch = 8;
    options.epochs = 10;
    options.workers = 0;
    options.out = source(name).parent_path();
    finetune(options);
  }
  fs::path source(const std::string& name) const {
    return folder / ("run-" + name) / "last.safetensors";
  }
  TemporaryFolder folder;
};

const World& world() {
  static const World one;
  return one;
}

VerdictOptions small_verdict(const std::string& source, const fs::path& out) {
  VerdictOptions options;
  options.recipe.data = world().folder / "target";
  options.recipe.weights = world().source(source);
  options.recipe.out = out;
  options.recipe.validation = 0.5;
  options.recipe.epochs = 1;
  options.recipe.batch = 4;
  options.recipe.workers = 0;
  options.recipe.device = test::test_device();
  options.seeds = 3;
  return options;
}

Verdict judged(const VerdictOptions& options) {
  VerdictObserver quiet;
  return judge_transfer(options, quiet);
}

struct StopAfter : VerdictObserver {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  void run_started(Arm, uint64_t, int64_t, int64_t) override { ++started; }
  int64_t left, started = 0;
};

TEST_CASE("a source trained on permuted labels harms, and the advice is not to use it") {
  const TemporaryFolder folder;
  const Verdict verdict = judged(small_verdict("permuted", folder / "v"));
  CHECK(verdict.transfer.answer == Answer::harms);
  CHECK(verdict.transfer.gap.low > 0.1);
  CHECK(verdict.frozen.answer == Answer::harms);
  CHECK(contains(verdict.next, "--from-scratch"));
  CHECK(contains(verdict.next, "--arch small_cnn"));

  // Each arm and seed was judged as its last epoch was, on the split of its own seed.
  REQUIRE(verdict.runs.size() == 9);
  for (const ArmRun& run : verdict.runs) {
    const fs::path of_run = folder / "v" / (name_of(run.arm) + "-" + std::to_string(run.seed));
    std::ifstream metrics(of_run / "metrics.jsonl");
    std::string line, last;
    int64_t epochs = 0;
    for (; std::getline(metrics, line); ++epochs) last = line;
    CHECK(epochs == 1);
    CHECK(1 - nlohmann::json::parse(last)["val_accuracy"].get<double>() ==
          doctest::Approx(run.error));
    CHECK(run.images == read_task_data(world().folder / "target", 0.5, run.seed).split.held_out);
    CHECK(fs::exists(of_run / "last.safetensors"));
    CHECK_FALSE(fs::exists(of_run / "state.safetensors"));
    CHECK_FALSE(fs::exists(of_run / "initial.safetensors"));
  }
  const auto json = nlohmann::json::parse(file_bytes(folder / "v" / "verdict.json"));
  CHECK(json["answer"] == "harms");
  CHECK(json["gap"]["low"].get<double>() == doctest::Approx(verdict.transfer.gap.low));
}

TEST_CASE("a source of the same task helps") {
  const TemporaryFolder folder;
  const Verdict verdict = judged(small_verdict("good", folder / "v"));
  CHECK(verdict.transfer.answer == Answer::helps);
  CHECK(verdict.transfer.gap.high < 0);
  CHECK(contains(verdict.next, "graft finetune --data"));
  CHECK_FALSE(contains(verdict.next, "--from-scratch"));
}

TEST_CASE("random weights are no source: no alarm, and how to learn more") {
  const TemporaryFolder folder;
  const Verdict verdict = judged(small_verdict("random", folder / "v"));
  CHECK(verdict.transfer.answer != Answer::harms);
  CHECK(verdict.transfer.answer != Answer::helps);
  CHECK(verdict.transfer.gap.low <= 0);
  CHECK(verdict.transfer.gap.high >= 0);
  CHECK(!verdict.next.empty());
}

TEST_CASE("a verdict stopped anywhere goes on to the same answer, and repeats no finished run") {
  const TemporaryFolder folder;
  const Verdict whole = judged(small_verdict("permuted", folder / "whole"));
  for (const int64_t batches : {1, 9, 24, 41}) {
    CAPTURE(batches);
    const fs::path out = folder / ("v" + std::to_string(batches));
    StopAfter stop(batches);
    const Verdict stopped = judge_transfer(small_verdict("permuted", out), stop);
    REQUIRE(stopped.interrupted);
    CHECK_FALSE(fs::exists(out / "verdict.json"));
    StopAfter never(1 << 30);
    const Verdict resumed = continue_verdict(out, {}, never);
    CHECK_FALSE(resumed.interrupted);
    CHECK(never.started == 9 - std::ssize(stopped.runs));
    CHECK(file_bytes(out / "transfer-0" / "last.safetensors") ==
          file_bytes(folder / "whole" / "transfer-0" / "last.safetensors"));
    REQUIRE(resumed.runs.size() == whole.runs.size());
    for (size_t i = 0; i < whole.runs.size(); ++i) {
      CHECK(resumed.runs[i].wrong == whole.runs[i].wrong);
    }
    CHECK(resumed.transfer.gap.high == whole.transfer.gap.high);
  }
  // Finished: nothing trains. More seeds: only those.
  StopAfter never(1 << 30);
  CHECK(continue_verdict(folder / "whole", {}, never).transfer.gap.low == whole.transfer.gap.low);
  CHECK(never.started == 0);
  VerdictChanges more;
  more.seeds = 4;
  const Verdict longer = continue_verdict(folder / "whole", more, never);
  CHECK(never.started == 3);
  CHECK(longer.seeds == 4);
  CHECK(read_verdict(folder / "whole").options.seeds == 4);
  more.seeds = 2;
  CHECK(contains(error_of([&] { continue_verdict(folder / "whole", more, never); }),
                 "cannot become 2"));
}

TEST_CASE("a lost device tells the verdict's own command, and what it continues ends alike") {
  if (test::test_device().is_cpu() || !cuda::is_simulated()) return;
  const TemporaryFolder folder;
  VerdictOptions options = small_verdict("good", folder / "whole");
  options.seeds = 2;
  const Verdict whole = judged(options);
  options.recipe.out = folder / "lost";
  options.recipe.save_minutes = 0;                    // after every step
  test::LoseDevice<VerdictObserver> observer(3, 10);  // in the first arm
  const std::string message = error_of([&] { judge_transfer(options, observer); });
  cuda::reset_simulated_device();
  CAPTURE(message);
  CHECK(contains(message, "CUDA reports cudaErrorLaunchFailure"));
  CHECK(message.ends_with("graft verdict --resume " + options.recipe.out.string()));
  CHECK_FALSE(contains(message, "graft finetune"));
  VerdictObserver quiet;
  const Verdict resumed = continue_verdict(options.recipe.out, {}, quiet);
  REQUIRE(resumed.runs.size() == whole.runs.size());
  for (size_t i = 0; i < whole.runs.size(); ++i) {
    CHECK(resumed.runs[i].wrong == whole.runs[i].wrong);
  }
}

TEST_CASE("what cannot be judged is refused before anything is written") {
  const TemporaryFolder folder;
  const auto refused = [&](const std::function<void(VerdictOptions&)>& spoil) {
    VerdictOptions options = small_verdict("good", folder / "v");
    spoil(options);
    const std::string message = error_of([&] { judged(options); });
    CHECK_FALSE(fs::exists(folder / "v"));
    return message;
  };
  CHECK(contains(refused([](auto& o) { o.seeds = 1; }), "2 to 1000 seeds"));
  CHECK(contains(refused([](auto& o) { o.margin = -1; }), "margin"));
  CHECK(contains(refused([](auto& o) { o.recipe.weights.clear(); }), "no weights"));
  CHECK(contains(refused([](auto& o) { o.recipe.validation = 0; }), "nothing is held out"));
  CHECK(contains(refused([](auto& o) { o.recipe.bad_image = BadImage::skip; }), "unreadable"));
  CHECK(contains(refused([](auto& o) { o.seeds = 21; }), "too few for 21 seeds"));
  CHECK(contains(refused([&](auto& o) { o.recipe.weights = folder / "no.safetensors"; }),
                 "no.safetensors"));
  testing::write_png(folder / "one.png", 1, 1, 3, {0, 0, 0});
  CHECK(contains(refused([&](auto& o) { o.recipe.weights = folder / "one.png"; }), "one.png"));
  fs::create_directories(folder / "lonely" / "only");
  testing::write_png(folder / "lonely" / "only" / "a.png", 1, 1, 3, {0, 0, 0});
  CHECK(contains(refused([&](auto& o) { o.recipe.data = folder / "lonely"; }), "class"));
}

TEST_CASE("a folder in use, changed data and changed weights are refused") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 4, 16, 1);
  fs::copy(world().source("good"), folder / "w.safetensors");
  VerdictOptions options = small_verdict("good", folder / "v");
  options.recipe.data = folder / "data";
  options.recipe.weights = folder / "w.safetensors";
  options.recipe.epochs = 1;
  options.seeds = 2;
  judged(options);
  VerdictObserver quiet;
  CHECK(contains(error_of([&] { judged(options); }), "--resume"));
  CHECK(contains(error_of([&] { continue_verdict(folder / "none", {}, quiet); }),
                 "holds no verdict"));
  // A fine-tuning run is no verdict, and is not removed for one.
  const fs::path other = world().source("good").parent_path();
  CHECK(contains(error_of([&] { continue_verdict(other, {}, quiet); }), "another command"));
  options.recipe.overwrite = true;
  options.recipe.out = other;
  CHECK(contains(error_of([&] { judged(options); }), "another command"));
  CHECK(fs::exists(other / "last.safetensors"));
  options.recipe.out = folder / "v";
  CHECK(error_of([&] { judged(options); }).empty());

  fs::resize_file(folder / "v" / "frozen-1" / "judged.json", 20);
  CHECK(contains(error_of([&] { continue_verdict(folder / "v", {}, quiet); }), "damaged"));
  fs::copy(world().source("permuted"), folder / "w.safetensors",
           fs::copy_options::overwrite_existing);
  CHECK(contains(error_of([&] { continue_verdict(folder / "v", {}, quiet); }), "not the weights"));
  fs::remove(folder / "data" / "down" / "picture1.png");
  CHECK(contains(error_of([&] { continue_verdict(folder / "v", {}, quiet); }), "not the data"));
}

}  // namespace
}  // namespace graft
