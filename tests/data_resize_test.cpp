#include <algorithm>
#include <array>
#include <doctest/doctest.h>
#include <fstream>
#include <iterator>

#include "engine/data/image.h"
#include "kernels/error.h"

namespace graft {
namespace {

// The formulas of tests/data/make_resize_golden.py.
uint32_t mix(uint32_t v) {
  v = (v ^ (v >> 16)) * 0x7FEB352Du;
  v = (v ^ (v >> 15)) * 0x846CA68Bu;
  return v ^ (v >> 16);
}

uint32_t draw(uint32_t test_case, uint32_t which) { return mix(test_case * 16 + which); }

int64_t side(uint32_t test_case, uint32_t which) {
  const uint32_t word = draw(test_case, which), kind = word & 15;
  const uint32_t limit = kind == 0 ? 600 : kind == 1 ? 5 : 160;
  return 1 + (word >> 4) % limit;
}

Image picture(uint32_t test_case, int64_t width, int64_t height, int64_t channels) {
  Image image{width, height, channels, {}};
  for (uint32_t y = 0; y < height; ++y) {
    for (uint32_t x = 0; x < width; ++x) {
      for (uint32_t c = 0; c < channels; ++c) {
        const uint32_t v =
            mix(x * 0x9E3779B1u + y * 0x85EBCA77u + c * 0xC2B2AE3Du + test_case) & 255;
        const uint32_t p = test_case & 1 ? (v >= 128 ? 255 : 0) : v;
        image.pixels.push_back(static_cast<uint8_t>(p));
      }
    }
  }
  return image;
}

uint32_t crc32(const std::vector<uint8_t>& bytes) {
  static const std::array<uint32_t, 256> table = [] {
    std::array<uint32_t, 256> entries{};
    for (uint32_t i = 0; i < 256; ++i) {
      uint32_t v = i;
      for (int bit = 0; bit < 8; ++bit) v = v & 1 ? 0xEDB88320u ^ (v >> 1) : v >> 1;
      entries[i] = v;
    }
    return entries;
  }();
  uint32_t crc = 0xFFFFFFFFu;
  for (uint8_t byte : bytes) crc = table[(crc ^ byte) & 255] ^ (crc >> 8);
  return ~crc;
}

struct Case {
  Image input;
  int64_t width, height;
};
Case make_case(uint32_t i) {
  int64_t sizes[4];
  for (uint32_t k = 0; k < 4; ++k) sizes[k] = side(i, k);
  const uint32_t keep = draw(i, 5) & 31;
  if (keep == 0) sizes[2] = sizes[0];
  if (keep == 1) sizes[3] = sizes[1];
  return {picture(i, sizes[0], sizes[1], draw(i, 4) & 1 ? 3 : 1), sizes[2], sizes[3]};
}

TEST_CASE("resize equals Pillow's bytes on 2,000 random sizes with both filters") {
  std::ifstream file(GRAFT_SOURCE_DIR "/tests/data/resize_golden.bin", std::ios::binary);
  const std::vector<char> golden{std::istreambuf_iterator<char>(file), {}};
  REQUIRE(golden.size() == 2000u * 2 * 4);
  const auto expected = [&](size_t i) {
    uint32_t word = 0;
    for (size_t b = 4; b-- > 0;) word = word << 8 | static_cast<uint8_t>(golden[i * 4 + b]);
    return word;
  };
  int different = 0;
  for (uint32_t i = 0; i < 2000; ++i) {
    const Case test = make_case(i);
    for (size_t f = 0; f < 2; ++f) {
      const Interpolation filter = f == 0 ? Interpolation::bilinear : Interpolation::bicubic;
      const Image result = resize(test.input, test.width, test.height, filter);
      if (crc32(result.pixels) != expected(i * 2 + f) && ++different <= 5) {
        MESSAGE("case " << i << " filter " << f << ": " << test.input.width << " x "
                        << test.input.height << " -> " << test.width << " x " << test.height);
      }
    }
  }
  CHECK(different == 0);
}

TEST_CASE("resize_window equals the same part of the whole result") {
  for (uint32_t i = 0; i < 200; ++i) {
    const Case test = make_case(i);
    const int64_t left = draw(i, 6) % test.width, top = draw(i, 7) % test.height;
    const int64_t width = 1 + draw(i, 8) % (test.width - left);
    const int64_t height = 1 + draw(i, 9) % (test.height - top);
    const Interpolation filter = i & 2 ? Interpolation::bilinear : Interpolation::bicubic;
    const Image whole = resize(test.input, test.width, test.height, filter);
    const Image part =
        resize_window(test.input, test.width, test.height, filter, left, top, width, height);
    CHECK(part.width == width);
    CHECK(part.height == height);
    CHECK(part.pixels == crop(whole, left, top, width, height).pixels);
  }
}

TEST_CASE("resize keeps constant pictures constant") {
  for (uint8_t value : {uint8_t{0}, uint8_t{1}, uint8_t{127}, uint8_t{255}}) {
    Image image{37, 23, 3, std::vector<uint8_t>(37 * 23 * 3, value)};
    for (auto filter : {Interpolation::bilinear, Interpolation::bicubic}) {
      const Image result = resize(image, 101, 7, filter);
      CHECK(std::all_of(result.pixels.begin(), result.pixels.end(),
                        [&](uint8_t p) { return p == value; }));
    }
  }
}

TEST_CASE("resize and crop refuse impossible sizes") {
  const Image image = picture(0, 8, 6, 3);
  CHECK_THROWS_WITH_AS(resize(image, 0, 5, Interpolation::bilinear),
                       "resize: expected a positive size, got 0 x 5", Error);
  CHECK_THROWS_WITH_AS(resize(Image{}, 5, 5, Interpolation::bilinear),
                       "resize: the image is empty (0 x 0)", Error);
  CHECK_THROWS_WITH_AS(crop(image, 4, 0, 5, 6),
                       "crop: window 5 x 6 at (4, 0) does not lie inside 8 x 6", Error);
  CHECK_THROWS_AS(crop(image, -1, 0, 2, 2), Error);
  CHECK_THROWS_AS(resize_window(image, 10, 10, Interpolation::bilinear, 5, 5, 6, 1), Error);
}

}  // namespace
}  // namespace graft
