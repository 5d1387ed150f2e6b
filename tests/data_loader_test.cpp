#include <algorithm>
#include <cstring>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <numeric>
#include <set>
#include <unistd.h>

#include "engine/data/loader.h"
#include "kernels/error.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

// Forty copies of the test pictures in a folder that is removed at the end.
struct Pictures {
  fs::path root = fs::temp_directory_path() / ("graft_loader_test_" + std::to_string(::getpid()));
  ImageDataset data;
  std::vector<int64_t> all;

  Pictures() {
    const char* sources[] = {"rgb.jpg", "rgb.png", "grey.jpg", "progressive.jpg", "palette.png"};
    data.class_names = {"a", "b", "c"};
    fs::create_directories(root);
    for (int i = 0; i < 40; ++i) {
      const fs::path path = root / (std::to_string(100 + i) + ".img");
      fs::copy_file(fs::path(GRAFT_SOURCE_DIR "/tests/data/images") / sources[i % 5], path,
                    fs::copy_options::overwrite_existing);
      data.samples.push_back({path, i % 3, ""});
    }
    all.resize(40);
    std::iota(all.begin(), all.end(), 0);
  }
  ~Pictures() {
    std::error_code ignored;
    fs::remove_all(root, ignored);
  }
  // Cuts a file short.
  void damage(size_t sample) const { fs::resize_file(data.samples[sample].path, 100); }
  std::string name(size_t sample) const { return data.samples[sample].path.string(); }
};

Preprocessing small() {
  Preprocessing preprocessing;
  preprocessing.resize = 10;
  preprocessing.crop = 8;
  return preprocessing;
}

Augmentation strong(bool random_crop) {
  Augmentation augmentation;
  augmentation.random_resized_crop = random_crop;
  augmentation.vertical_flip = true;
  augmentation.brightness = augmentation.saturation = 0.4;
  augmentation.hue = 0.1;
  augmentation.randaugment_ops = 1;
  return augmentation;
}

LoaderOptions training(int64_t workers) {
  LoaderOptions options;
  options.batch_size = 6;
  options.shuffle = options.train = true;
  options.workers = workers;
  options.seed = 5;
  return options;
}

struct Flat {
  std::vector<int64_t> indices, labels;
  std::vector<float> pixels;
  int64_t number;
  friend bool operator==(const Flat&, const Flat&) = default;
};

// The batches that are left of an epoch, up to `most`.
std::vector<Flat> read(Loader& loader, size_t most = 1000) {
  std::vector<Flat> batches;
  Batch batch;
  while (batches.size() < most && loader.next(batch)) {
    CHECK(batch.images.shape() ==
          Shape{static_cast<int64_t>(batch.indices.size()), 8, 8, batch.images.dim(3)});
    CHECK(batch.labels.dtype() == Dtype::i64);
    batches.push_back({batch.indices, batch.labels.to_vector<int64_t>(),
                       batch.images.to_vector<float>(), batch.number});
  }
  return batches;
}

TEST_CASE("batches hold every sample once, with its label and the pixels of the evaluation view") {
  const Pictures pictures;
  LoaderOptions options;
  options.batch_size = 16;
  Loader loader(pictures.data, pictures.all, small(), {}, options);
  CHECK(loader.samples() == 40);
  CHECK(loader.batches() == 3);
  const std::vector<Flat> batches = read(loader);
  REQUIRE(batches.size() == 3);
  CHECK(batches[2].indices.size() == 8);
  for (size_t b = 0, i = 0; b < 3; ++b) {
    CHECK(batches[b].number == static_cast<int64_t>(b));
    for (size_t slot = 0; slot < batches[b].indices.size(); ++slot, ++i) {
      CHECK(batches[b].indices[slot] == static_cast<int64_t>(i));
      CHECK(batches[b].labels[slot] == static_cast<int64_t>(i % 3));
      std::vector<float> expected(8 * 8 * 3);
      normalise(eval_view(load_image(pictures.data.samples[i].path, 3), small()), small(),
                expected.data());
      CHECK(std::equal(expected.begin(), expected.end(),
                       batches[b].pixels.begin() + static_cast<int64_t>(slot * 192)));
    }
  }
  Batch batch;
  CHECK(!loader.next(batch));
  CHECK(!loader.next(batch));
}

TEST_CASE("the batches do not depend on workers, prefetch or cache") {
  const Pictures pictures;
  for (const bool random_crop : {false, true}) {
    const auto epochs = [&](int64_t workers, int64_t prefetch, size_t cache) {
      LoaderOptions options = training(workers);
      options.prefetch = prefetch;
      options.cache_bytes = cache;
      Loader loader(pictures.data, pictures.all, small(), strong(random_crop), options);
      std::vector<std::vector<Flat>> result;
      for (int64_t epoch = 0; epoch < 3; ++epoch) {
        loader.start_epoch(epoch);
        result.push_back(read(loader));
      }
      return result;
    };
    const auto expected = epochs(0, 2, 0);
    CHECK(expected[0] != expected[1]);
    CHECK((epochs(0, 2, size_t{1} << 30) == expected));
    CHECK((epochs(1, 2, 0) == expected));
    CHECK((epochs(1, 0, 1000) == expected));
    CHECK((epochs(3, 2, 3000) == expected));
    CHECK((epochs(3, 7, size_t{1} << 30) == expected));
  }
}

TEST_CASE("shuffling visits every sample once, in another order each epoch and seed") {
  const Pictures pictures;
  const auto order = [&](uint64_t seed, int64_t epoch) {
    LoaderOptions options = training(1);
    options.seed = seed;
    Loader loader(pictures.data, pictures.all, small(), {}, options);
    loader.start_epoch(epoch);
    std::vector<int64_t> indices;
    for (const Flat& batch : read(loader)) {
      indices.insert(indices.end(), batch.indices.begin(), batch.indices.end());
    }
    return indices;
  };
  const auto first = order(1, 0);
  CHECK(std::set<int64_t>(first.begin(), first.end()).size() == 40);
  CHECK(first.size() == 40);
  CHECK(!std::is_sorted(first.begin(), first.end()));
  CHECK(first == order(1, 0));
  CHECK(first != order(1, 1));
  CHECK(first != order(2, 0));
}

TEST_CASE("resuming in mid-epoch gives the batches of the uninterrupted run") {
  const Pictures pictures;
  Loader whole(pictures.data, pictures.all, small(), strong(true), training(2));
  whole.start_epoch(4);
  const std::vector<Flat> expected = read(whole);
  REQUIRE(expected.size() == 7);
  for (int64_t from = 0; from <= 7; ++from) {
    Loader resumed(pictures.data, pictures.all, small(), strong(true), training(2));
    resumed.start_epoch(4, from);
    CHECK((read(resumed) == std::vector<Flat>(expected.begin() + from, expected.end())));
    // The same loader, in the middle of another epoch.
    resumed.start_epoch(1);
    read(resumed, 2);
    resumed.start_epoch(4, from);
    CHECK((read(resumed) == std::vector<Flat>(expected.begin() + from, expected.end())));
  }
}

TEST_CASE("a subset keeps the data set's indices and draws, and drop_last drops the short batch") {
  const Pictures pictures;
  LoaderOptions options = training(1);
  options.shuffle = false;
  Loader all(pictures.data, pictures.all, small(), strong(false), options);
  const std::vector<Flat> everything = read(all);
  options.batch_size = 2;
  options.drop_last = true;
  Loader some(pictures.data, {7, 3, 20}, small(), strong(false), options);
  CHECK(some.batches() == 1);
  const std::vector<Flat> batches = read(some);
  REQUIRE(batches.size() == 1);
  CHECK(batches[0].indices == std::vector<int64_t>{7, 3});
  CHECK(std::equal(batches[0].pixels.begin(), batches[0].pixels.begin() + 192,
                   everything[1].pixels.begin() + 192));
}

TEST_CASE("one channel") {
  const Pictures pictures;
  LoaderOptions options = training(1);
  options.channels = 1;
  Loader loader(pictures.data, pictures.all, small(), strong(false), options);
  const std::vector<Flat> batches = read(loader);
  CHECK(batches.size() == 7);
  CHECK(batches[0].pixels.size() == 6 * 64);
}

TEST_CASE("a bad image is named, from any worker, until the next epoch is started") {
  const Pictures pictures;
  pictures.damage(15);
  for (int64_t workers : {0, 1, 3}) {
    LoaderOptions options = training(workers);
    options.shuffle = false;
    Loader loader(pictures.data, pictures.all, small(), {}, options);
    CHECK(read(loader, 2).size() == 2);
    Batch batch;
    for (int attempt = 0; attempt < 2; ++attempt) {
      try {
        loader.next(batch);
        FAIL("a truncated image was accepted");
      } catch (const Error& error) {
        CHECK(std::string(error.what()).starts_with(pictures.name(15) + ": truncated"));
      }
    }
    loader.start_epoch(1);
    CHECK(read(loader, 2).size() == 2);
  }
}

TEST_CASE("skipped images leave their batch smaller and are reported once") {
  const Pictures pictures;
  pictures.damage(1);
  pictures.damage(8);
  fs::remove(pictures.data.samples[9].path);
  for (int64_t workers : {0, 1, 3}) {
    LoaderOptions options = training(workers);
    options.shuffle = false;
    options.bad_image = BadImage::skip;
    Loader loader(pictures.data, pictures.all, small(), {}, options);
    CHECK(loader.bad_images().empty());
    for (int64_t epoch = 0; epoch < 2; ++epoch) {
      loader.start_epoch(epoch);
      const std::vector<Flat> batches = read(loader);
      REQUIRE(batches.size() == 7);
      CHECK(batches[0].indices == std::vector<int64_t>{0, 2, 3, 4, 5});
      CHECK(batches[1].indices == std::vector<int64_t>{6, 7, 10, 11});
      CHECK(batches[1].labels == std::vector<int64_t>{0, 1, 1, 2});
      CHECK(batches[1].pixels.size() == 4 * 192);
    }
    const std::vector<std::string> bad = loader.bad_images();
    REQUIRE(bad.size() == 3);
    CHECK(bad[0].starts_with(pictures.name(1) + ": "));
    CHECK(bad[1].starts_with(pictures.name(8) + ": "));
    CHECK(bad[2] == pictures.name(9) + ": no such file; check the path");
  }
}

TEST_CASE("a batch without a readable image is passed over, an epoch of them is an error") {
  const Pictures pictures;
  for (size_t i = 6; i < 12; ++i) pictures.damage(i);
  LoaderOptions options = training(2);
  options.shuffle = false;
  options.bad_image = BadImage::skip;
  Loader loader(pictures.data, pictures.all, small(), {}, options);
  const std::vector<Flat> batches = read(loader);
  REQUIRE(batches.size() == 6);
  CHECK(batches[0].number == 0);
  CHECK(batches[1].number == 2);

  Loader none(pictures.data, {6, 7, 8, 9, 10, 11}, small(), {}, options);
  Batch batch;
  try {
    none.next(batch);
    FAIL("an epoch without images was accepted");
  } catch (const Error& error) {
    CHECK(std::string(error.what())
              .starts_with("loader: none of the 6 images can be read; the first: " +
                           pictures.name(6)));
  }
}

TEST_CASE("the cache spares reading files again, within its limit") {
  Pictures pictures;
  LoaderOptions options = training(2);
  // 40 crops of 8 x 8 x 3 bytes.
  options.cache_bytes = 40 * 192;
  Loader cached(pictures.data, pictures.all, small(), {}, options);
  cached.start_epoch(0);
  read(cached);
  options.cache_bytes = 39 * 192;
  Loader nearly(pictures.data, pictures.all, small(), {}, options);
  nearly.start_epoch(0);
  read(nearly);
  for (const Sample& sample : pictures.data.samples) fs::remove(sample.path);
  cached.start_epoch(1);
  CHECK(read(cached).size() == 7);
  nearly.start_epoch(1);
  CHECK_THROWS_AS(read(nearly), Error);
}

TEST_CASE("starting, stopping and dropping at random never hangs") {
  const Pictures pictures;
  pictures.damage(12);
  RandomStream random({99, 0, 0});
  for (int round = 0; round < 200; ++round) {
    LoaderOptions options = training(random.below(4));
    options.prefetch = random.below(5);
    options.batch_size = 1 + random.below(9);
    options.bad_image = random.below(2) == 0 ? BadImage::error : BadImage::skip;
    Loader loader(pictures.data, pictures.all, small(), {}, options);
    for (int64_t epoch = 0, n = random.below(4); epoch < n; ++epoch) {
      loader.start_epoch(epoch, random.below(loader.batches() + 1));
      Batch batch;
      try {
        for (int64_t i = 0, most = random.below(8); i < most && loader.next(batch); ++i) {
        }
      } catch (const Error& error) {
        CHECK(options.bad_image == BadImage::error);
        CHECK(std::string(error.what()).starts_with(pictures.name(12)));
      }
    }
  }
}

TEST_CASE("running out of memory for a batch is an error, and the loader can go on") {
  const Pictures pictures;
  LoaderOptions options = training(2);
  Loader loader(pictures.data, pictures.all, small(), {}, options);
  const std::vector<Flat> expected = read(loader);
  for (int64_t nth = 1; nth < 8; ++nth) {
    fail_allocation(nth);
    try {
      loader.start_epoch(0);
      read(loader);
    } catch (const Error&) {
    }
    fail_allocation(0);
    loader.start_epoch(0);
    CHECK((read(loader) == expected));
  }
}

TEST_CASE("impossible options are refused before a thread is started") {
  const Pictures pictures;
  const auto fault = [&](std::vector<int64_t> indices, const LoaderOptions& options) {
    try {
      Loader loader(pictures.data, std::move(indices), small(), {}, options);
      return std::string();
    } catch (const Error& error) {
      return std::string(error.what());
    }
  };
  LoaderOptions options;
  CHECK(fault({}, options) == "loader: there are no samples to load");
  CHECK(fault({40}, options) == "loader: sample 40 is out of range, there are 40");
  options.batch_size = 0;
  CHECK(fault({1}, options) == "loader: expected a batch size of at least 1, got 0");
  options.batch_size = 4;
  options.drop_last = true;
  CHECK(fault({1, 2, 3}, options) ==
        "loader: 3 samples do not fill one batch of 4; take a smaller batch");
  options.channels = 2;
  CHECK(fault({1}, options) == "loader: expected 1 or 3 channels, got 2");
  options = {};
  options.workers = -1;
  CHECK(fault({1}, options) == "loader: expected workers and prefetch of at least 0, got -1 and 2");
  options = {};
  options.train = true;
  Augmentation augmentation;
  augmentation.hue = 0.6;
  CHECK_THROWS_WITH_AS(Loader(pictures.data, {1}, small(), augmentation, options),
                       "colour jitter: expected strengths of 0 or more, and at most 0.5 for the "
                       "hue, got 0, 0, 0 and 0.6",
                       Error);
  augmentation = {};
  augmentation.randaugment_ops = 1;
  augmentation.randaugment_magnitude = 31;
  CHECK_THROWS_WITH_AS(Loader(pictures.data, {1}, small(), augmentation, options),
                       "RandAugment: expected a magnitude of 0 to 30, got 31", Error);
  Pictures wrong;
  wrong.data.samples[2].label = 3;
  CHECK_THROWS_WITH_AS(Loader(wrong.data, wrong.all, small(), {}, {}),
                       (wrong.name(2) + ": label 3 is out of range, there are 3 classes").c_str(),
                       Error);
  Loader loader(pictures.data, pictures.all, small(), {}, {});
  CHECK_THROWS_AS(loader.start_epoch(-1), Error);
  CHECK_THROWS_WITH_AS(loader.start_epoch(0, 3), "loader: expected a first batch of 0 to 2, got 3",
                       Error);
}

}  // namespace
TEST_CASE("batches for a GPU make the bits of the other batches") {
  const Pictures pictures;
  pictures.damage(11);
  for (const bool train : {true, false}) {
    for (const size_t cache : {size_t{1} << 30, size_t{0}}) {
      for (const bool random_crop : {true, false}) {
        for (const bool colours : {true, false}) {
          Augmentation augmentation = strong(random_crop);
          if (!colours) {
            augmentation.brightness = augmentation.saturation = augmentation.hue = 0;
            augmentation.randaugment_ops = 0;
          }
          LoaderOptions options = training(2);
          options.train = train;
          options.cache_bytes = cache;
          options.bad_image = BadImage::skip;
          Loader here(pictures.data, pictures.all, small(), augmentation, options);
          options.for_gpu = true;
          Loader packed(pictures.data, pictures.all, small(), augmentation, options);
          INFO("train " << train << ", cache " << cache << ", random crop " << random_crop
                        << ", colours " << colours);
          for (int64_t epoch = 0; epoch < 2; ++epoch) {  // the second from memory
            here.start_epoch(epoch);
            packed.start_epoch(epoch);
            Batch expected, batch;
            while (here.next(expected)) {
              REQUIRE(packed.next(batch));
              CHECK(batch.indices == expected.indices);
              CHECK(!batch.images.defined());
              const Tensor images = render(batch.packed, batch.packed.bytes);
              CHECK(images.shape() == expected.images.shape());
              CHECK(images.to_vector<float>() == expected.images.to_vector<float>());
            }
            CHECK(!packed.next(batch));
          }
        }
      }
    }
  }
}

}  // namespace graft
