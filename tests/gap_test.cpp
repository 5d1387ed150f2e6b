// The answer to "did the transfer help?" over thousands of simulated experiments: how often it is
// wrong when nothing is there, and how often it sees what is there.
#include "transfer/measure/gap.h"

#include <cmath>
#include <doctest/doctest.h>
#include <map>
#include <numeric>

#include "engine/rng.h"
#include "tests/support/weight_bytes.h"

namespace graft {
namespace {

// A collection of pictures, each of its own difficulty to either arm, and experiments on it. What
// is shared by all seeds (an image that one arm happens to find easier) is what a plain paired
// t-test takes for a difference between the arms.
struct World {
  int64_t images = 200;
  int64_t seeds = 5;
  double held_out = 0.2;
  bool same_images = false;  // the data's own validation part, else a split a seed
  double error = 0.2;        // of scratch
  double gap = 0;            // true: added to the error of transfer, over all pictures there are
  double own = 0.15;         // deviation of an image's advantage to one arm
  double seed_noise = 0.03;  // deviation of a run's error
};

std::vector<JudgedPair> experiment(const World& world, uint64_t draw) {
  RandomStream random({draw, 0, 0});
  const auto n = static_cast<size_t>(world.images);
  const auto judging = static_cast<size_t>(std::lround(world.held_out * double(world.images)));
  std::vector<double> with(n), without(n);
  for (size_t i = 0; i < n; ++i) {
    without[i] = world.error + world.own * (random.uniform(0, 2) - 1);
    with[i] = world.error + world.gap + world.own * (random.uniform(0, 2) - 1);
  }
  std::vector<int64_t> order(n);
  std::iota(order.begin(), order.end(), int64_t{0});
  std::vector<JudgedPair> pairs;
  for (int64_t seed = 0; seed < world.seeds; ++seed) {
    if (!world.same_images) {
      for (size_t i = 0; i < judging; ++i) {
        std::swap(order[i], order[i + static_cast<size_t>(random.below(int64_t(n - i)))]);
      }
    }
    const double shift[2] = {world.seed_noise * random.normal(),
                             world.seed_noise * random.normal()};
    JudgedPair& pair = pairs.emplace_back();
    for (size_t i = 0; i < judging; ++i) {
      const auto image = static_cast<size_t>(order[i]);
      pair.images.push_back(order[i]);
      pair.wrong_with.push_back(random.uniform(0, 1) < with[image] + shift[0]);
      pair.wrong_without.push_back(random.uniform(0, 1) < without[image] + shift[1]);
    }
  }
  return pairs;
}

// How often each answer is given.
std::map<Answer, double> rates(const World& world, int draws, double margin = 0.02) {
  std::map<Answer, double> result;
  for (int i = 0; i < draws; ++i) {
    result[answer_of(gap_of(experiment(world, uint64_t(i))), margin)] += 1.0 / draws;
  }
  return result;
}

TEST_CASE("where there is no difference, at most one answer in twenty says there is") {
  constexpr int kDraws = 2000;
  for (const bool same_images : {false, true}) {
    for (const int64_t seeds : {3, 5}) {
      for (const int64_t images : {60, 600}) {
        for (const double own : {0.0, 0.35}) {
          const World world{
              .images = images, .seeds = seeds, .same_images = same_images, .own = own};
          std::map<Answer, double> rate = rates(world, kDraws);
          CAPTURE(same_images);
          CAPTURE(seeds);
          CAPTURE(images);
          CAPTURE(own);
          CHECK(rate[Answer::harms] + rate[Answer::helps] <= 0.05);
        }
      }
    }
  }
}

TEST_CASE("the plain paired t-test fails the same simulation") {
  // What the corrections are for: with splits that overlap, and with images that stay the same.
  for (const bool same_images : {false, true}) {
    const World world{.images = 300, .seeds = 20, .same_images = same_images, .own = 0.35};
    int alarms = 0;
    for (uint64_t i = 0; i < 2000; ++i) {
      std::vector<double> differences;
      for (const JudgedPair& pair : experiment(world, i)) {
        double sum = 0;
        for (size_t k = 0; k < pair.images.size(); ++k) {
          sum += double(pair.wrong_with[k]) - double(pair.wrong_without[k]);
        }
        differences.push_back(sum / double(pair.images.size()));
      }
      const Interval naive = mean_interval(differences);
      alarms += naive.low > 0 || naive.high < 0;
    }
    CAPTURE(same_images);
    CHECK(alarms > 2000 * 0.1);
  }
}

TEST_CASE("harm and help of a known size are seen, and never taken for their opposite") {
  for (const double gap : {-0.15, 0.15}) {
    for (const bool same_images : {false, true}) {
      World world{.images = 800, .same_images = same_images, .gap = gap};
      std::map<Answer, double> rate = rates(world, 2000);
      CAPTURE(gap);
      CAPTURE(same_images);
      CHECK(rate[gap > 0 ? Answer::harms : Answer::helps] > 0.9);
      CHECK(rate[gap > 0 ? Answer::helps : Answer::harms] == 0);
      // More seeds and more images see less.
      world = {.images = 3000, .seeds = 10, .same_images = same_images, .gap = gap / 2.5};
      rate = rates(world, 200);
      CHECK(rate[gap > 0 ? Answer::harms : Answer::helps] > 0.9);
    }
  }
}

TEST_CASE("neutral is said of small differences, and seldom of one as large as the margin") {
  for (const bool same_images : {false, true}) {
    CAPTURE(same_images);
    World world{.images = 5000, .seeds = 10, .same_images = same_images, .own = 0.02};
    world.seed_noise = 0.005;
    CHECK(rates(world, 200, 0.03)[Answer::neutral] > 0.8);
    for (const double gap : {-0.03, 0.03}) {
      world.gap = gap;
      CHECK(rates(world, 400, 0.03)[Answer::neutral] <= 0.05);
    }
  }
}

JudgedPair pair_of(std::vector<int64_t> images, std::vector<uint8_t> with,
                   std::vector<uint8_t> without) {
  return {std::move(images), std::move(with), std::move(without)};
}

TEST_CASE("intervals worked by hand") {
  // Differences of the pairs .5 and .25. Deviations of the images from the mean .375, over the
  // pairs: image 0 (.625 - .375) / 8, images 1 and 2 (.625 + .625) / 8 and (-.375 - .375) / 8,
  // image 3 (-.375 - .375) / 8.
  const std::vector<JudgedPair> pairs{pair_of({0, 1, 2, 3}, {1, 1, 0, 1}, {0, 0, 0, 1}),
                                      pair_of({3, 2, 1, 0}, {0, 1, 1, 0}, {0, 1, 0, 0})};
  const double seeds = 0.25 * 0.25 / 2 / 2;
  const double images = (0.0625 + 1.5625 + 0.5625 + 0.5625) / 64 * 4 / 3;
  const double freedom =
      (seeds + images) * (seeds + images) / (seeds * seeds + images * images / 3);
  const double t = student_t_quantile(0.975, freedom);
  const Interval gap = gap_of(pairs);
  CHECK(gap.value == doctest::Approx(0.375));
  CHECK(gap.high - gap.value == doctest::Approx(std::max(t * std::sqrt(seeds + images), 0.75)));
  CHECK(gap.high + gap.low == doctest::Approx(0.75));
  // Where the rule of three does not reach as far.
  const double t_wide = student_t_quantile(0.9999, freedom);
  CHECK(gap_of(pairs, 0.9998).high == doctest::Approx(0.375 + t_wide * std::sqrt(seeds + images)));

  // No image is judged differently: not certainty, but the rule of three.
  const std::vector<uint8_t> right(60, 0);
  std::vector<int64_t> all(60);
  std::iota(all.begin(), all.end(), int64_t{0});
  const std::vector<JudgedPair> equal(5, pair_of(all, right, right));
  CHECK(gap_of(equal).high == doctest::Approx(0.05));
  CHECK(gap_of(equal).low == doctest::Approx(-0.05));
}

TEST_CASE("answers, and how many seeds would give one") {
  CHECK(answer_of({0.1, 0.05, 0.15}, 0.02) == Answer::harms);
  CHECK(answer_of({-0.1, -0.15, -0.05}, 0.02) == Answer::helps);
  CHECK(answer_of({0.01, 0.005, 0.015}, 0.02) == Answer::neutral);  // real, but too small to matter
  CHECK(answer_of({0.01, -0.03, 0.05}, 0.02) == Answer::undecided);
  CHECK(answer_of({0.01, 0.0, 0.05}, 0.02) == Answer::undecided);
  CHECK(answer_of({0, 0, 0}, 0) == Answer::undecided);
  for (const Answer answer : {Answer::helps, Answer::harms, Answer::neutral, Answer::undecided}) {
    CHECK_FALSE(name_of(answer).empty());
  }
}

TEST_CASE("how many seeds would give an answer") {
  // Undecided with three seeds; the number that is named decides where it is tried.
  World world{.images = 6000, .seeds = 3, .gap = 0.05};
  world.seed_noise = 0.02;
  int tried = 0, decided = 0;
  for (uint64_t draw = 0; draw < 60; ++draw) {
    world.seeds = 3;
    const std::vector<JudgedPair> few = experiment(world, draw);
    const std::optional<int64_t> needed = pairs_needed(few, 0.02);
    if (answer_of(gap_of(few), 0.02) != Answer::undecided) {
      CHECK(needed == 3);
      continue;
    }
    if (!needed) continue;
    CHECK(*needed > 3);
    world.seeds = *needed;
    ++tried;
    decided += answer_of(gap_of(experiment(world, draw + 1000)), 0.02) != Answer::undecided;
  }
  CHECK(tried >= 20);
  CHECK(decided * 2 > tried);
  // Ten images that always judge cannot tell two points, however many seeds there are.
  CHECK_FALSE(pairs_needed(experiment({.images = 50, .same_images = true}, 1), 0.02));
}

TEST_CASE("pairs that are none are refused") {
  const auto refused = [](const std::vector<JudgedPair>& pairs) {
    return test::error_of([&] { gap_of(pairs); });
  };
  const JudgedPair good = pair_of({4, 7}, {1, 0}, {0, 0});
  CHECK(refused({good, good}).empty());
  CHECK(refused({good}).find("at least 2 pairs, got 1") != std::string::npos);
  CHECK(refused({good, pair_of({4, 7}, {1}, {0, 0})}).find("pair 1") != std::string::npos);
  CHECK(refused({pair_of({}, {}, {}), good}).find("pair 0") != std::string::npos);
}

}  // namespace
}  // namespace graft
