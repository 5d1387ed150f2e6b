// Which pre-trained network suits a task, without fine-tuning any: scores of their features and
// heads on the task's pictures, with intervals, and an order that says where it cannot tell.
#pragma once

#include <filesystem>
#include <functional>
#include <map>
#include <string>
#include <vector>

#include "transfer/features.h"
#include "transfer/measure/bootstrap.h"

namespace graft {

// Larger is better in all of them.
//   probe       accuracy of a linear classifier, cross-validated
//   neighbours  part of the pictures whose nearest others vote for their class
//   h_score, log_me   from the features (measure/transferability.h)
//   leep, nce   from the outputs of the source's own head; not for weights without one
enum class Score : uint8_t { probe, neighbours, h_score, log_me, leep, nce };
const std::vector<Score>& all_scores();
std::string name_of(Score score);
// Throws with the names there are.
Score score_of_name(const std::string& name);

// All scores of one network, over the same rows and draws for all networks: paired.
using Scores = std::map<Score, Bootstrap>;
// features (n, d), logits (n, source classes) or undefined. At least five rows of each class.
Scores score_features(const Tensor& features, const Tensor& logits, std::span<const int64_t> labels,
                      int64_t classes, uint64_t seed);

struct Candidate {
  std::filesystem::path weights;
  std::string architecture;
  int64_t width = 0;  // of the features
  Scores scores;
  // The best candidate's score minus this one's. Of the best itself: minus the second's.
  Interval behind;
};
struct Ranking {
  Score score = Score::probe;
  std::vector<Candidate> candidates;  // the best first; those without the score last, by name
  int64_t images = 0, classes = 0;
  // How many of the first cannot be told from the best: 1 where it stands alone. The intervals of
  // `behind` are wide enough to hold together (Bonferroni).
  int64_t tied = 0;
};
// Sorts by `score` and compares with the best. The order does not depend on the order given.
Ranking rank_by(Score score, std::vector<Candidate> candidates);

struct RankOptions {
  std::filesystem::path data;
  std::string split;  // of the data, as in read_images()
  std::vector<std::filesystem::path> candidates;
  Score score = Score::probe;
  int64_t most = 1000;  // pictures; of more, a stratified draw
  uint64_t seed = 0;
  ExtractOptions reading;
  Device device;
  Dtype precision = Dtype::f32;
};
// Reads all cards and the data before it computes. `progress` is told the candidate (from 0) and
// its pictures done, and ends the work by false: the ranking then has no candidates. Throws on
// fewer than two candidates, one given twice, files that are not converted weights, and classes of
// fewer than five pictures.
Ranking rank_candidates(
    const RankOptions& options,
    const std::function<bool(int64_t candidate, int64_t done, int64_t total)>& progress);

}  // namespace graft
