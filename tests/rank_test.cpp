// Ranking of networks by their features: how sure the intervals are, over simulated features, and
// the order of candidates whose quality is known.
#include "transfer/rank.h"

#include <cmath>
#include <doctest/doctest.h>

#include "engine/io/weights.h"
#include "engine/rng.h"
#include "tests/support/pictures.h"
#include "tests/support/weight_bytes.h"
#include "transfer/finetune.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/transferability.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using testing::TemporaryFolder;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

std::vector<int64_t> cycle(int64_t n, int64_t classes) {
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < n; ++i) labels.push_back(i % classes);
  return labels;
}

// Rows whose first feature is `apart` larger in class 1; the others vary more and more, as features
// do.
Tensor clusters(const std::vector<int64_t>& labels, int64_t width, double apart, uint64_t seed) {
  RandomStream random({seed, 0, 0});
  std::vector<float> values;
  for (const int64_t label : labels) {
    for (int64_t j = 0; j < width; ++j) {
      const double centre = j == 0 ? apart * static_cast<double>(label) : 0;
      values.push_back(
          static_cast<float>(centre + (1.0 + static_cast<double>(j)) * random.normal()));
    }
  }
  return Tensor::of(values, {static_cast<int64_t>(labels.size()), width});
}

TEST_CASE("the jackknife of a mean is its t interval, whatever way it is taken") {
  const std::vector<double> values{3, 1, 4, 1, 5, 9, 2, 6};
  const Interval wanted = mean_interval(values);
  std::vector<int64_t> own_group(8);
  for (size_t i = 0; i < 8; ++i) own_group[i] = static_cast<int64_t>(i);
  const auto mean = [&](const std::vector<int64_t>& rows) {
    double sum = 0;
    for (const int64_t row : rows) sum += values[static_cast<size_t>(row)];
    return sum / static_cast<double>(rows.size());
  };
  for (const Jackknife& way : {jackknife_of_mean(values), jackknife(own_group, mean)}) {
    const Interval got = interval_of(way);
    CHECK(got.value == doctest::Approx(wanted.value));
    CHECK(got.low == doctest::Approx(wanted.low));
    CHECK(got.high == doctest::Approx(wanted.high));
    CHECK(difference_of(way, way).high == 0);
  }
  CHECK(contains(error_of([&] { jackknife(std::vector<int64_t>{0, 0}, mean); }), "2 groups"));
  CHECK(contains(error_of([&] { jackknife(std::vector<int64_t>{0, 2, 0}, mean); }), "group 1"));
  CHECK(contains(
      error_of([&] {
        difference_of(jackknife(std::vector<int64_t>{0, 1}, mean), jackknife_of_mean(values));
      }),
      "2 and 8 groups"));
}

TEST_CASE("equally good features are told apart in at most one of twenty pairs") {
  // Each draw is a task, with two networks whose features are as good as each other.
  const std::vector<int64_t> labels = cycle(60, 2);
  constexpr int kDraws = 1000;
  std::map<Score, int> alarms, seen;
  for (uint64_t draw = 0; draw < kDraws; ++draw) {
    const std::vector<int64_t> group_of = stratified_folds(labels, 2, 10, {draw, 1, 0});
    const auto scored = [&](double apart, uint64_t seed) {
      const Tensor x = clusters(labels, 4, apart, seed);
      Scores scores;
      for (const auto& [score, measure] :
           {std::pair{Score::h_score, &h_score}, std::pair{Score::log_me, &log_me}}) {
        scores[score] = jackknife(group_of, [&](const std::vector<int64_t>& rows) {
          std::vector<float> values;
          std::vector<int64_t> of_rows;
          for (const int64_t row : rows) {
            values.insert(values.end(), x.data<float>() + row * 4, x.data<float>() + row * 4 + 4);
            of_rows.push_back(labels[static_cast<size_t>(row)]);
          }
          return measure(Tensor::of(values, {std::ssize(rows), 4}), of_rows, 2);
        });
      }
      return scores;
    };
    const Scores a = scored(2.5, 2 * draw), b = scored(2.5, 2 * draw + 1),
                 worse = scored(0, 2 * draw + 100000);
    for (const auto& [score, value] : a) {
      const Interval none = difference_of(value, b.at(score));
      alarms[score] += none.low > 0 || none.high < 0;
      seen[score] += difference_of(value, worse.at(score)).low > 0;
    }
  }
  for (const auto& [score, count] : alarms) {
    CAPTURE(name_of(score));
    // Three standard deviations of the draws above 5 %.
    CHECK(count <= kDraws * 0.05 + 3 * std::sqrt(kDraws * 0.05 * 0.95));
    CHECK(seen[score] > kDraws * 0.9);
  }
}

TEST_CASE("every score prefers features that know the classes; heads only where there are") {
  const std::vector<int64_t> labels = cycle(80, 2);
  const Tensor good = clusters(labels, 6, 3, 1), bad = clusters(labels, 6, 0, 2);
  std::vector<float> logits;
  for (const int64_t label : labels) {
    logits.insert(logits.end(), {label == 0 ? 2.0f : -1.0f, 0.1f, label == 1 ? 1.5f : 0.0f});
  }
  const Tensor knows = Tensor::of(logits, {80, 3});
  const Tensor knows_not = Tensor::of(std::vector<float>(240, 0.5f), {80, 3});
  const Scores a = score_features(good, knows, labels, 2, 0);
  const Scores b = score_features(bad, knows_not, labels, 2, 0);
  CHECK(a.size() == all_scores().size());
  for (const Score score : all_scores()) {
    CAPTURE(name_of(score));
    CHECK(difference_of(a.at(score), b.at(score)).low > 0);
    CHECK(score_of_name(name_of(score)) == score);
  }
  CHECK(a.at(Score::probe).value > 0.85);
  CHECK(b.at(Score::probe).value < 0.7);  // chance: cross-validated, it cannot learn by heart
  const Scores headless = score_features(good, {}, labels, 2, 0);
  CHECK(headless.count(Score::leep) + headless.count(Score::nce) == 0);
  CHECK(headless.at(Score::h_score).value == a.at(Score::h_score).value);
  CHECK(contains(error_of([] { score_of_name("h_score"); }), "did you mean h-score?"));
}

Candidate candidate(const std::string& name, std::vector<double> right) {
  Candidate one;
  one.weights = name;
  one.scores[Score::probe] = jackknife_of_mean(right);
  return one;
}

TEST_CASE("the order, and who cannot be told from the best") {
  std::vector<double> best(100, 1), near(100, 1), far(100, 1);
  for (size_t i = 0; i < 3; ++i) near[i] = 0;
  for (size_t i = 0; i < 40; ++i) far[i] = 0;
  std::vector<Candidate> given{candidate("far", far), candidate("best", best),
                               candidate("near", near)};
  given.push_back(candidate("headless", best));
  given.back().scores.clear();
  Ranking ranking = rank_by(Score::probe, given);
  REQUIRE(ranking.candidates.size() == 4);
  CHECK(ranking.candidates[0].weights == "best");
  CHECK(ranking.candidates[1].weights == "near");
  CHECK(ranking.candidates[2].weights == "far");
  CHECK(ranking.candidates[3].weights == "headless");
  CHECK(ranking.tied == 2);
  // Two comparisons: each at 97.5 %.
  const std::vector<double> lost = [] {
    std::vector<double> d(100, 0);
    for (size_t i = 0; i < 40; ++i) d[i] = 1;
    return d;
  }();
  CHECK(ranking.candidates[2].behind.low == doctest::Approx(mean_interval(lost, 0.975).low));
  std::swap(given[0], given[2]);
  CHECK(rank_by(Score::probe, given).candidates[0].weights == "best");
  CHECK(contains(error_of([&] { rank_by(Score::leep, given); }), "--score"));
}

TEST_CASE("networks on pictures: one that was trained on the like, and one that was not") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "source", 24, 16, 2);
  testing::write_stripes(folder / "target", 30, 16, 1);
  FinetuneOptions options = FinetuneOptions::from_scratch();
  options.data = folder / "source";
  options.architecture = "small_cnn";
  options.image_size = 16;
  options.batch = 8;
  options.epochs = 8;
  options.workers = 0;
  options.out = folder / "run";
  finetune(options);
  const fs::path trained = folder / "run" / "last.safetensors", random = folder / "r.safetensors";
  LoadedModel model = load_model(trained);
  model.model->initialise({3, 0, 0});
  StateDict headless = model.model->state_dict();
  for (const char* end : {".weight", ".bias"}) headless.erase(model.model->head_name() + end);
  model.card.classes = 0;
  model.card.class_names.clear();
  write_safetensors(random, headless, to_metadata(model.card));

  RankOptions rank;
  rank.data = folder / "target";
  rank.candidates = {random, trained};
  rank.most = 50;
  rank.score = Score::log_me;
  int64_t last = -1;
  const auto always = [&](int64_t one, int64_t, int64_t total) {
    last = one;
    CHECK(total == 50);
    return true;
  };
  const Ranking ranking = rank_candidates(rank, always);
  CHECK(last == 1);
  CHECK(ranking.images == 50);
  CHECK(ranking.classes == 2);
  REQUIRE(ranking.candidates.size() == 2);
  CHECK(ranking.candidates[0].weights == trained);
  CHECK(ranking.candidates[0].scores.size() == 6);
  CHECK(ranking.candidates[1].scores.size() == 4);
  CHECK(ranking.tied == 1);
  // A probe on either makes no mistake on these pictures: it cannot tell them apart, and says so.
  CHECK(rank_by(Score::probe, ranking.candidates).tied == 2);
  CHECK(rank_candidates(rank, [](int64_t, int64_t, int64_t) { return false; }).candidates.empty());

  const auto refused = [&](const std::function<void(RankOptions&)>& spoil) {
    RankOptions spoilt = rank;
    spoil(spoilt);
    return error_of([&] {
      rank_candidates(spoilt, [](int64_t, int64_t, int64_t) -> bool {
        FAIL("it computed");
        return false;
      });
    });
  };
  CHECK(contains(refused([](auto& o) { o.candidates.pop_back(); }), "at least 2 candidates"));
  CHECK(contains(
      refused([&](auto& o) { o.candidates.push_back(folder / "run" / ".." / "r.safetensors"); }),
      "given twice"));
  CHECK(contains(
      refused([&](auto& o) { o.candidates.push_back(folder / "run" / "state.safetensors"); }),
      "training run"));
  CHECK(contains(refused([](auto& o) { o.most = 8; }), "too few"));
}

}  // namespace
}  // namespace graft
