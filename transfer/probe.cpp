#include "transfer/probe.h"

#include <algorithm>
#include <cmath>

#include "engine/ops.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "transfer/measure/nearest.h"

namespace graft {
namespace {

FeatureTable rows_of(const FeatureTable& table, const std::vector<int64_t>& rows) {
  const int64_t width = table.features.dim(1);
  FeatureTable part{Tensor({static_cast<int64_t>(rows.size()), width}), {}, table.class_names};
  float* to = part.features.mutable_data<float>();
  for (const int64_t row : rows) {
    to = std::copy_n(table.features.data<float>() + row * width, width, to);
    part.labels.push_back(table.labels[static_cast<size_t>(row)]);
  }
  return part;
}

// The test's labels as the training table numbers its classes.
std::vector<int64_t> matched_labels(const FeatureTable& train, const FeatureTable& test) {
  std::vector<int64_t> number;
  for (const std::string& name : test.class_names) {
    const auto found = std::find(train.class_names.begin(), train.class_names.end(), name);
    number.push_back(found == train.class_names.end() ? -1 : found - train.class_names.begin());
  }
  std::vector<int64_t> labels;
  for (const int64_t label : test.labels) {
    const auto c = static_cast<size_t>(label);
    GRAFT_CHECK(number[c] >= 0, "probe: the judging images have a class \"", test.class_names[c],
                "\" that the training images have not");
    labels.push_back(number[c]);
  }
  return labels;
}

double accuracy_of(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth,
                   const std::vector<int64_t>& rows) {
  int64_t right = 0;
  for (const int64_t i : rows) {
    right += predicted[static_cast<size_t>(i)] == truth[static_cast<size_t>(i)];
  }
  return static_cast<double>(right) / static_cast<double>(rows.size());
}

// The mean of the classes' recalls, over the classes that these rows have.
double balanced_of(const std::vector<int64_t>& predicted, const std::vector<int64_t>& truth,
                   const std::vector<int64_t>& rows, size_t classes) {
  std::vector<int64_t> right(classes), all(classes);
  for (const int64_t i : rows) {
    const auto at = static_cast<size_t>(i), c = static_cast<size_t>(truth[at]);
    ++all[c];
    right[c] += predicted[at] == truth[at];
  }
  double sum = 0;
  int64_t present = 0;
  for (size_t c = 0; c < classes; ++c) {
    if (all[c] == 0) continue;
    sum += static_cast<double>(right[c]) / static_cast<double>(all[c]);
    ++present;
  }
  return sum / static_cast<double>(present);
}

ProbeScore score_of(std::vector<int64_t> predicted, const std::vector<int64_t>& truth,
                    size_t classes, RngKey key) {
  ProbeScore score;
  int64_t right = 0;
  for (size_t i = 0; i < truth.size(); ++i) right += predicted[i] == truth[i];
  const auto n = static_cast<int64_t>(truth.size());
  score.accuracy = proportion_interval(right, n);
  score.balanced_accuracy = bootstrap_interval(
      n,
      [&](const std::vector<int64_t>& rows) {
        return balanced_of(predicted, truth, rows, classes);
      },
      key, 1000);
  score.predicted = std::move(predicted);
  return score;
}

}  // namespace

SplitTable split_table(const FeatureTable& table, double part, uint64_t seed) {
  GRAFT_CHECK(part > 0 && part < 1, "probe: the part to judge on must be between 0 and 1, got ",
              part);
  std::vector<int64_t> train, test;
  for (size_t c = 0; c < table.class_names.size(); ++c) {
    std::vector<int64_t> rows;
    for (size_t i = 0; i < table.labels.size(); ++i) {
      if (table.labels[i] == static_cast<int64_t>(c)) rows.push_back(static_cast<int64_t>(i));
    }
    const auto n = static_cast<int64_t>(rows.size());
    const std::vector<int64_t> order = permutation(n, {seed, c, 0});
    const int64_t wanted = std::llround(part * static_cast<double>(n));
    const int64_t kept = n < 2 ? 0 : std::clamp<int64_t>(wanted, 1, n - 1);
    for (int64_t i = 0; i < n; ++i) {
      (i < kept ? test : train).push_back(rows[static_cast<size_t>(order[static_cast<size_t>(i)])]);
    }
  }
  GRAFT_CHECK(!test.empty(), "probe: every class has a single image; there is none to judge on");
  std::sort(train.begin(), train.end());
  std::sort(test.begin(), test.end());
  return {rows_of(table, train), rows_of(table, test)};
}

ProbeResult probe(const FeatureTable& train, const FeatureTable& test,
                  const ProbeOptions& options) {
  GRAFT_CHECK(options.folds >= 2, "probe: expected at least 2 folds, got ", options.folds);
  GRAFT_CHECK(options.neighbours >= 1, "probe: expected at least 1 neighbour, got ",
              options.neighbours);
  GRAFT_CHECK(train.features.dim(1) == test.features.dim(1), "probe: the training features have ",
              train.features.dim(1), " values an image, the judging ones ", test.features.dim(1),
              "; extract both with the same weights and layer");
  const auto classes = static_cast<int64_t>(train.class_names.size());
  const std::vector<int64_t> truth = matched_labels(train, test);
  std::vector<int64_t> counts(static_cast<size_t>(classes));
  for (const int64_t label : train.labels) ++counts[static_cast<size_t>(label)];
  GRAFT_CHECK(std::count_if(counts.begin(), counts.end(), [](int64_t n) { return n > 0; }) > 1,
              "probe: the training images have a single class; give two at least");

  ProbeResult result;
  result.train = train.features.dim(0);
  result.test = test.features.dim(0);
  result.width = train.features.dim(1);
  result.class_names = train.class_names;
  const auto largest = std::max_element(counts.begin(), counts.end()) - counts.begin();
  result.largest_class = static_cast<double>(std::count(truth.begin(), truth.end(), largest)) /
                         static_cast<double>(truth.size());
  result.validation = choose_l2(train.features, train.labels, classes, options.l2, options.folds,
                                {options.seed, 1, 0});
  result.l2 = result.validation.best_l2;
  const auto names = static_cast<size_t>(classes);
  const LogisticRegression fitted =
      LogisticRegression::fit(train.features, train.labels, classes, {.l2 = result.l2});
  result.logistic = score_of(fitted.predict(test.features), truth, names, {options.seed, 2, 0});
  result.nearest = score_of(
      nearest_labels(test.features, train.features, train.labels, classes, options.neighbours),
      truth, names, {options.seed, 3, 0});
  result.difference = bootstrap_interval(
      result.test,
      [&](const std::vector<int64_t>& rows) {
        return accuracy_of(result.logistic.predicted, truth, rows) -
               accuracy_of(result.nearest.predicted, truth, rows);
      },
      {options.seed, 4, 0}, 1000);
  return result;
}

}  // namespace graft
