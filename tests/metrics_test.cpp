#include "transfer/metrics.h"

#include <doctest/doctest.h>

#include "kernels/error.h"

namespace graft {
namespace {

ConfusionMatrix matrix(const std::vector<std::vector<int64_t>>& rows) {
  ConfusionMatrix result(static_cast<int64_t>(rows.size()));
  for (size_t actual = 0; actual < rows.size(); ++actual) {
    for (size_t predicted = 0; predicted < rows.size(); ++predicted) {
      result.add(static_cast<int64_t>(actual), static_cast<int64_t>(predicted),
                 rows[actual][predicted]);
    }
  }
  return result;
}

// Expected values worked out by hand as fractions.
TEST_CASE("two classes") {
  const Metrics m = metrics_of(matrix({{50, 10}, {5, 35}}));
  CHECK(m.samples == 100);
  CHECK(m.accuracy == doctest::Approx(0.85));
  CHECK(m.balanced_accuracy == doctest::Approx((50.0 / 60 + 35.0 / 40) / 2));
  CHECK(m.per_class[0].precision == doctest::Approx(50.0 / 55));
  CHECK(m.per_class[0].recall == doctest::Approx(50.0 / 60));
  CHECK(m.per_class[1].precision == doctest::Approx(35.0 / 45));
  CHECK(m.per_class[1].recall == doctest::Approx(35.0 / 40));
  CHECK(m.per_class[1].count == 40);
  CHECK(m.per_class[1].predicted == 45);
  REQUIRE(m.positive_f1.has_value());
  CHECK(*m.positive_f1 == doctest::Approx(70.0 / 85));
  CHECK(m.macro_f1 == doctest::Approx((100.0 / 115 + 70.0 / 85) / 2));
  CHECK(m.f1() == *m.positive_f1);
  CHECK(*metrics_of(matrix({{50, 10}, {5, 35}}), 0).positive_f1 == doctest::Approx(100.0 / 115));
}

TEST_CASE("three classes have no positive one") {
  const Metrics m = metrics_of(matrix({{2, 1, 0}, {0, 3, 1}, {1, 0, 2}}));
  CHECK(m.accuracy == doctest::Approx(0.7));
  CHECK(m.balanced_accuracy == doctest::Approx((2.0 / 3 + 3.0 / 4 + 2.0 / 3) / 3));
  CHECK_FALSE(m.positive_f1.has_value());
  CHECK(m.f1() == doctest::Approx((4.0 / 6 + 6.0 / 8 + 4.0 / 6) / 3));
}

TEST_CASE("a class that is never predicted has precision and F1 zero, and counts") {
  const Metrics m = metrics_of(matrix({{90, 0}, {10, 0}}));
  CHECK(m.accuracy == doctest::Approx(0.9));
  CHECK(m.balanced_accuracy == doctest::Approx(0.5));
  CHECK(m.per_class[1].precision == 0);
  CHECK(m.per_class[1].recall == 0);
  CHECK(*m.positive_f1 == 0);
  CHECK(m.macro_f1 == doctest::Approx(180.0 / 190 / 2));
}

TEST_CASE("a class without samples does not count in balanced accuracy") {
  SUBCASE("nor in macro F1 when nothing was taken for it") {
    const Metrics m = metrics_of(matrix({{3, 1, 0}, {0, 4, 0}, {0, 0, 0}}));
    CHECK(m.balanced_accuracy == doctest::Approx((0.75 + 1) / 2));
    CHECK(m.macro_f1 == doctest::Approx((6.0 / 7 + 8.0 / 9) / 2));
  }
  SUBCASE("but in macro F1 when something was") {
    const Metrics m = metrics_of(matrix({{3, 0, 1}, {0, 4, 0}, {0, 0, 0}}));
    CHECK(m.balanced_accuracy == doctest::Approx((0.75 + 1) / 2));
    CHECK(m.macro_f1 == doctest::Approx((6.0 / 7 + 1 + 0) / 3));
  }
}

TEST_CASE("nothing at all is zero, not NaN") {
  for (const int64_t classes : {0, 2, 5}) {
    const Metrics m = metrics_of(ConfusionMatrix(classes));
    CHECK(m.samples == 0);
    CHECK(m.accuracy == 0);
    CHECK(m.balanced_accuracy == 0);
    CHECK(m.macro_f1 == 0);
  }
}

TEST_CASE("a class outside the matrix is refused") {
  ConfusionMatrix confusion(2);
  CHECK_THROWS_WITH_AS(confusion.add(2, 0),
                       "confusion matrix: classes are 0..1, got actual 2 and predicted 0", Error);
  CHECK_THROWS_AS(confusion.add(0, -1), Error);
  CHECK(confusion.total() == 0);
}

}  // namespace
}  // namespace graft
