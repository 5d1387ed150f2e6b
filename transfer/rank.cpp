#include "transfer/rank.h"

#include <algorithm>
#include <set>

#include "engine/autograd.h"
#include "engine/near_names.h"
#include "engine/ops.h"
#include "kernels/error.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/nearest.h"
#include "transfer/measure/rows.h"
#include "transfer/measure/transferability.h"
#include "transfer/task_data.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

constexpr int64_t kFolds = 5;  // of the probe
constexpr int64_t kNeighbours = 5;
// Of the bootstrap: an interval's width is sure to one part in sqrt(2 draws). Scores that decompose
// the features take a second each.
constexpr int64_t kManyDraws = 400, kDraws = 40;

// The part of these rows of which the truth was said.
double part_right(const std::vector<int64_t>& said, std::span<const int64_t> labels,
                  const std::vector<int64_t>& rows) {
  const auto right = std::count_if(rows.begin(), rows.end(), [&](int64_t row) {
    return said[static_cast<size_t>(row)] == labels[static_cast<size_t>(row)];
  });
  return static_cast<double>(right) / static_cast<double>(rows.size());
}

void check_counts(const ImageDataset& data, const std::string& name) {
  const std::vector<int64_t> counts = data.class_counts();
  for (size_t c = 0; c < counts.size(); ++c) {
    GRAFT_CHECK(counts[c] >= kFolds, name, ": class \"", data.class_names[c], "\" has ", counts[c],
                " images, too few for a probe on ", kFolds, " folds; add some");
  }
}

// At most `most` pictures, of every class its share.
ImageDataset thinned(ImageDataset data, int64_t most, uint64_t seed) {
  const auto n = static_cast<double>(data.samples.size());
  if (n <= static_cast<double>(most)) return data;
  ImageDataset part{{}, data.class_names};
  for (const int64_t i : stratified_split(data, static_cast<double>(most) / n, seed).held_out) {
    part.samples.push_back(data.samples[static_cast<size_t>(i)]);
  }
  return part;
}

}  // namespace

const std::vector<Score>& all_scores() {
  static const std::vector<Score> scores{Score::probe,  Score::neighbours, Score::h_score,
                                         Score::log_me, Score::leep,       Score::nce};
  return scores;
}

std::string name_of(Score score) {
  static const char* const names[] = {"probe", "neighbours", "h-score", "logme", "leep", "nce"};
  return names[static_cast<size_t>(score)];
}

Score score_of_name(const std::string& name) {
  std::vector<std::string> names;
  for (const Score score : all_scores()) {
    if (name_of(score) == name) return score;
    names.push_back(name_of(score));
  }
  fail("rank: there is no score \"", name, "\"", did_you_mean(name, names), " (the scores are ",
       names, ")");
}

Scores score_features(const Tensor& features, const Tensor& logits, std::span<const int64_t> labels,
                      int64_t classes, uint64_t seed) {
  Scores scores;
  const auto judged = [&](Score score, const std::vector<int64_t>& said) {
    const auto of_rows = [&](const std::vector<int64_t>& rows) {
      return part_right(said, labels, rows);
    };
    scores[score] = bootstrap(labels, of_rows, {seed, 1, 0}, kManyDraws);
  };
  judged(Score::probe, cross_validated_labels(features, labels, classes, kFolds, {seed, 0, 0}));
  judged(Score::neighbours, leave_one_out_labels(features, labels, classes, kNeighbours));
  using Measure = double (*)(const Tensor&, std::span<const int64_t>, int64_t);
  const auto measure = [&](Score score, const Tensor& x, Measure value, int64_t draws) {
    const auto of_rows = [&](const std::vector<int64_t>& rows) {
      return value(rows_of(x, rows), labels_of(labels, rows), classes);
    };
    scores[score] = bootstrap(labels, of_rows, {seed, 1, 0}, draws);
  };
  measure(Score::h_score, features, h_score, kDraws);
  measure(Score::log_me, features, log_me, kDraws);
  if (logits.defined()) {
    const NoGrad guard;
    const Tensor probabilities = softmax(logits);
    measure(Score::leep, probabilities, leep, kManyDraws);
    measure(Score::nce, probabilities, nce, kManyDraws);
  }
  return scores;
}

Ranking rank_by(Score score, std::vector<Candidate> candidates) {
  const auto has = [&](const Candidate& one) { return one.scores.count(score) > 0; };
  std::sort(candidates.begin(), candidates.end(), [&](const Candidate& a, const Candidate& b) {
    if (has(a) != has(b)) return has(a);
    if (has(a) && a.scores.at(score).value != b.scores.at(score).value) {
      return a.scores.at(score).value > b.scores.at(score).value;
    }
    return a.weights < b.weights;
  });
  Ranking ranking;
  ranking.score = score;
  const int64_t scored = std::count_if(candidates.begin(), candidates.end(), has);
  GRAFT_CHECK(scored > 0, "rank: no candidate has a head of its own, which the score ",
              name_of(score), " needs; choose another --score");
  ranking.tied = 1;
  const double confidence = 1 - 0.05 / static_cast<double>(std::max<int64_t>(scored - 1, 1));
  const auto compare = [&](size_t i) {
    return difference_of(candidates[0].scores.at(score), candidates[i].scores.at(score),
                         confidence);
  };
  for (int64_t i = 1; i < scored; ++i) {
    Candidate& one = candidates[static_cast<size_t>(i)];
    one.behind = compare(static_cast<size_t>(i));
    // All better than one that cannot be told from the best belong to it.
    if (one.behind.low <= 0) ranking.tied = i + 1;
  }
  if (scored > 1) candidates[0].behind = candidates[1].behind;
  ranking.candidates = std::move(candidates);
  return ranking;
}

Ranking rank_candidates(
    const RankOptions& options,
    const std::function<bool(int64_t candidate, int64_t done, int64_t total)>& progress) {
  GRAFT_CHECK(options.candidates.size() >= 2, "rank: expected at least 2 candidates, got ",
              options.candidates.size());
  std::set<fs::path> seen;
  for (const fs::path& weights : options.candidates) {
    read_card(weights);
    GRAFT_CHECK(seen.insert(fs::weakly_canonical(weights)).second, weights.string(),
                ": is given twice");
  }
  GRAFT_CHECK(options.most >= 1, "rank: expected at least 1 image, got ", options.most);
  const ImageDataset data =
      thinned(read_images(options.data, options.split), options.most, options.seed);
  check_counts(data, options.data.string());
  const auto classes = static_cast<int64_t>(data.class_names.size());
  std::vector<Candidate> candidates;
  for (const fs::path& weights : options.candidates) {
    FeatureNetwork network = open_features(weights, options.device, options.precision);
    const ExtractedFeatures got =
        extract_features(network, data, options.reading, [&](int64_t done) {
          return progress(std::ssize(candidates), done, std::ssize(data.samples));
        });
    if (!got.features.defined()) return {};
    Candidate& one = candidates.emplace_back();
    one.weights = weights;
    one.architecture = network.card.architecture;
    one.width = got.features.dim(1);
    one.scores = score_features(got.features, got.logits, got.labels, classes, options.seed);
  }
  Ranking ranking = rank_by(options.score, std::move(candidates));
  ranking.images = std::ssize(data.samples);
  ranking.classes = classes;
  return ranking;
}

}  // namespace graft
