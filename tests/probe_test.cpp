// The probe on features whose right answer is known, and files of features, good and hostile.
#include "transfer/probe.h"

#include <cmath>
#include <doctest/doctest.h>

#include "engine/io/npy.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "tests/support/pictures.h"
#include "tests/support/weight_bytes.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

// Gaussians with unit variance, `apart` between the means of two of three classes, in 6 dimensions.
FeatureTable gaussians(int64_t per_class, double apart, uint64_t seed) {
  const int64_t classes = 3, width = 6, n = per_class * classes;
  FeatureTable table{normal({n, width}, 0, 1, {seed, 0, 0}), {}, {"a", "b", "c"}};
  float* x = table.features.mutable_data<float>();
  for (int64_t i = 0; i < n; ++i) {
    table.labels.push_back(i % classes);
    x[i * width + i % classes] += static_cast<float>(apart / std::sqrt(2.0));
  }
  return table;
}

TEST_CASE("separable classes are told apart, by both classifiers") {
  const ProbeResult result = probe(gaussians(60, 12, 1), gaussians(40, 12, 2), {});
  CHECK(result.train == 180);
  CHECK(result.test == 120);
  for (const ProbeScore* score : {&result.logistic, &result.nearest}) {
    CHECK(score->accuracy.value == 1);
    CHECK(score->accuracy.low > 0.96);
    CHECK(score->accuracy.high == doctest::Approx(1));
    CHECK(score->balanced_accuracy.low == 1);
  }
  CHECK(result.largest_class == doctest::Approx(1 / 3.0));
  CHECK(result.difference.low == 0);
  CHECK(result.difference.high == 0);
}

// With means 2 apart Bayes' rule errs with a probability that numeric integration gives.
TEST_CASE("overlapping classes come near the best that is possible") {
  // P(right) = integral of phi(z) Phi(z + d)^2 for z over the class's own coordinate, d = 2 / sqrt
  // 2: the largest of three independent normals, one of them shifted.
  const double shift = 2 / std::sqrt(2.0);
  double best = 0;
  for (double z = -8; z < 8; z += 1e-3) {
    const double phi = std::exp(-z * z / 2) / std::sqrt(2 * 3.14159265358979324);
    const double below = 0.5 * std::erfc(-(z + shift) / std::sqrt(2.0));
    best += phi * below * below * 1e-3;
  }
  const ProbeResult result = probe(gaussians(400, 2, 3), gaussians(1000, 2, 4), {});
  CHECK(result.logistic.accuracy.low <= best);
  CHECK(result.logistic.accuracy.high >= best - 0.01);  // what 1200 rows do not teach
  CHECK(result.nearest.accuracy.value <= result.logistic.accuracy.high);
}

TEST_CASE("labels that mean nothing are found at chance, whatever was tried") {
  FeatureTable train = gaussians(100, 6, 5), test = gaussians(200, 6, 6);
  for (FeatureTable* table : {&train, &test}) {
    const std::vector<int64_t> order =
        permutation(static_cast<int64_t>(table->labels.size()), {9, 0, 0});
    std::vector<int64_t> drawn;
    for (const int64_t i : order) drawn.push_back(table->labels[static_cast<size_t>(i)]);
    table->labels = drawn;
  }
  const ProbeResult result = probe(train, test, {});
  for (const ProbeScore* score : {&result.logistic, &result.nearest}) {
    CHECK(score->accuracy.low < 1 / 3.0);
    CHECK(score->accuracy.high > 1 / 3.0);
  }
  // Nothing to learn: the cross-validation shrinks the weights as far as it may.
  CHECK(result.l2 >= 1);
}

TEST_CASE("a split keeps every class on both sides and every row on one") {
  FeatureTable table = gaussians(8, 3, 7);
  table.labels[0] = 3;  // a class with one image
  table.class_names.push_back("d");
  const SplitTable split = split_table(table, 0.25, 1);
  CHECK(split.train.labels.size() + split.test.labels.size() == table.labels.size());
  for (int64_t c : {0, 1, 2}) {
    CHECK(std::count(split.test.labels.begin(), split.test.labels.end(), c) == 2);
  }
  CHECK(std::count(split.test.labels.begin(), split.test.labels.end(), 3) == 0);
  std::vector<float> rows = split.train.features.to_vector<float>(), whole;
  const std::vector<float> rest = split.test.features.to_vector<float>();
  rows.insert(rows.end(), rest.begin(), rest.end());
  whole = table.features.to_vector<float>();
  std::sort(rows.begin(), rows.end());
  std::sort(whole.begin(), whole.end());
  CHECK(rows == whole);
  CHECK(split_table(table, 0.25, 1).test.labels == split.test.labels);
}

TEST_CASE("what cannot be judged is refused") {
  const FeatureTable good = gaussians(10, 3, 8);
  FeatureTable other = good;
  other.class_names[2] = "z";
  CHECK_THROWS_WITH_AS(probe(good, other, {}), doctest::Contains("a class \"z\""), Error);
  other = good;
  std::fill(other.labels.begin(), other.labels.end(), 1);
  CHECK_THROWS_WITH_AS(probe(other, good, {}), doctest::Contains("a single class"), Error);
  other = gaussians(10, 3, 8);
  other.features = Tensor::zeros({30, 5});
  CHECK_THROWS_WITH_AS(probe(good, other, {}), doctest::Contains("same weights and layer"), Error);
}

TEST_CASE("files of features read back, and bad ones are refused by name") {
  const TemporaryFolder folder;
  ImageDataset data;
  data.class_names = {"cat", "dog"};
  for (int64_t i = 0; i < 5; ++i) data.samples.push_back({.path = "x.png", .label = i % 2});
  const Tensor rows = normal({5, 4}, 0, 1, {1, 0, 0});
  for (const char* name : {"f.npy", "f.safetensors"}) {
    CAPTURE(name);
    FeatureWriter writer(folder / name);
    writer.add(narrow(rows, 0, 3), data, {0, 1, 2});
    writer.add(narrow(rows, 3, 2), data, {3, 4});
    CHECK_FALSE(fs::exists(folder / name));
    const std::vector<fs::path> files = writer.finish(data.class_names, {{"layer", "avgpool"}});
    CHECK(files.front() == folder / name);
    const FeatureTable table = read_features(folder / name);
    CHECK(table.features.to_vector<float>() == rows.to_vector<float>());
    CHECK(table.labels == std::vector<int64_t>{0, 1, 0, 1, 0});
    CHECK(table.class_names == data.class_names);
  }
  const auto error = [&](const char* name) {
    return test::error_of([&] { read_features(folder / name); });
  };
  const auto refused = [&](const char* name, const std::string& part) {
    const std::string what = error(name);
    CAPTURE(what);
    CHECK(what.find(name) != std::string::npos);
    CHECK(what.find(part) != std::string::npos);
  };
  CHECK_THROWS_WITH_AS(FeatureWriter(folder / "f.csv"), doctest::Contains(".npy or .safetensors"),
                       Error);
  const auto labels = [&](const std::vector<int64_t>& values) {
    NpyWriter writer(folder / "f.labels.npy", {}, Dtype::i64);
    writer.add(Tensor::of(values));
    writer.finish();
  };
  labels({0, 1, 0});
  refused("f.npy", "5 rows of features and 3 labels");
  labels({0, 1, 2, 0, 1});
  refused("f.npy", "only 2 classes");
  labels({0, 1, -1, 0, 1});
  refused("f.npy", "numbered from 0");
  fs::remove(folder / "f.labels.npy");
  refused("f.npy", "is missing");
  write_safetensors(folder / "g.safetensors", {{"features", rows}});
  refused("g.safetensors", "no tensor \"labels\"");
  const Tensor five = Tensor::of(std::vector<int64_t>{0, 1, 0, 1, 0});
  write_safetensors(folder / "g.safetensors",
                    {{"features", Tensor::zeros({5, 2, 2, 3})}, {"labels", five}});
  refused("g.safetensors", "--pool avg");
  write_safetensors(folder / "g.safetensors", {{"features", rows}, {"labels", five}},
                    {{"classes", "{\"a\": 1}"}});
  refused("g.safetensors", "no list of names");
  Tensor bad = rows.clone();
  bad.mutable_data<float>()[9] = std::nanf("");
  write_safetensors(folder / "g.safetensors", {{"features", bad}, {"labels", five}});
  refused("g.safetensors", "row 2 has a feature");
}

}  // namespace
}  // namespace graft
