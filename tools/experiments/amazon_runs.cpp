#include "tools/experiments/amazon_runs.h"

#include <cmath>
#include <numeric>

#include "engine/rng.h"
#include "transfer/adapt/vector_network.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kWords = 5000, kHidden = 100;
constexpr double kHeldOut = 0.1;
constexpr int64_t kBatch = 50;
constexpr float kRate = 1e-3f;
constexpr const char* kLambda = "0.1";  // fixed; the paper chooses among nine by reverse validation
constexpr const char* kAmazonHelp =
    "; the counts are in the folder data of github.com/GRAAL-Research/"
    "domain_adversarial_neural_network, whose folder --data names";

SparseRows read_part(const fs::path& folder, const std::string& name) {
  const fs::path path = review_file(folder, name);
  SparseRows rows = read_svmlight(path, kWords);
  for (int64_t& label : rows.labels) {
    GRAFT_CHECK(label >= -1 && label <= 1, path.string(), ": expected labels of -1 and 1, got ",
                label);
    label = label > 0;
  }
  GRAFT_CHECK(rows.size() >= 10, path.string(), ": expected at least 10 reviews, got ",
              rows.size());
  return rows;
}

Features part_of(const SparseRows& rows, std::span<const int64_t> indices) {
  Features part{rows.dense(indices), {}, {indices.begin(), indices.end()}};
  for (const int64_t i : indices) part.labels.push_back(rows.labels[static_cast<size_t>(i)]);
  return part;
}

Features all_of(const SparseRows& rows) {
  std::vector<int64_t> indices(rows.labels.size());
  std::iota(indices.begin(), indices.end(), int64_t{0});
  return part_of(rows, indices);
}

}  // namespace

fs::path review_file(const fs::path& folder, const std::string& name) {
  fs::path path = folder / (name + ".svmlight");
  if (!fs::exists(path)) path += ".gz";
  GRAFT_CHECK(fs::exists(path), "amazon: ", folder.string(), " has no ", name, ".svmlight",
              kAmazonHelp);
  return path;
}

std::map<std::string, Reviews> read_reviews(const fs::path& folder) {
  std::map<std::string, Reviews> reviews;
  for (const std::string product : kProducts) {
    reviews[product] = {read_part(folder, product + "_train"),
                        read_part(folder, product + "_test")};
  }
  return reviews;
}

AdaptRun amazon_run(const Reviews& source, const Reviews& target, const std::string& method,
                    int64_t epochs, uint64_t seed) {
  const std::vector<int64_t> order = permutation(source.train.size(), {seed, 0, 0});
  const auto held =
      std::max<int64_t>(1, std::lround(kHeldOut * static_cast<double>(source.train.size())));
  const std::span<const int64_t> drawn(order);
  LoaderOptions train, judge;
  train.batch_size = kBatch;
  train.shuffle = true;
  train.seed = seed;
  judge.batch_size = 500;
  AdaptRun run;
  run.data.source_held_out =
      feature_batches(part_of(source.train, drawn.first(static_cast<size_t>(held))), judge);
  run.data.source_train =
      feature_batches(part_of(source.train, drawn.subspan(static_cast<size_t>(held))), train);
  train.seed = seed + 1;
  run.data.target_train = feature_batches(all_of(target.train), train);
  run.data.target_in_order = feature_batches(all_of(target.test), judge);
  run.data.target_labelled = true;

  const auto network = [](uint64_t key) {
    return make_vector_network(kWords, {kHidden}, 2, {key, 0, 0}, HiddenUnits::sigmoid);
  };
  run.model = network(seed);
  run.blank = [network] { return network(0); };
  run.card.architecture = "vector";
  run.options.method = method;
  if (method == "dann") {
    run.options.settings = {"depth=0", "gamma=0", "placement=loss", text("weight=", kLambda)};
  }
  run.options.validator = "source";
  run.options.steps_per_epoch = run.data.source_train->count();
  FinetuneOptions& training = run.options.training;
  training = FinetuneOptions::from_scratch();
  training.architecture = "vector";
  training.learning_rate = kRate;
  training.weight_decay = 0;
  training.schedule.kind = ScheduleKind::constant;
  training.batch = kBatch;
  training.epochs = epochs;
  training.seed = seed;
  return run;
}

}  // namespace graft
