// The learning-rate range test: its suggestions on curves with a known answer, and on a run.
#include "transfer/lr_finder.h"

#include <cmath>
#include <doctest/doctest.h>

#include "kernels/error.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"

namespace graft {
namespace {

// Losses over a logarithmic range of rates from 1e-7 to 10.
LrFinderResult curve(double (*loss)(double exponent)) {
  LrFinderResult result;
  for (int i = 0; i <= 80; ++i) {
    const double exponent = -7 + i / 10.0;
    result.rates.push_back(std::pow(10, exponent));
    result.smoothed.push_back(loss(exponent));
  }
  suggest(result);
  return result;
}

TEST_CASE("suggestions") {
  // Flat to 1e-5, a straight fall to 1e-2, then up.
  const LrFinderResult valley = curve([](double e) {
    if (e < -5) return 2.0;
    return e < -2 ? 2 - (e + 5) / 2 : 0.5 + (e + 2);
  });
  REQUIRE(valley.valley.has_value());
  CHECK(std::log10(*valley.valley) == doctest::Approx(-3.5).epsilon(0.02));
  CHECK(*valley.tenth_of_minimum == doctest::Approx(1e-3).epsilon(0.01));
  // The steepest place of 1 / (1 + exp(4 (e + 3))) is its middle.
  const LrFinderResult steep = curve([](double e) { return 1 / (1 + std::exp(4 * (e + 3))); });
  CHECK(std::log10(*steep.steepest) == doctest::Approx(-3).epsilon(0.05));
  const LrFinderResult rising = curve([](double e) { return e; });
  CHECK_FALSE(rising.valley.has_value());
  CHECK_FALSE(rising.steepest.has_value());
  CHECK_FALSE(rising.tenth_of_minimum.has_value());
}

TEST_CASE("on a run it finds a rate that learns, repeats itself and writes nothing") {
  const testing::TemporaryFolder folder;
  testing::write_stripes(folder / "data", 24, 16, 7);
  FinetuneOptions options = FinetuneOptions::from_scratch();
  options.data = folder / "data";
  options.architecture = "small_cnn";
  options.image_size = 16;
  options.batch = 8;
  options.workers = 0;
  options.device = test::test_device();
  options.optimizer = OptimizerKind::sgd;
  Observer quiet;
  const LrFinderOptions range{.lowest = 1e-5, .highest = 1000, .steps = 60};
  const LrFinderResult found = find_learning_rate(options, range, quiet);
  CHECK(found.diverged);
  CHECK(found.rates.size() < 60);
  CHECK(found.rates.front() == doctest::Approx(1e-5));
  CHECK(found.rates[1] / found.rates[0] == doctest::Approx(std::pow(1e8, 1.0 / 59)));
  // The smoothing is the bias-corrected moving average.
  CHECK(found.smoothed[0] == doctest::Approx(found.losses[0]));
  CHECK(found.smoothed[1] ==
        doctest::Approx((0.98 * found.losses[0] + found.losses[1]) / 1.98).epsilon(1e-6));
  REQUIRE(found.valley.has_value());
  CHECK(find_learning_rate(options, range, quiet).losses == found.losses);

  options.epochs = 6;
  options.learning_rate = static_cast<float>(*found.valley);
  const FinetuneResult trained = finetune(options);
  CHECK(trained.epochs.back().train_loss < 0.8 * trained.epochs.front().train_loss);

  CHECK_THROWS_WITH_AS(find_learning_rate(options, {.lowest = 1, .highest = 0.1}, quiet),
                       doctest::Contains("0 < lowest < highest, got 1 to 0.1"), Error);
  CHECK_THROWS_WITH_AS(find_learning_rate(options, {.steps = 3}, quiet),
                       doctest::Contains("at least 10 steps"), Error);
}

}  // namespace
}  // namespace graft
