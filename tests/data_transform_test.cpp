#include <algorithm>
#include <array>
#include <cmath>
#include <doctest/doctest.h>
#include <fstream>
#include <map>
#include <set>
#include <sstream>

#include "engine/data/augment.h"
#include "engine/data/transform.h"
#include "kernels/error.h"

namespace graft {
namespace {

// The pictures of tests/data/make_transform_golden.py.
uint32_t mix(uint32_t v) {
  v = (v ^ (v >> 16)) * 0x7FEB352Du;
  v = (v ^ (v >> 15)) * 0x846CA68Bu;
  return v ^ (v >> 16);
}

Image picture(int64_t number, int64_t width, int64_t height, int64_t channels) {
  Image image{width, height, channels, {}};
  for (int64_t y = 0; y < height; ++y) {
    for (int64_t x = 0; x < width; ++x) {
      for (int64_t c = 0; c < channels; ++c) {
        int64_t p;
        if (number % 3 == 0) {
          p = 40 + (x * (3 + c) + y * (5 - c)) * (number + 1) / 7 % 171;
        } else {
          const uint32_t v =
              mix(static_cast<uint32_t>(x) * 0x9E3779B1u + static_cast<uint32_t>(y) * 0x85EBCA77u +
                  static_cast<uint32_t>(c) * 0xC2B2AE3Du + static_cast<uint32_t>(number)) &
              255;
          p = number & 1 ? (v >= 128 ? 255 : 0) : v;
        }
        image.pixels.push_back(static_cast<uint8_t>(p));
      }
    }
  }
  return image;
}

uint32_t crc32(const std::vector<uint8_t>& bytes) {
  uint32_t crc = 0xFFFFFFFFu;
  for (uint8_t byte : bytes) {
    crc ^= byte;
    for (int bit = 0; bit < 8; ++bit) crc = crc & 1 ? 0xEDB88320u ^ (crc >> 1) : crc >> 1;
  }
  return ~crc;
}

Image run(const std::string& name, double a, double b, const Image& image) {
  if (name == "brightness") return changed(image, brightness_change(a));
  if (name == "contrast") return changed(image, contrast_change(a));
  if (name == "saturation") return changed(image, saturation_change(a));
  if (name == "sharpness") return changed(image, sharpness_change(a));
  if (name == "hue") return changed(image, hue_change(a));
  if (name == "rotate") return changed(image, rotate_change(a, image.width, image.height));
  if (name.starts_with("rand")) {
    const auto op = static_cast<RandOp>(std::stoi(name.substr(4)));
    return changed(image, change_of(op, static_cast<int>(a), b != 0, image.width, image.height));
  }
  Preprocessing preprocessing;
  preprocessing.resize = static_cast<int64_t>(a);
  preprocessing.crop = static_cast<int64_t>(b);
  REQUIRE((name == "cubic" || name == "linear"));
  preprocessing.interpolation = name == "cubic" ? Interpolation::bicubic : Interpolation::bilinear;
  return eval_view(image, preprocessing);
}

TEST_CASE("augmentation operations and the evaluation view equal torchvision's bytes") {
  std::ifstream file(GRAFT_SOURCE_DIR "/tests/data/transform_golden.txt");
  std::string line;
  std::map<std::string, std::pair<int, int>> counts;  // cases, different
  while (std::getline(file, line)) {
    std::istringstream fields(line);
    std::string name;
    double a, b;
    int64_t number, width, height, channels;
    uint32_t expected;
    REQUIRE((fields >> name >> a >> b >> number >> width >> height >> channels >> expected));
    const Image result = run(name, a, b, picture(number, width, height, channels));
    auto& [cases, different] = counts[name];
    ++cases;
    if (crc32(result.pixels) != expected && ++different <= 2) MESSAGE(line);
  }
  CHECK(counts.size() == 6 + kRandOps + 2);
  for (const auto& [name, count] : counts) {
    INFO(name << ": " << count.second << " of " << count.first << " differ");
    CHECK(count.second == 0);
  }
}

TEST_CASE("the evaluation view without a resize stretches both sides to the crop") {
  Preprocessing preprocessing;
  preprocessing.resize = 0;
  preprocessing.crop = 13;
  preprocessing.interpolation = Interpolation::bicubic;
  const Image image = picture(1, 40, 21, 3);
  const Image view = eval_view(image, preprocessing);
  CHECK(view.pixels == resize(image, 13, 13, Interpolation::bicubic).pixels);
}

TEST_CASE("an odd margin is rounded to the even neighbour, or down where the weights ask for it") {
  const Image image = picture(4, 11, 9, 3);
  Preprocessing preprocessing;
  preprocessing.resize = 9;  // no resize, margins of 3 and 1
  preprocessing.crop = 8;
  CHECK(eval_view(image, preprocessing).pixels == crop(image, 2, 0, 8, 8).pixels);
  preprocessing.crop_offset = CropOffset::floor;
  CHECK(eval_view(image, preprocessing).pixels == crop(image, 1, 0, 8, 8).pixels);
}

TEST_CASE("a very long image is resized without its middle being computed in full") {
  const Image image{8000, 1, 1, std::vector<uint8_t>(8000, 9)};
  const Image view = eval_view(image, Preprocessing{});
  CHECK(view.width == 224);
  CHECK(view.height == 224);
  CHECK(std::all_of(view.pixels.begin(), view.pixels.end(), [](uint8_t p) { return p == 9; }));
}

TEST_CASE("flips reverse the rows and the columns") {
  const Image image = picture(2, 5, 3, 3);
  const Image sideways = flip_horizontal(image), upside_down = flip_vertical(image);
  for (int64_t y = 0; y < 3; ++y) {
    for (int64_t x = 0; x < 5; ++x) {
      for (int64_t c = 0; c < 3; ++c) {
        const auto at = [&](const Image& of, int64_t row, int64_t column) {
          return of.pixels[static_cast<size_t>((row * 5 + column) * 3 + c)];
        };
        CHECK(at(sideways, y, x) == at(image, y, 4 - x));
        CHECK(at(upside_down, y, x) == at(image, 2 - y, x));
      }
    }
  }
}

TEST_CASE("the training view is a function of the random stream") {
  Preprocessing preprocessing;
  preprocessing.crop = 32;
  Augmentation augmentation;
  augmentation.random_resized_crop = true;
  augmentation.vertical_flip = true;
  augmentation.brightness = augmentation.contrast = augmentation.saturation = 0.4;
  augmentation.hue = 0.1;
  augmentation.randaugment_ops = 2;
  const Image image = picture(3, 61, 47, 3);
  std::set<std::vector<uint8_t>> different;
  for (uint32_t i = 0; i < 20; ++i) {
    RandomStream first({1, 2, i}), second({1, 2, i});
    const Image a = train_view(image, preprocessing, augmentation, first);
    CHECK(a.width == 32);
    CHECK(a.height == 32);
    CHECK(a.pixels == train_view(image, preprocessing, augmentation, second).pixels);
    different.insert(a.pixels);
  }
  CHECK(different.size() >= 18);
}

TEST_CASE("without a random crop the training view is the evaluation view, half of them flipped") {
  Preprocessing preprocessing;
  preprocessing.resize = preprocessing.crop = 24;
  const Image image = picture(4, 50, 33, 3);
  const Image view = eval_view(image, preprocessing), flipped = flip_horizontal(view);
  int flips = 0;
  for (uint32_t i = 0; i < 400; ++i) {
    RandomStream random({5, 0, i});
    const Image result = train_view(image, preprocessing, Augmentation{}, random);
    const bool is_flipped = result.pixels == flipped.pixels;
    CHECK((is_flipped || result.pixels == view.pixels));
    flips += is_flipped;
  }
  CHECK(flips > 160);
  CHECK(flips < 240);
}

TEST_CASE("the random crop covers the areas and ratios asked for, and stays inside odd shapes") {
  // A ramp along x tells the width of the crop from the contrast of the result.
  Image image{256, 256, 1, {}};
  for (int y = 0; y < 256; ++y) {
    for (int x = 0; x < 256; ++x) image.pixels.push_back(static_cast<uint8_t>(x));
  }
  Preprocessing preprocessing;
  preprocessing.crop = 16;
  Augmentation augmentation;
  augmentation.random_resized_crop = true;
  augmentation.horizontal_flip = false;
  augmentation.min_scale = 0.25;
  augmentation.max_scale = 0.5;
  int narrowest = 256, widest = 0;
  for (uint32_t i = 0; i < 500; ++i) {
    RandomStream random({9, 1, i});
    const Image view = train_view(image, preprocessing, augmentation, random);
    // Neighbouring outputs are width / 16 apart; 15 steps between first and last, ends flattened.
    const int spread = (view.pixels[14] - view.pixels[1]) * 16 / 13;
    narrowest = std::min(narrowest, spread);
    widest = std::max(widest, spread);
  }
  // sqrt(area * ratio): from sqrt(0.25 * 3/4) to sqrt(0.5 * 4/3) of 256, i.e. 111 to 209.
  CHECK(narrowest >= 108);
  CHECK(narrowest <= 120);
  CHECK(widest >= 196);
  CHECK(widest <= 212);

  augmentation = {};
  augmentation.random_resized_crop = true;
  for (const auto& [width, height] : {std::pair<int64_t, int64_t>{1, 1}, {1, 500}, {500, 1}}) {
    RandomStream random({9, 2, 0});
    const Image thin{width, height, 3,
                     std::vector<uint8_t>(static_cast<size_t>(width * height * 3), 77)};
    const Image view = train_view(thin, preprocessing, augmentation, random);
    CHECK(view.pixels == std::vector<uint8_t>(16 * 16 * 3, 77));
  }
}

TEST_CASE(
    "normalise gives (p / 255 - mean) / deviation, and (p - 127) / 128 for Lite's constants") {
  Image image{256, 1, 3, {}};
  for (int v = 0; v < 256; ++v) {
    for (int c = 0; c < 3; ++c) image.pixels.push_back(static_cast<uint8_t>(v));
  }
  Preprocessing preprocessing;
  std::vector<float> out(256 * 3);
  normalise(image, preprocessing, out.data());
  for (size_t v = 0; v < 256; ++v) {
    for (size_t c = 0; c < 3; ++c) {
      const long double exact = (v / 255.0L - preprocessing.mean[c]) / preprocessing.stddev[c];
      CHECK(out[v * 3 + c] == static_cast<float>(exact));
    }
  }
  preprocessing.mean.fill(127.0f / 255.0f);
  preprocessing.stddev.fill(128.0f / 255.0f);
  normalise(image, preprocessing, out.data());
  for (int v = 0; v < 256; ++v) {
    CHECK(out[static_cast<size_t>(v) * 3] ==
          doctest::Approx((v - 127) / 128.0).epsilon(1e-7).scale(1));
  }
  Image grey{2, 1, 1, {0, 255}};
  preprocessing = {};
  normalise(grey, preprocessing, out.data());
  CHECK(out[0] == doctest::Approx(-0.485 / 0.229));
  CHECK(out[1] == doctest::Approx((1 - 0.485) / 0.229));
}

TEST_CASE("transforms refuse impossible settings") {
  const Image image = picture(1, 8, 8, 3);
  Preprocessing preprocessing;
  preprocessing.crop = 0;
  CHECK_THROWS_WITH_AS(eval_view(image, preprocessing),
                       "preprocessing: expected a crop of at least 1 and a resize of at least 0, "
                       "got crop 0 and resize 256",
                       Error);
  CHECK_THROWS_AS(eval_view(Image{}, Preprocessing{}), Error);
  CHECK_THROWS_WITH_AS(change_of(RandOp::rotate, 31, false, 8, 8),
                       "RandAugment: expected a magnitude of 0 to 30, got 31", Error);
  CHECK_THROWS_AS(hue_change(0.6), Error);
  CHECK_THROWS_AS(posterize_change(0), Error);
  preprocessing = {};
  preprocessing.stddev[1] = 0;
  std::vector<float> out(8 * 8 * 3);
  CHECK_THROWS_WITH_AS(normalise(image, preprocessing, out.data()),
                       "normalise: expected a positive deviation, got 0 for channel 1", Error);
}

}  // namespace
}  // namespace graft
