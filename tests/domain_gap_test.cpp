// Distances between domains, over features whose gap is known; and what a network has forgotten,
// over one whose weights were changed.
#include "transfer/domain_gap.h"

#include <cmath>
#include <doctest/doctest.h>

#include "engine/io/weights.h"
#include "engine/rng.h"
#include "tests/support/pictures.h"
#include "tests/support/weight_bytes.h"
#include "transfer/finetune.h"
#include "transfer/forgetting.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using testing::TemporaryFolder;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

Tensor gaussians(int64_t rows, int64_t width, double centre, uint64_t seed) {
  RandomStream random({seed, 0, 0});
  std::vector<float> values;
  for (int64_t i = 0; i < rows * width; ++i) {
    values.push_back(static_cast<float>((i % width == 0 ? centre : 0) + random.normal()));
  }
  return Tensor::of(values, {rows, width});
}

TEST_CASE("no gap, a small one and a large one") {
  const Tensor source = gaussians(200, 4, 0, 1);
  const auto against = [&](double centre) {
    return domain_gap(source, gaussians(180, 4, centre, 2), 0);
  };
  const DomainGap none = against(0), small = against(0.6), large = against(5);
  CHECK(size_of(none) == GapSize::none);
  CHECK(size_of(small) == GapSize::small);
  CHECK(size_of(large) == GapSize::large);
  CHECK(none.mmd.low <= 0);
  CHECK(none.mmd.high >= 0);
  CHECK(none.mmd_p > 0.05);
  CHECK(small.mmd.low > 0);
  CHECK(small.mmd_p < 0.05);
  CHECK(none.a_distance.value < small.a_distance.value);
  CHECK(small.a_distance.value < large.a_distance.value);
  CHECK(large.a_distance.value > 1.8);
  CHECK(none.source_images == 200);
  CHECK(none.target_images == 180);
  // What halves of one domain give is no sign of a gap, and above 0, since a line is fitted.
  CHECK(none.a_distance_within < 0.5);
  CHECK(contains(error_of([&] { domain_gap(source, gaussians(19, 4, 0, 1), 0); }), "got 19"));
}

TEST_CASE("domains that are alike are called so: at most one alarm of twenty") {
  int alarms = 0;
  for (uint64_t draw = 0; draw < 40; ++draw) {
    const DomainGap gap =
        domain_gap(gaussians(40, 3, 0, 2 * draw + 10), gaussians(40, 3, 0, 2 * draw + 11), draw);
    alarms += size_of(gap) == GapSize::small || size_of(gap) == GapSize::large;
  }
  CHECK(alarms <= 40 * 0.05 + 3 * 1.4);  // three standard deviations of 40 draws
}

TEST_CASE("the same images before and after: intervals worked by hand") {
  std::vector<bool> before(100, true), after(100, true);
  KeptAccuracy kept = kept_accuracy(before, after);
  CHECK(kept.change.low == doctest::Approx(-0.03));  // the rule of three
  CHECK(kept.change.high == doctest::Approx(0.03));
  for (size_t i = 0; i < 20; ++i) after[i] = false;
  kept = kept_accuracy(before, after);
  CHECK(kept.after.value == doctest::Approx(0.8));
  CHECK(kept.change.value == doctest::Approx(-0.2));
  // t(0.975, 99) = 1.98422, deviation sqrt(.16 x 100 / 99)
  CHECK(kept.change.high == doctest::Approx(-0.2 + 1.98422 * std::sqrt(0.16 / 99)).epsilon(1e-5));
  CHECK(contains(error_of([&] { kept_accuracy(before, {true}); }), "same images"));
}

// Trained weights, and what became of them.
struct Fixture {
  Fixture() {
    testing::write_stripes(folder / "source", 24, 16, 2);
    FinetuneOptions options = FinetuneOptions::from_scratch();
    options.data = folder / "source";
    options.architecture = "small_cnn";
    options.image_size = 16;
    options.batch = 8;
    options.epochs = 8;
    options.workers = 0;
    options.out = folder / "run";
    finetune(options);
    forgetting.before = forgetting.after = folder / "run" / "last.safetensors";
    forgetting.data = folder / "source";
  }
  // Writes the trained network with its weights changed.
  fs::path changed(const std::string& name, const std::function<void(ImageModel&)>& change) const {
    LoadedModel loaded = load_model(folder / "run" / "last.safetensors");
    change(*loaded.model);
    write_safetensors(folder / name, loaded.model->state_dict(), to_metadata(loaded.card));
    return folder / name;
  }
  Forgetting measured() const {
    return measure_forgetting(forgetting, [](int64_t, int64_t) { return true; });
  }
  TemporaryFolder folder;
  ForgettingOptions forgetting;
};

TEST_CASE_FIXTURE(Fixture, "nothing, the head's fit, and the features themselves are forgotten") {
  const Forgetting same = measured();
  CHECK(same.images == 48);
  CHECK(same.classes == 2);
  CHECK(same.head.before.value == same.head.after.value);
  CHECK(same.head.change.low < 0);
  CHECK(same.head.change.high > 0);
  CHECK(same.head.before.value > 0.9);
  // The head of `after` plays no part: what is judged is its features.
  forgetting.after = changed("head.safetensors", [](ImageModel& model) {
    model.replace_head(2, {5, 0, 0});
  });
  CHECK(measured().head.after.value == same.head.before.value);

  forgetting.after = changed("random.safetensors", [](ImageModel& model) {
    model.initialise({9, 0, 0});
  });
  const Forgetting random = measured();
  CHECK(random.head.change.high < 0);
  // Random features still tell stripes apart: a fair judge says so.
  CHECK(random.probe.after.value > random.head.after.value + 0.2);

  forgetting.after = changed("dead.safetensors", [](ImageModel& model) {
    for (const NamedTensor& entry : model.named_tensors()) {
      if (entry.name == model.stem_name() + ".weight") {
        entry.tensor->fill(0);
      }
    }
  });
  const Forgetting dead = measured();
  CHECK(dead.probe.change.high < -0.2);
  CHECK(dead.probe.after.value < 0.7);
}

TEST_CASE_FIXTURE(Fixture, "a stop gives nothing; what cannot be compared is refused") {
  CHECK(measure_forgetting(forgetting, [](int64_t, int64_t) { return false; }).images == 0);
  const auto refused = [&](const std::function<void(ForgettingOptions&)>& spoil) {
    ForgettingOptions options = forgetting;
    spoil(options);
    return error_of([&] { measure_forgetting(options, [](int64_t, int64_t) { return true; }); });
  };
  const auto other = make_model("mlp", {.classes = 2}, {1, 0, 0});
  ModelCard card;
  card.architecture = "mlp";
  card.classes = 2;
  card.preprocessing = preprocessing_of("mlp");
  write_safetensors(folder / "mlp.safetensors", other->state_dict(), to_metadata(card));
  CHECK(
      contains(refused([&](auto& o) { o.after = folder / "mlp.safetensors"; }), "one fine-tuning"));
  fs::rename(folder / "source" / "down", folder / "source" / "dawn");
  CHECK(contains(refused([](auto&) {}), "did you mean down?"));
  fs::rename(folder / "source" / "dawn", folder / "source" / "down");
  for (int i = 0; i < 20; ++i) {
    fs::remove(folder / "source" / "down" / ("picture" + std::to_string(i) + ".png"));
  }
  CHECK(contains(refused([](auto&) {}), "too few"));

  DomainGapOptions gap;
  gap.source = gap.target = folder / "source";
  gap.weights = folder / "none.safetensors";
  const auto measure = [&] { measure_domain_gap(gap, [](int64_t, int64_t) { return true; }); };
  CHECK(contains(error_of(measure), "none.safetensors"));
  gap.weights = forgetting.before;
  CHECK(error_of(measure).empty());
  gap.most = 5;
  CHECK(contains(error_of(measure), "at least 20"));
}

}  // namespace
}  // namespace graft
