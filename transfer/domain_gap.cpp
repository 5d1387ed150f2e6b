#include "transfer/domain_gap.h"

#include <algorithm>
#include <cmath>

#include "engine/rng.h"
#include "kernels/error.h"
#include "transfer/measure/bootstrap.h"
#include "transfer/measure/distance.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/rows.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

constexpr int64_t kRepeats = 10;  // random halves
constexpr int64_t kLeast = 20;    // images of a domain

// The mean over random halves. Train and judge are halves: as many images held out as trained on.
Interval repeated_a_distance(const Tensor& a, const Tensor& b, RngKey key) {
  std::vector<double> values;
  for (int64_t i = 0; i < kRepeats; ++i) {
    values.push_back(
        proxy_a_distance(a, b, {key.seed, key.step + static_cast<uint64_t>(i), key.stream}));
  }
  return resampled_interval(values, 1);
}

// Between random halves of one domain.
double distance_within(const Tensor& domain, RngKey key) {
  double sum = 0;
  for (int64_t i = 0; i < kRepeats; ++i) {
    const RngKey own{key.seed, key.step + static_cast<uint64_t>(i), key.stream};
    const std::vector<int64_t> order = permutation(domain.dim(0), own);
    const std::span<const int64_t> rows(order);
    const size_t half = rows.size() / 2;
    sum += proxy_a_distance(rows_of(domain, rows.first(half)), rows_of(domain, rows.subspan(half)),
                            {own.seed, own.step, own.stream + 1});
  }
  return sum / kRepeats;
}

// A distance with its interval.
Interval bootstrapped(const Tensor& a, const Tensor& b, RngKey key,
                      double (*distance)(const Tensor&, const Tensor&)) {
  const int64_t first = a.dim(0);
  std::vector<int64_t> domain(static_cast<size_t>(first + b.dim(0)));
  std::fill(domain.begin() + first, domain.end(), 1);
  const auto of_rows = [&](const std::vector<int64_t>& rows) {
    std::vector<int64_t> of_a, of_b;
    for (const int64_t row : rows) {
      if (row < first) of_a.push_back(row);
      if (row >= first) of_b.push_back(row - first);
    }
    return distance(rows_of(a, of_a), rows_of(b, of_b));
  };
  return interval_of(bootstrap(domain, of_rows, key));
}

ImageDataset thinned(ImageDataset data, int64_t most, RngKey key) {
  if (std::ssize(data.samples) <= most) return data;
  std::vector<int64_t> order = permutation(std::ssize(data.samples), key);
  order.resize(static_cast<size_t>(most));
  std::sort(order.begin(), order.end());
  ImageDataset part{{}, data.class_names};
  for (const int64_t i : order) part.samples.push_back(data.samples[static_cast<size_t>(i)]);
  return part;
}

void check_count(const std::string& name, int64_t images) {
  GRAFT_CHECK(images >= kLeast, name, ": expected at least ", kLeast, " images of a domain, got ",
              images);
}

}  // namespace

GapSize size_of(const DomainGap& gap) {
  const bool sign = gap.mmd_p <= 0.05;
  const bool beyond = gap.a_distance.low > gap.a_distance_within;
  if (gap.a_distance.low >= 1) return GapSize::large;
  if (gap.a_distance.high >= 1) return GapSize::unclear;
  return sign || beyond ? GapSize::small : GapSize::none;
}

DomainGap domain_gap(const Tensor& source, const Tensor& target, uint64_t seed) {
  check_count("source", source.dim(0));
  check_count("target", target.dim(0));
  DomainGap gap;
  gap.source_images = source.dim(0);
  gap.target_images = target.dim(0);
  gap.width = source.dim(1);
  gap.a_distance = repeated_a_distance(source, target, {seed, 0, 0});
  gap.a_distance_within =
      (distance_within(source, {seed, 0, 8}) + distance_within(target, {seed, 0, 16})) / 2;
  gap.mmd = bootstrapped(source, target, {seed, 0, 24}, mmd_squared);
  gap.mmd_p = mmd_p_value(source, target, {seed, 1, 0});
  gap.coral = bootstrapped(source, target, {seed, 0, 24}, coral_distance);
  return gap;
}

DomainGap measure_domain_gap(const DomainGapOptions& options,
                             const std::function<bool(int64_t done, int64_t total)>& keep_going) {
  GRAFT_CHECK(options.most >= kLeast, "distance: expected at least ", kLeast,
              " images of a domain, got ", options.most);
  FeatureNetwork network = open_features(options.weights, options.device, options.precision);
  const ImageDataset source = thinned(read_images(options.source), options.most, {options.seed, 2});
  const ImageDataset target = thinned(read_images(options.target), options.most, {options.seed, 3});
  check_count(options.source.string(), std::ssize(source.samples));
  check_count(options.target.string(), std::ssize(target.samples));
  const int64_t total = std::ssize(source.samples) + std::ssize(target.samples);
  int64_t before = 0;
  const auto told = [&](int64_t done) { return keep_going(before + done, total); };
  const ExtractedFeatures a = extract_features(network, source, options.reading, told);
  if (!a.features.defined()) return {};
  before = std::ssize(source.samples);
  const ExtractedFeatures b = extract_features(network, target, options.reading, told);
  if (!b.features.defined()) return {};
  return domain_gap(a.features, b.features, options.seed);
}

}  // namespace graft
