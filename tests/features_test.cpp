// Features and logits of a folder of pictures, against the model run picture by picture.
#include "transfer/features.h"

#include <cmath>
#include <doctest/doctest.h>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "kernels/error.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "tests/support/weight_bytes.h"
#include "transfer/batches.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::TemporaryFolder;

constexpr auto kAlways = [](int64_t) { return true; };

ModelCard small_card(int64_t classes) {
  ModelCard card;
  card.architecture = "small_cnn";
  card.classes = classes;
  card.preprocessing = preprocessing_of("small_cnn");
  card.preprocessing.resize = card.preprocessing.crop = 16;
  return card;
}

// Random weights of three classes; without the head's tensors where `headless`.
fs::path write_weights(const fs::path& path, bool headless) {
  const auto model = make_model("small_cnn", {.classes = 3}, {5, 0, 0});
  StateDict state = model->state_dict();
  if (headless) {
    for (const char* end : {".weight", ".bias"}) state.erase(model->head_name() + end);
  }
  write_safetensors(path, state, to_metadata(small_card(headless ? 0 : 3)));
  return path;
}

struct Fixture {
  Fixture() { testing::write_stripes(folder / "stripes", 5, 16, 3); }
  TemporaryFolder folder;
  ImageDataset data() const { return read_images(folder / "stripes"); }
};

TEST_CASE_FIXTURE(Fixture, "features and logits are what the model gives picture by picture") {
  const fs::path weights = write_weights(folder / "w.safetensors", false);
  FeatureNetwork network = open_features(weights, test::test_device());
  REQUIRE(network.has_head);
  int64_t reported = 0;
  const ExtractedFeatures got =
      extract_features(network, data(), {.batch = 4, .workers = 2}, [&](int64_t done) {
        reported = done;
        return true;
      });
  CHECK(reported == 10);
  CHECK(got.labels == std::vector<int64_t>{0, 0, 0, 0, 0, 1, 1, 1, 1, 1});
  CHECK(got.indices == std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9});
  CHECK(got.features.shape() == Shape{10, network.model->feature_width()});
  CHECK(got.logits.shape() == Shape{10, 3});

  const NoGrad guard;
  LoadedModel reference = load_model(weights);
  const ImageDataset images = data();
  for (int64_t i = 0; i < 10; ++i) {
    const auto one = image_batches(images, {i}, reference.card.preprocessing, {}, {});
    one->start_epoch(0, 0);
    Batch batch;
    REQUIRE(one->next(batch));
    const auto features = reference.model->features(batch.images).to_vector<float>();
    const auto logits = reference.model->forward(batch.images).to_vector<float>();
    const auto row = narrow(got.features, i, 1).to_vector<float>();
    const auto outputs = narrow(got.logits, i, 1).to_vector<float>();
    for (size_t k = 0; k < row.size(); ++k)
      CHECK(row[k] == doctest::Approx(features[k]).epsilon(1e-5));
    for (size_t k = 0; k < outputs.size(); ++k) {
      CHECK(outputs[k] == doctest::Approx(logits[k]).epsilon(1e-5));
    }
  }
}

TEST_CASE_FIXTURE(Fixture, "weights without a head give the same features and no logits") {
  FeatureNetwork whole =
      open_features(write_weights(folder / "w.safetensors", false), test::test_device());
  FeatureNetwork headless =
      open_features(write_weights(folder / "h.safetensors", true), test::test_device());
  CHECK_FALSE(headless.has_head);
  const ExtractedFeatures a = extract_features(whole, data(), {}, kAlways);
  const ExtractedFeatures b = extract_features(headless, data(), {}, kAlways);
  CHECK(a.features.to_vector<float>() == b.features.to_vector<float>());
  CHECK_FALSE(b.logits.defined());
}

TEST_CASE_FIXTURE(Fixture, "a stop gives nothing; unreadable pictures are named or refused") {
  FeatureNetwork network = open_features(write_weights(folder / "w.safetensors", false));
  CHECK_FALSE(extract_features(network, data(), {.batch = 2}, [](int64_t done) {
                return done < 4;
              }).features.defined());
  fs::resize_file(data().samples[2].path, 40);
  CHECK(test::error_of([&] { extract_features(network, data(), {}, kAlways); }) != "");
  const ExtractedFeatures rest =
      extract_features(network, data(), {.bad_image = BadImage::skip}, kAlways);
  CHECK(rest.indices == std::vector<int64_t>{0, 1, 3, 4, 5, 6, 7, 8, 9});
  CHECK(rest.logits.dim(0) == 9);
  REQUIRE(rest.bad_images.size() == 1);
  CHECK(rest.bad_images[0].find(data().samples[2].path.filename().string()) != std::string::npos);
}

TEST_CASE_FIXTURE(Fixture, "files that are not converted weights are refused by name") {
  const auto refused = [&](const fs::path& path) {
    return test::error_of([&] { open_features(path); });
  };
  CHECK(refused(folder / "none.safetensors").find("none.safetensors") != std::string::npos);
  write_safetensors(folder / "bare.safetensors", {{"x", Tensor::of(std::vector<float>{1.0f})}});
  CHECK(refused(folder / "bare.safetensors").find("graft convert") != std::string::npos);
}

}  // namespace
}  // namespace graft
