#include "transfer/adapt/moons.h"

#include <cmath>
#include <numbers>

#include "engine/rng.h"
#include "transfer/adapt/vector_network.h"

namespace graft {
namespace {

constexpr int64_t kHidden = 15;

DomainBatches moon_batches(double degrees, uint64_t seed) {
  LoaderOptions train, judge;
  train.batch_size = judge.batch_size = 50;
  train.shuffle = true;
  train.seed = seed;
  const Features target = moons(300, degrees, 2 * seed + 1000);
  DomainBatches data;
  data.source_train = feature_batches(moons(300, 0, seed), train);
  data.source_held_out = feature_batches(moons(200, 0, seed + 500), judge);
  train.seed = seed + 1;
  data.target_train = feature_batches(target, train);
  data.target_in_order = feature_batches(target, judge);
  data.target_labelled = true;
  return data;
}

}  // namespace

Features moons(int64_t points, double degrees, uint64_t seed) {
  RandomStream random({seed, 0, 0});
  const double angle = degrees * std::numbers::pi / 180;
  std::vector<float> values;
  Features data;
  for (int64_t i = 0; i < points; ++i) {
    const int64_t label = i % 2;
    const double t = random.uniform(0, std::numbers::pi);
    const double x = (label == 0 ? std::cos(t) : 1 - std::cos(t)) - 0.5 + 0.1 * random.normal();
    const double y = (label == 0 ? std::sin(t) : 0.5 - std::sin(t)) - 0.25 + 0.1 * random.normal();
    values.push_back(static_cast<float>(std::cos(angle) * x - std::sin(angle) * y));
    values.push_back(static_cast<float>(std::sin(angle) * x + std::cos(angle) * y));
    data.labels.push_back(label);
    data.indices.push_back(i);
  }
  data.values = Tensor::of(values, {points, 2});
  return data;
}

AdaptRun moon_run(const std::string& method, double degrees, uint64_t seed) {
  AdaptRun run;
  run.data = moon_batches(degrees, seed);
  run.model = make_vector_network(2, {kHidden}, 2, {seed, 0, 0});
  run.blank = [] { return make_vector_network(2, {kHidden}, 2, {0, 0, 0}); };
  run.card.architecture = "vector";
  run.options.method = method;
  FinetuneOptions& training = run.options.training;
  training = FinetuneOptions::from_scratch();
  training.architecture = "vector";
  training.learning_rate = 0.01f;
  training.weight_decay = 0;
  training.schedule.kind = ScheduleKind::constant;
  training.seed = seed;
  return run;
}

}  // namespace graft
