// Every method of adaptation end to end, where the right answer is known: a shift that leaves one
// direction alone in which the classes can be told apart as well as ever.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <map>

#include "engine/rng.h"
#include "transfer/adapt/methods.h"
#include "transfer/adapt/trainer.h"
#include "transfer/adapt/vector_network.h"

namespace graft {
namespace {

constexpr uint64_t kSeeds = 5;

using Draw = std::vector<float> (*)(int64_t label, bool of_target, RandomStream& random);

Features sample(Draw draw, int64_t points, bool of_target, uint64_t seed) {
  RandomStream random({seed, 0, 0});
  Features data;
  std::vector<float> values;
  for (int64_t i = 0; i < points; ++i) {
    const std::vector<float> row = draw(i % 2, of_target, random);
    values.insert(values.end(), row.begin(), row.end());
    data.labels.push_back(i % 2);
    data.indices.push_back(i);
  }
  const auto width = static_cast<int64_t>(values.size()) / points;
  data.values = Tensor::of(values, {points, width});
  return data;
}

using Open = std::unique_ptr<Batches> (*)(Features, const LoaderOptions&);

AdaptRun run_of(Draw draw, Open open, const std::string& method, uint64_t seed) {
  AdaptRun run;
  LoaderOptions train, judge;
  train.batch_size = judge.batch_size = 50;
  train.shuffle = true;
  train.seed = seed;
  const Features target = sample(draw, 200, true, 2 * seed + 1000);
  run.data.source_train = open(sample(draw, 200, false, seed), train);
  run.data.source_held_out = open(sample(draw, 100, false, seed + 500), judge);
  train.seed = seed + 1;
  run.data.target_train = open(target, train);
  run.data.target_in_order = open(target, judge);
  run.data.target_labelled = true;
  run.options.method = method;
  run.options.validator = "last";
  FinetuneOptions& training = run.options.training;
  training = FinetuneOptions::from_scratch();
  training.learning_rate = 0.01f;
  training.weight_decay = 0;
  training.schedule.kind = ScheduleKind::constant;
  training.seed = seed;
  return run;
}

double target_accuracy(AdaptRun run) {
  AdaptObserver quiet;
  return *AdaptTrainer(std::move(run), quiet).run().best()->oracle;
}

double median(std::vector<double> values) {
  std::sort(values.begin(), values.end());
  return values[values.size() / 2];
}

// Two blobs apart in x and in y; the target's are moved along x, so that y is what to go by.
std::vector<float> blob(int64_t label, bool of_target, RandomStream& random) {
  const double centre = label == 0 ? -1 : 1;
  return {static_cast<float>(centre + 0.4 * random.normal() + (of_target ? 1.6 : 0)),
          static_cast<float>(centre + 0.4 * random.normal())};
}

double blobs(const MethodInfo& method, uint64_t seed) {
  AdaptRun run = run_of(blob, feature_batches, method.name, seed);
  run.model = make_vector_network(2, {15}, 2, {seed, 0, 0});
  run.blank = [] { return make_vector_network(2, {15}, 2, {0, 0, 0}); };
  run.card.architecture = run.options.training.architecture = "vector";
  for (const MethodOption& option : method.options) {
    if (option.name == "hidden") run.options.settings.emplace_back("hidden=20");
    if (option.name == "depth") run.options.settings.emplace_back("depth=1");
  }
  run.options.training.epochs = 2;
  run.options.steps_per_epoch = 100;
  return target_accuracy(std::move(run));
}

// Adversaries of 20 units, all else by default; AdaBN has its own case. ADDA is judged after 100
// adversarial steps: with several hundred it loses the classes on some seeds, as its file warns.
// Medians, because an adversary may align the classes with each other's on a seed.
TEST_CASE("blobs of which one coordinate moves: no method harms, and all but afn gain") {
  std::map<std::string, double> accuracy;
  for (const MethodInfo& method : adapt_methods()) {
    if (method.name == "adabn") continue;
    std::vector<double> seeds;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) seeds.push_back(blobs(method, seed));
    accuracy[method.name] = median(seeds);
  }
  const double plain = accuracy.at("source_only");
  CHECK(plain > 0.85);  // the source is not useless
  CHECK(plain < 0.92);  // and there is something to gain
  for (const auto& [method, now] : accuracy) {
    CAPTURE(method);
    CAPTURE(plain);
    CAPTURE(now);
    CHECK(now >= plain - 0.03);
    // Larger norms have nothing to say about a shift.
    if (method != "source_only" && method != "afn") CHECK(now >= plain + 0.05);
  }
}

// Stripes across or down, 8 x 8; the target's have a tenth of the contrast, which is what the
// statistics of a batch norm take out.
std::vector<float> stripes(int64_t label, bool of_target, RandomStream& random) {
  const double phase = random.uniform(0, 6);
  std::vector<float> picture;
  for (int y = 0; y < 8; ++y) {
    for (int x = 0; x < 8; ++x) {
      const double wave = std::sin((label == 0 ? y : x) * 1.6 + phase) + 0.5 * random.normal();
      picture.push_back(static_cast<float>(of_target ? 0.1 * wave : wave));
    }
  }
  return picture;
}

std::unique_ptr<Batches> picture_batches(Features pictures, const LoaderOptions& options) {
  struct Pictures : Batches {
    explicit Pictures(std::unique_ptr<Batches> of) : rows(std::move(of)) {}
    int64_t samples() const override { return rows->samples(); }
    int64_t count() const override { return rows->count(); }
    void start_epoch(int64_t epoch, int64_t first) override { rows->start_epoch(epoch, first); }
    bool next(Batch& batch) override {
      if (!rows->next(batch)) return false;
      batch.images = reshape(batch.images, {-1, 8, 8, 1});
      return true;
    }
    std::unique_ptr<Batches> rows;
  };
  return std::make_unique<Pictures>(feature_batches(std::move(pictures), options));
}

TEST_CASE("stripes in another contrast: adabn reads them with the target's statistics") {
  const auto accuracy = [](const std::string& method) {
    std::vector<double> seeds;
    for (uint64_t seed = 1; seed <= kSeeds; ++seed) {
      AdaptRun run = run_of(stripes, picture_batches, method, seed);
      run.model = make_model("small_cnn", {2, 1}, {seed, 0, 0});
      run.blank = [] { return make_blank_model("small_cnn", {2, 1}); };
      run.card.architecture = run.options.training.architecture = "small_cnn";
      run.options.training.epochs = 3;
      seeds.push_back(target_accuracy(std::move(run)));
    }
    return median(seeds);
  };
  CHECK(accuracy("source_only") < 0.75);
  CHECK(accuracy("adabn") > 0.9);
}

}  // namespace
}  // namespace graft
