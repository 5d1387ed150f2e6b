// Ranking of networks by their features: how sure the intervals are, over simulated features, and
// the order of candidates whose quality is known.
#include "transfer/rank.h"

#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>

#include "engine/io/weights.h"
#include "engine/rng.h"
#include "tests/support/pictures.h"
#include "tests/support/weight_bytes.h"
#include "transfer/finetune.h"
#include "transfer/measure/rows.h"
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

// The mean of some of the values, as a score.
auto mean_over(const std::vector<double>& values) {
  return [values](const std::vector<int64_t>& rows) {
    double sum = 0;
    for (const int64_t row : rows) sum += values[static_cast<size_t>(row)];
    return sum / static_cast<double>(rows.size());
  };
}

Bootstrap bootstrap_of_mean(const std::vector<double>& values, int64_t draws) {
  return bootstrap(std::vector<int64_t>(values.size()), mean_over(values), {1, 0, 0}, draws);
}

TEST_CASE("parts of the rows of a mean vary as its t interval says") {
  // The deviation of 20,000 draws is known to half a per cent.
  const std::vector<double> values{3, 1, 4, 1, 5, 9, 2, 6, 5, 3};
  const Bootstrap drawn = bootstrap_of_mean(values, 20000);
  Interval wanted = mean_interval(values), got = interval_of(drawn);
  // Many draws have many degrees of freedom, ten values nine.
  const double wider = student_t_quantile(0.975, 9) / student_t_quantile(0.975, 19999);
  got.low = got.value - (got.value - got.low) * wider;
  got.high = got.value + (got.high - got.value) * wider;
  CHECK(got.value == doctest::Approx(wanted.value));
  CHECK(got.low == doctest::Approx(wanted.low).epsilon(0.01));
  CHECK(got.high == doctest::Approx(wanted.high).epsilon(0.01));
  CHECK(difference_of(drawn, drawn).high == 0);

  // Strata of 3, 5 and 1: four fifths of each, and of what is between strata nothing.
  const std::vector<int64_t> stratum{0, 0, 0, 1, 1, 1, 1, 1, 2};
  std::map<size_t, int> sizes;
  const Bootstrap apart =
      bootstrap(stratum,
                [&](const std::vector<int64_t>& rows) {
                  CHECK(std::is_sorted(rows.begin(), rows.end()));
                  std::vector<int> seen(3);
                  for (const int64_t row : rows)
                    ++seen[static_cast<size_t>(stratum[static_cast<size_t>(row)])];
                  if (rows.size() < stratum.size()) {
                    ++sizes[rows.size()];
                    CHECK(seen[1] == 4);
                    CHECK(seen[2] == 1);
                  }
                  return seen[2] == 1 ? 7.0 : 0.0;
                },
                {3, 0, 0});
  CHECK(sizes[7] + sizes[8] == 100);
  CHECK(sizes[7] > 45);  // 60 expected
  CHECK(sizes[8] > 25);
  CHECK(interval_of(apart).high == 7);

  CHECK(contains(error_of([&] {
                   bootstrap(std::vector<int64_t>{0, 1}, mean_over(values), {});
                 }),
                 "2 rows, 2 strata"));
  CHECK(contains(error_of([&] { difference_of(drawn, bootstrap_of_mean(values, 100)); }),
                 "20000 and 100 draws"));
}

TEST_CASE("equally good features are told apart in at most one of twenty pairs") {
  // Each draw is a task, with two networks whose features are as good as each other.
  const std::vector<int64_t> labels = cycle(60, 2);
  constexpr int kDraws = 1000;
  std::map<Score, int> alarms, seen;
  for (uint64_t draw = 0; draw < kDraws; ++draw) {
    const auto scored = [&](double apart, uint64_t seed) {
      const Tensor x = clusters(labels, 4, apart, seed);
      Scores scores;
      for (const auto& [score, measure] :
           {std::pair{Score::h_score, &h_score}, std::pair{Score::log_me, &log_me}}) {
        const auto of_rows = [&, measure = measure](const std::vector<int64_t>& rows) {
          return measure(rows_of(x, rows), labels_of(labels, rows), 2);
        };
        scores[score] = bootstrap(labels, of_rows, {draw, 1, 0}, 40);
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
    MESSAGE(name_of(score), ": ", count, " false alarms of ", kDraws);
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
  one.scores[Score::probe] = bootstrap_of_mean(right, 2000);
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
  CHECK(ranking.candidates[2].behind.low ==
        doctest::Approx(mean_interval(lost, 0.975).low).epsilon(0.02));
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
