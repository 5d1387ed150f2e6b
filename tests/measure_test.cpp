// transfer/measure: every number against another way to it, or a worked example.
#include <cmath>
#include <doctest/doctest.h>
#include <functional>
#include <numbers>

#include "engine/rng.h"
#include "kernels/error.h"
#include "transfer/measure/distance.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/nearest.h"
#include "transfer/measure/statistics.h"
#include "transfer/measure/transferability.h"
#include "transfer/measure/validators.h"

using namespace graft;

namespace {

using Table = std::vector<std::vector<double>>;

// Gaussian rows around a centre for each label: (label * apart, 0, 0 ...).
Tensor clusters(const std::vector<int64_t>& labels, int64_t width, double apart, uint64_t seed) {
  RandomStream random({seed, 0, 0});
  std::vector<float> values;
  for (const int64_t label : labels) {
    for (int64_t j = 0; j < width; ++j) {
      const double centre = j == 0 ? apart * static_cast<double>(label) : 0;
      values.push_back(static_cast<float>(centre + random.normal()));
    }
  }
  return Tensor::of(values, {static_cast<int64_t>(labels.size()), width});
}
std::vector<int64_t> cycle(int64_t n, int64_t classes) {
  std::vector<int64_t> labels;
  for (int64_t i = 0; i < n; ++i) labels.push_back(i % classes);
  return labels;
}
Table table_of(const Tensor& x) {
  Table rows(static_cast<size_t>(x.dim(0)));
  for (int64_t i = 0; i < x.numel(); ++i) {
    rows[static_cast<size_t>(i / x.dim(1))].push_back(static_cast<double>(x.data<float>()[i]));
  }
  return rows;
}

// Solves a x = b and gives log |a| by elimination with pivoting.
std::vector<double> solve(Table a, std::vector<double> b, double* log_determinant = nullptr) {
  const size_t n = b.size();
  double log_det = 0;
  for (size_t i = 0; i < n; ++i) {
    size_t pivot = i;
    for (size_t r = i; r < n; ++r) pivot = std::fabs(a[r][i]) > std::fabs(a[pivot][i]) ? r : pivot;
    std::swap(a[i], a[pivot]);
    std::swap(b[i], b[pivot]);
    log_det += std::log(std::fabs(a[i][i]));
    for (size_t r = i + 1; r < n; ++r) {
      const double factor = a[r][i] / a[i][i];
      for (size_t c = i; c < n; ++c) a[r][c] -= factor * a[i][c];
      b[r] -= factor * b[i];
    }
  }
  for (size_t i = n; i-- > 0;) {
    for (size_t c = i + 1; c < n; ++c) b[i] -= a[i][c] * b[c];
    b[i] /= a[i][i];
  }
  if (log_determinant != nullptr) *log_determinant = log_det;
  return b;
}

Tensor softmax_rows(int64_t n, int64_t classes, uint64_t seed, double sharpness = 1) {
  RandomStream random({seed, 0, 0});
  std::vector<float> values;
  for (int64_t i = 0; i < n; ++i) {
    std::vector<double> row;
    double sum = 0;
    for (int64_t c = 0; c < classes; ++c)
      sum += row.emplace_back(std::exp(sharpness * random.normal()));
    for (const double v : row) values.push_back(static_cast<float>(v / sum));
  }
  return Tensor::of(values, {n, classes});
}

void throws_with(const std::string& message, const std::function<void()>& call) {
  CHECK_THROWS_WITH_AS(call(), doctest::Contains(message.c_str()), Error);
}

}  // namespace

TEST_CASE("quantiles are those of the printed tables") {
  CHECK(normal_quantile(0.975) == doctest::Approx(1.959963985).epsilon(1e-9));
  CHECK(normal_quantile(0.001) == doctest::Approx(-3.090232306).epsilon(1e-9));
  CHECK(student_t_quantile(0.975, 1) == doctest::Approx(12.7062047).epsilon(1e-8));
  CHECK(student_t_quantile(0.975, 4) == doctest::Approx(2.776445105).epsilon(1e-9));
  CHECK(student_t_quantile(0.95, 10) == doctest::Approx(1.812461123).epsilon(1e-9));
  CHECK(student_t_quantile(0.025, 30) == doctest::Approx(-2.042272456).epsilon(1e-9));
  CHECK(student_t_quantile(0.975, 1e6) == doctest::Approx(normal_quantile(0.975)).epsilon(1e-5));
  CHECK(student_t_probability(0, 3) == doctest::Approx(0.5));
  throws_with("between 0 and 1", [] { normal_quantile(1); });
}

TEST_CASE("intervals") {
  // R: t.test(c(1, 2, 4, 3, 5.5))$conf.int
  const std::vector<double> values{1, 2, 4, 3, 5.5};
  const Interval mean = mean_interval(values);
  CHECK(mean.value == doctest::Approx(3.1));
  CHECK(mean.low == doctest::Approx(3.1 - 2.776445105 * 1.746425 / std::sqrt(5.0)).epsilon(1e-5));
  CHECK(mean.high - mean.value == doctest::Approx(mean.value - mean.low));
  CHECK(std::isinf(mean_interval(std::vector<double>{2.0}).high));
  // Agresti and Coull's example: 0 of 10 and 8 of 10.
  CHECK(proportion_interval(0, 10).high == doctest::Approx(0.2775).epsilon(1e-3));
  CHECK(proportion_interval(0, 10).low == 0);
  CHECK(proportion_interval(8, 10).low == doctest::Approx(0.4902).epsilon(1e-3));
  CHECK(proportion_interval(8, 10).high == doctest::Approx(0.9433).epsilon(1e-3));
  throws_with("at least 1 trial", [] { proportion_interval(0, 0); });

  // The bootstrap's interval of a mean is about the usual one, and it covers the truth.
  RandomStream random({7, 0, 0});
  int64_t covered = 0;
  for (uint64_t trial = 0; trial < 100; ++trial) {
    std::vector<double> drawn(60);
    for (double& v : drawn) v = random.normal();
    const Interval i = bootstrap_interval(60,
                                          [&](const std::vector<int64_t>& rows) {
                                            double sum = 0;
                                            for (const int64_t row : rows)
                                              sum += drawn[static_cast<size_t>(row)];
                                            return sum / 60;
                                          },
                                          {trial, 0, 0});
    CHECK(i.value == doctest::Approx(mean_of(drawn)));
    covered += i.low <= 0 && i.high >= 0;
  }
  CHECK(covered >= 86);
  CHECK(covered <= 100);
}

TEST_CASE("logistic regression finds the minimum") {
  const std::vector<int64_t> labels = cycle(90, 3);
  const Tensor x = clusters(labels, 4, 1.0, 1);
  const double l2 = 0.05;
  const auto model = LogisticRegression::fit(x, labels, 3, {.l2 = l2, .tolerance = 1e-9});
  CHECK(model.converged());
  // Newton's method in the same standardised features, from zero: another way to the same place.
  const Table rows = table_of(x);
  const size_t n = rows.size(), d = 5, size = 3 * d;
  Table z(n, std::vector<double>(d, 1.0));
  for (size_t j = 0; j < 4; ++j) {
    double mean = 0, square = 0;
    for (const auto& row : rows) mean += row[j] / static_cast<double>(n);
    for (const auto& row : rows) square += (row[j] - mean) * (row[j] - mean);
    const double deviation = std::sqrt(square / static_cast<double>(n));
    for (size_t i = 0; i < n; ++i) z[i][j] = (rows[i][j] - mean) / deviation;
  }
  std::vector<double> w(size, 0.0);
  double loss = 0;
  for (int step = 0; step < 30; ++step) {
    std::vector<double> g(size, 0.0);
    Table h(size, std::vector<double>(size, 0.0));
    loss = 0;
    for (size_t i = 0; i < n; ++i) {
      double p[3], sum = 0;
      for (size_t c = 0; c < 3; ++c) {
        double score = 0;
        for (size_t j = 0; j < d; ++j) score += w[c * d + j] * z[i][j];
        sum += p[c] = std::exp(score);
      }
      for (double& v : p) v /= sum;
      const auto label = static_cast<size_t>(labels[i]);
      loss -= std::log(p[label]) / static_cast<double>(n);
      for (size_t a = 0; a < size; ++a) {
        const size_t c = a / d;
        g[a] += (p[c] - (c == label)) * z[i][a % d] / static_cast<double>(n);
        for (size_t b = 0; b < size; ++b) {
          const size_t e = b / d;
          h[a][b] += p[c] * ((c == e) - p[e]) * z[i][a % d] * z[i][b % d] / static_cast<double>(n);
        }
      }
    }
    for (size_t a = 0; a < size; ++a) {
      h[a][a] += 1e-9;  // the sum of the biases is free
      if (a % d == d - 1) continue;
      g[a] += l2 * w[a];
      h[a][a] += l2;
      loss += 0.5 * l2 * w[a] * w[a];
    }
    const std::vector<double> change = solve(h, g);
    for (size_t a = 0; a < size; ++a) w[a] -= change[a];
  }
  CHECK(model.loss() == doctest::Approx(loss).epsilon(1e-8));
  const Tensor p = model.probabilities(x);
  for (size_t i = 0; i < n; i += 7) {
    double sum = 0, own = 0;
    for (size_t c = 0; c < 3; ++c) {
      double score = 0;
      for (size_t j = 0; j < d; ++j) score += w[c * d + j] * z[i][j];
      sum += std::exp(score);
      if (c == 1) own = std::exp(score);
    }
    CHECK(static_cast<double>(p.data<float>()[i * 3 + 1]) ==
          doctest::Approx(own / sum).epsilon(1e-4));
  }
  // As a layer for features that are not standardised.
  std::vector<float> weight, bias;
  model.linear_layer(weight, bias);
  const std::vector<int64_t> said = model.predict(x);
  for (size_t i = 0; i < n; ++i) {
    int64_t best = 0;
    double largest = -1e30;
    for (size_t c = 0; c < 3; ++c) {
      double score = static_cast<double>(bias[c]);
      for (size_t j = 0; j < 4; ++j) score += static_cast<double>(weight[c * 4 + j]) * rows[i][j];
      if (score > largest) best = static_cast<int64_t>(c), largest = score;
    }
    CHECK(best == said[i]);
  }
  throws_with("at least 2 classes", [&] { LogisticRegression::fit(x, labels, 1, {}); });
  throws_with("outside 0..1", [&] { LogisticRegression::fit(x, labels, 2, {}); });
}

TEST_CASE("logistic regression: constant columns, separable classes") {
  const std::vector<int64_t> labels = cycle(20, 2);
  std::vector<float> values;
  for (const int64_t label : labels) {
    values.insert(values.end(), {5.0f, label == 0 ? -1.0f : 1.0f});
  }
  const Tensor x = Tensor::of(values, {20, 2});
  const auto model = LogisticRegression::fit(x, labels, 2, {.l2 = 1e-5});
  CHECK(model.converged());
  CHECK(model.predict(x) == labels);
}

TEST_CASE("cross-validation picks a penalty that generalises") {
  // Four rows a feature: without a penalty the fit is far too sure of itself.
  const std::vector<int64_t> labels = cycle(120, 2);
  const Tensor x = clusters(labels, 30, 1.5, 3);
  const CrossValidation cv = choose_l2(x, labels, 2, default_l2_candidates(), 5, {1, 0, 0});
  const auto found = std::find(cv.l2.begin(), cv.l2.end(), cv.best_l2);
  const auto at = static_cast<size_t>(found - cv.l2.begin());
  CHECK(cv.loss[at] < cv.loss.back());
  CHECK(cv.best_l2 > 1e-4);
  CHECK(cv.accuracy[at] > 0.65);
  const std::vector<int64_t> folds = stratified_folds(labels, 2, 5, {1, 0, 0});
  for (int64_t fold = 0; fold < 5; ++fold) {
    int64_t count[2] = {};
    for (size_t i = 0; i < folds.size(); ++i) count[labels[i]] += folds[i] == fold;
    CHECK(count[0] == 12);
    CHECK(count[1] == 12);
  }
}

TEST_CASE("nearest neighbours") {
  const Tensor references = Tensor::of<float>({1, 0, 2, 0.1f, 0, 1, 0.1f, 3}, {4, 2});
  const std::vector<int64_t> labels{0, 0, 1, 1};
  CHECK(nearest_labels(Tensor::of<float>({5, 1, 1, 5}, {2, 2}), references, labels, 2, 3) ==
        std::vector<int64_t>{0, 1});
  // One vote each: the nearer wins.
  CHECK(nearest_labels(Tensor::of<float>({1, 0.9f}, {1, 2}), references, {{0, 0, 1, 1}}, 2, 4) ==
        std::vector<int64_t>{0});
  CHECK(leave_one_out_accuracy(references, labels, 2, 1) == 1);
  const std::vector<int64_t> many = cycle(300, 3);
  const double near = leave_one_out_accuracy(clusters(many, 3, 6, 5), many, 3, 5);
  const double far = leave_one_out_accuracy(clusters(many, 3, 0, 5), many, 3, 5);
  CHECK(near > far + 0.2);
  CHECK(far == doctest::Approx(1.0 / 3).epsilon(0.3));
}

TEST_CASE("domain distances: nothing between equal domains, much between shifted ones") {
  const std::vector<int64_t> zeros(200, 0), ones(150, 1);
  const Tensor a = clusters(zeros, 5, 0, 1), same = clusters(zeros, 5, 0, 2);
  const Tensor moved = clusters(ones, 5, 4, 3);
  CHECK(proxy_a_distance(a, same, {1, 0, 0}) < 0.5);
  CHECK(proxy_a_distance(a, moved, {1, 0, 0}) > 1.7);
  CHECK(std::fabs(mmd_squared(a, same)) < 0.02);
  CHECK(mmd_squared(a, moved) > 0.5);
  CHECK(mmd_p_value(a, same, {1, 0, 0}, 100) > 0.05);
  CHECK(mmd_p_value(a, moved, {1, 0, 0}, 100) < 0.02);
  CHECK(coral_distance(a, same) < 0.01);
  CHECK(coral_distance(a, a) == 0);
  throws_with("2 features", [&] { mmd_squared(a, clusters(zeros, 2, 0, 1)); });
  throws_with("at least 4 rows", [&] { proxy_a_distance(a, clusters({0, 0}, 5, 0, 1), {}); });
}

TEST_CASE("MMD and CORAL are their definitions") {
  const Tensor a = clusters(cycle(7, 2), 3, 2, 1), b = clusters(cycle(9, 2), 3, 1, 2);
  Table all = table_of(a);
  for (const auto& row : table_of(b)) all.push_back(row);
  const auto distance = [&](size_t i, size_t j) {
    double sum = 0;
    for (size_t k = 0; k < 3; ++k) sum += (all[i][k] - all[j][k]) * (all[i][k] - all[j][k]);
    return sum;
  };
  std::vector<double> pairs;
  for (size_t i = 0; i < 16; ++i) {
    for (size_t j = i + 1; j < 16; ++j) pairs.push_back(distance(i, j));
  }
  std::sort(pairs.begin(), pairs.end());
  const double median = pairs[pairs.size() / 2];
  double wanted = 0;
  for (const double factor : {0.25, 0.5, 1.0, 2.0, 4.0}) {
    const auto mean_kernel = [&](size_t from, size_t to, size_t from2, size_t to2) {
      double sum = 0, count = 0;
      for (size_t i = from; i < to; ++i) {
        for (size_t j = from2; j < to2; ++j) {
          if (i == j) continue;
          sum += std::exp(-distance(i, j) / (2 * factor * median));
          count += 1;
        }
      }
      return sum / count;
    };
    wanted += mean_kernel(0, 7, 0, 7) + mean_kernel(7, 16, 7, 16) - 2 * mean_kernel(0, 7, 7, 16);
  }
  CHECK(mmd_squared(a, b) == doctest::Approx(wanted).epsilon(1e-9));

  const auto covariance = [&](size_t from, size_t to, size_t j, size_t k) {
    const auto n = static_cast<double>(to - from);
    double mean_j = 0, mean_k = 0, sum = 0;
    for (size_t i = from; i < to; ++i) mean_j += all[i][j] / n, mean_k += all[i][k] / n;
    for (size_t i = from; i < to; ++i) sum += (all[i][j] - mean_j) * (all[i][k] - mean_k);
    return sum / (n - 1);
  };
  double norm = 0;
  for (size_t j = 0; j < 3; ++j) {
    for (size_t k = 0; k < 3; ++k) {
      norm += std::pow(covariance(0, 7, j, k) - covariance(7, 16, j, k), 2);
    }
  }
  CHECK(coral_distance(a, b) == doctest::Approx(norm / 36).epsilon(1e-9));
}

TEST_CASE("LogME is the largest evidence of the linear model") {
  for (const int64_t rows : {12, 4}) {  // more rows than features, and fewer
    const std::vector<int64_t> labels = cycle(rows, 2);
    const int64_t width = 6;
    const Tensor x = clusters(labels, width, 2, 4);
    const Table f = table_of(x);
    const auto n = static_cast<double>(rows);
    // log N(y; 0, I / beta + F F^T / alpha), maximised over a fine grid: no algebra in common.
    double total = 0;
    for (const int64_t c : {0, 1}) {
      std::vector<double> y;
      for (const int64_t label : labels) y.push_back(label == c ? 1 : 0);
      double best = -1e30;
      for (double log_alpha = -4; log_alpha < 9; log_alpha += 0.05) {
        for (double log_beta = -2; log_beta < 9; log_beta += 0.05) {
          if (rows == 4 && log_beta > 6) break;  // the noise goes to 0 there, without bound
          Table k(y.size(), std::vector<double>(y.size(), 0.0));
          for (size_t i = 0; i < y.size(); ++i) {
            for (size_t j = 0; j < y.size(); ++j) {
              for (size_t m = 0; m < static_cast<size_t>(width); ++m) k[i][j] += f[i][m] * f[j][m];
              k[i][j] *= std::exp(-log_alpha);
            }
            k[i][i] += std::exp(-log_beta);
          }
          double log_determinant = 0;
          const std::vector<double> solved = solve(k, y, &log_determinant);
          double product = 0;
          for (size_t i = 0; i < y.size(); ++i) product += y[i] * solved[i];
          best = std::max(best,
                          -0.5 * (product + log_determinant + n * std::log(2 * std::numbers::pi)));
        }
      }
      total += best / n;
    }
    CAPTURE(rows);
    if (rows == 12) {
      CHECK(log_me(x, labels, 2) == doctest::Approx(total / 2).epsilon(1e-3));
    } else {
      CHECK(std::isfinite(log_me(x, labels, 2)));
    }
  }
}

TEST_CASE("H-score") {
  // Many rows: shrinking vanishes, and in one dimension the score is between / total variance.
  const std::vector<int64_t> labels = cycle(4000, 2);
  const Tensor x = clusters(labels, 1, 2, 9);
  const Table rows = table_of(x);
  double sum[2] = {}, square = 0, mean = 0;
  for (size_t i = 0; i < rows.size(); ++i)
    sum[labels[i]] += rows[i][0] / 2000, mean += rows[i][0] / 4000;
  for (const auto& row : rows) square += (row[0] - mean) * (row[0] - mean) / 4000;
  const double between = 0.5 * (std::pow(sum[0] - mean, 2) + std::pow(sum[1] - mean, 2));
  CHECK(h_score(x, labels, 2) == doctest::Approx(between / square).epsilon(2e-3));
  // At most classes - 1; near it for classes that are points; near 0 for labels at random.
  CHECK(h_score(clusters(labels, 1, 1000, 9), labels, 2) == doctest::Approx(1).epsilon(2e-3));
  // Fewer rows than features: without shrinking it would be classes - 1 whatever the labels.
  const std::vector<int64_t> few = cycle(20, 2);
  CHECK(h_score(clusters(few, 50, 0, 2), few, 2) < 0.35);
}

TEST_CASE("LEEP and NCE: worked by hand") {
  // Two source classes, three images: p = (.8 .2), (.6 .4), (.1 .9); labels 0, 0, 1.
  const Tensor p = Tensor::of<float>({0.8f, 0.2f, 0.6f, 0.4f, 0.1f, 0.9f}, {3, 2});
  const std::vector<int64_t> labels{0, 0, 1};
  // P(y=0, z) = (1.4, .6) / 3, P(y=1, z) = (.1, .9) / 3; P(0 | z) = 1.4/1.5, .6/1.5.
  const double a = 1.4 / 1.5, b = 0.6 / 1.5;
  const double wanted = (std::log(0.8 * a + 0.2 * b) + std::log(0.6 * a + 0.4 * b) +
                         std::log(0.1 * (1 - a) + 0.9 * (1 - b))) /
                        3;
  CHECK(leep(p, labels, 2) == doctest::Approx(wanted).epsilon(1e-6));
  CHECK(nce(p, labels, 2) == doctest::Approx(0));  // each source class holds one label
  // z = 0, 0, 0, 1 with labels 0, 0, 1, 1: -H = 3/4 (2/3 log 2/3 + 1/3 log 1/3)
  const Tensor q = Tensor::of<float>({1, 0, 1, 0, 1, 0, 0, 1}, {4, 2});
  CHECK(nce(q, {{0, 0, 1, 1}}, 2) ==
        doctest::Approx(0.75 * (2.0 / 3 * std::log(2.0 / 3) + std::log(1.0 / 3) / 3)));
  throws_with("sums to", [] { leep(Tensor::of<float>({1, 1}, {1, 2}), {{0}}, 2); });
}

TEST_CASE("validators") {
  const Tensor sharp = Tensor::of<float>({1, 0, 0, 1, 1, 0, 0, 1}, {4, 2});
  const Tensor flat = Tensor::of<float>({0.5f, 0.5f, 0.5f, 0.5f}, {2, 2});
  CHECK(entropy_score(sharp) == 0);
  CHECK(entropy_score(flat) == doctest::Approx(-std::log(2.0)));
  // Singular values of sharp: sqrt 2 twice; of all in one class: 2 once.
  CHECK(nuclear_norm_score(sharp) == doctest::Approx(2 * std::sqrt(2.0) / 4));
  CHECK(nuclear_norm_score(Tensor::of<float>({1, 0, 1, 0, 1, 0, 1, 0}, {4, 2})) ==
        doctest::Approx(0.5));
  CHECK(nuclear_norm_score(softmax_rows(3, 7, 1)) ==
        doctest::Approx([] {  // through the trace of the square root of the other Gram matrix
          const Table p = table_of(softmax_rows(3, 7, 1));
          // Newton's iteration for the square root of P P^T (3 x 3), by Denman and Beavers.
          Table y(3, std::vector<double>(3, 0.0)), z(3, std::vector<double>(3, 0.0));
          for (size_t i = 0; i < 3; ++i) {
            z[i][i] = 1;
            for (size_t j = 0; j < 3; ++j) {
              for (size_t k = 0; k < 7; ++k) y[i][j] += p[i][k] * p[j][k];
            }
          }
          const auto inverse = [](const Table& m) {
            Table result(3, std::vector<double>(3));
            for (size_t j = 0; j < 3; ++j) {
              std::vector<double> unit(3, 0.0);
              unit[j] = 1;
              const std::vector<double> column = solve(m, unit);
              for (size_t i = 0; i < 3; ++i) result[i][j] = column[i];
            }
            return result;
          };
          for (int step = 0; step < 60; ++step) {
            const Table yi = inverse(y), zi = inverse(z);
            for (size_t i = 0; i < 3; ++i) {
              for (size_t j = 0; j < 3; ++j) {
                const double next = 0.5 * (y[i][j] + zi[i][j]);
                z[i][j] = 0.5 * (z[i][j] + yi[i][j]);
                y[i][j] = next;
              }
            }
          }
          return (y[0][0] + y[1][1] + y[2][2]) / 3;
        }())
            .epsilon(1e-6));
  // Four equal rows have three equal neighbours each; two pairs have one.
  CHECK(soft_neighbourhood_density(Tensor::of<float>({1, 0, 1, 0, 1, 0, 1, 0}, {4, 2})) ==
        doctest::Approx(std::log(3.0)));
  CHECK(soft_neighbourhood_density(sharp) == doctest::Approx(0).epsilon(1e-6));

  const std::vector<int64_t> zeros(300, 0);
  const Tensor source = clusters(zeros, 2, 0, 1), target = clusters(zeros, 2, 0, 2);
  const std::vector<double> losses(300, 0.7);
  // Equal losses: whatever the weights, the control variate gives them back.
  CHECK(deep_embedded_validation(source, target, losses) == doctest::Approx(-0.7).epsilon(1e-6));
  // Losses that grow towards the target: the weighted risk is above the plain one.
  const Tensor moved = clusters(std::vector<int64_t>(300, 1), 2, 1.5, 3);
  std::vector<double> growing;
  for (int64_t i = 0; i < 300; ++i)
    growing.push_back(static_cast<double>(source.data<float>()[2 * i]));
  CHECK(-deep_embedded_validation(source, moved, growing) > mean_of(growing) + 0.7);

  const std::vector<int64_t> labels = cycle(40, 2);
  const Tensor features = clusters(labels, 2, 8, 4);
  CHECK(neighbour_agreement(features, labels, features, labels, 2) > 0.5);
  CHECK(discrepancy_score(source, target) > discrepancy_score(source, moved));
}
