#include <algorithm>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <iterator>
#include <sstream>

#include "engine/data/file_structure.h"
#include "engine/data/image.h"
#include "engine/rng.h"
#include "kernels/error.h"

namespace graft {
namespace {

const std::filesystem::path kImages = GRAFT_SOURCE_DIR "/tests/data/images";

std::vector<uint8_t> read(const std::string& name) {
  std::ifstream file(kImages / name, std::ios::binary);
  std::vector<uint8_t> bytes{std::istreambuf_iterator<char>(file), {}};
  REQUIRE(!bytes.empty());
  return bytes;
}

// The message that decoding throws; "" when it succeeds.
std::string fault(const std::vector<uint8_t>& bytes, const DecodeLimits& limits = {}) {
  try {
    decode_image(bytes, 3, "x", limits);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

std::vector<uint8_t> bytes_of(std::string_view text) { return {text.begin(), text.end()}; }

TEST_CASE("every kind of file decodes to what Pillow reads") {
  std::ifstream golden(kImages / "pixels.txt");
  std::string name, hex;
  int64_t channels, width, height;
  int tolerance, files = 0;
  while (golden >> name >> channels >> width >> height >> tolerance >> hex) {
    INFO(name << ", " << channels << " channels");
    ++files;
    const Image image = load_image(kImages / name, channels);
    CHECK(image.width == width);
    CHECK(image.height == height);
    CHECK(image.channels == channels);
    REQUIRE(image.pixels.size() * 2 == hex.size());
    int worst = 0;
    for (size_t i = 0; i < image.pixels.size(); ++i) {
      const int expected = std::stoi(hex.substr(i * 2, 2), nullptr, 16);
      worst = std::max(worst, std::abs(expected - image.pixels[i]));
    }
    CHECK(worst <= tolerance);
  }
  CHECK(files == 66);
}

TEST_CASE("every truncation of a JPEG or PNG is an error") {
  for (const std::string name : {"rgb.jpg", "progressive.jpg", "restart.jpg", "exif6.jpg",
                                 "rgb.png", "interlaced.png", "palette.png"}) {
    const std::vector<uint8_t> whole = read(name);
    REQUIRE(fault(whole).empty());
    for (size_t size = 0; size < whole.size(); ++size) {
      const std::string message =
          fault({whole.begin(), whole.begin() + static_cast<int64_t>(size)});
      INFO(name << " cut to " << size << ": " << message);
      CHECK(!message.empty());
      if (size > 100) CHECK(message.find("truncated") != std::string::npos);
    }
  }
}

TEST_CASE("bytes after the end of the picture are allowed") {
  for (const char* name : {"rgb.jpg", "rgb.png"}) {
    std::vector<uint8_t> bytes = read(name);
    const Image image = decode_image(bytes, 3, name);
    bytes.insert(bytes.end(), 1000, 0xFF);
    CHECK(decode_image(bytes, 3, name).pixels == image.pixels);
  }
}

TEST_CASE("other kinds of files are named, with the remedy") {
  const auto expect = [](std::string_view head, const std::string& kind) {
    std::string bytes(head);
    bytes.resize(64, 'x');
    const std::string message = fault(bytes_of(bytes));
    INFO(message);
    CHECK(message.starts_with("x: not a JPEG or PNG image but " + kind + "; "));
  };
  expect("GIF89a", "GIF");
  expect("RIFF....WEBPVP8 ", "WebP");
  expect(std::string_view("II*\0", 4), "TIFF");
  expect(std::string_view("MM\0*", 4), "TIFF");
  expect("BM", "BMP");
  expect("....ftypheic", "HEIC");
  expect("....ftypavif", "AVIF");
  expect("<!DOCTYPE html>", "an HTML page");
  expect("version https://git-lfs.github.com/spec/v1", "a Git LFS pointer");
  expect("%PDF-1.4", "PDF");
  CHECK(fault(bytes_of("just some text")) == "x: not a JPEG or PNG image; remove it from the data");
  CHECK(fault({}) == "x: the file is empty; delete it or fetch it again");
}

TEST_CASE("limits are checked before a pixel is decoded") {
  CHECK(fault(read("bomb_size.png")) ==
        "x: 16000 x 16000 pixels, the limit is 89478485 in all and 16384 a side; scale the image "
        "down");
  CHECK(fault(read("bomb_data.png")).find("more picture data than its size allows") !=
        std::string::npos);
  CHECK(fault(read("short_data.png")).find("damaged or unusual PNG data") != std::string::npos);
  CHECK(fault(read("rgb.png"), {.max_pixels = 239})
            .starts_with("x: 20 x 12 pixels, the limit is 239"));
  CHECK(fault(read("rgb.png"), {.max_pixels = 240}).empty());
  CHECK(fault(read("rgb.jpg"), {.max_pixels = 239}).starts_with("x: 20 x 12 pixels"));
  CHECK(fault(read("rgb.jpg"), {.max_bytes = 100}).find("bytes, the limit is 100") !=
        std::string::npos);
}

TEST_CASE("a PNG with a wrong checksum is damaged") {
  std::vector<uint8_t> bytes = read("rgb.png");
  bytes[bytes.size() - 20] ^= 1;  // in the picture data
  CHECK(fault(bytes).find("wrong checksum") != std::string::npos);
}

TEST_CASE("a JPEG whose segments repeat or lack the frame header is refused") {
  const std::vector<uint8_t> whole = read("rgb.jpg");
  const uint8_t marker[] = {0xFF, 0xC0};
  const auto frame = std::search(whole.begin(), whole.end(), marker, marker + 2);
  REQUIRE(frame != whole.end());
  const int64_t length = 2 + frame[2] * 256 + frame[3];
  std::vector<uint8_t> twice = whole;
  twice.insert(twice.begin() + (frame - whole.begin()), frame, frame + length);
  CHECK(fault(twice).find("more than one frame header") != std::string::npos);
  std::vector<uint8_t> none = whole;
  none.erase(none.begin() + (frame - whole.begin()),
             none.begin() + (frame - whole.begin()) + length);
  CHECK(fault(none).find("before the frame header") != std::string::npos);
}

TEST_CASE("load_image names the file and the reason") {
  CHECK_THROWS_WITH_AS(load_image("/nowhere/a.jpg", 3),
                       "/nowhere/a.jpg: no such file; check the path", Error);
  CHECK_THROWS_WITH_AS(load_image(kImages, 3),
                       (kImages.string() + ": a folder where an image file was expected").c_str(),
                       Error);
  CHECK_THROWS_WITH_AS(load_image(kImages / "rgb.png", 2),
                       "decode_image: expected 1 or 3 channels, got 2", Error);
}

TEST_CASE("the orientation tag is read within bounds") {
  std::vector<uint8_t> tiff{'M',  'M', 0, 42, 0, 0, 0, 8, 0, 1, 1,
                            0x12, 0,   3, 0,  0, 0, 1, 0, 6, 0, 0};
  CHECK(exif_orientation(tiff) == 6);
  for (size_t size = 0; size < 20; ++size) {
    CHECK(exif_orientation({tiff.data(), size}) == 1);
  }
  tiff[19] = 9;
  CHECK(exif_orientation(tiff) == 1);
  tiff[19] = 6;
  tiff[4] = 0xFF;  // a directory far outside
  CHECK(exif_orientation(tiff) == 1);
  tiff[4] = 0;
  tiff[8] = 0xFF;  // 65,281 entries, of which one is there and is another tag
  tiff[11] = 0x13;
  CHECK(exif_orientation(tiff) == 1);
}

TEST_CASE("hostile files give an error or an image") {
  RandomStream random({20260101, 0, 0});
  int images = 0, errors = 0;
  for (const char* name : {"rgb.jpg", "subsampled.jpg", "progressive.jpg", "restart.jpg",
                           "grey.jpg", "cmyk.jpg", "exif6.jpg", "rgb.png", "grey16.png",
                           "interlaced.png", "palette_transparent.png", "exif5.png"}) {
    const std::vector<uint8_t> whole = read(name);
    for (int round = 0; round < 1500; ++round) {
      std::vector<uint8_t> bytes = whole;
      const int64_t changes = 1 + random.below(round % 3 == 0 ? 1 : 8);
      for (int64_t i = 0; i < changes; ++i) {
        const size_t at = static_cast<size_t>(random.below(static_cast<int64_t>(bytes.size())));
        switch (random.below(5)) {
          case 0:
            bytes[at] ^= static_cast<uint8_t>(1 << random.below(8));
            break;
          case 1:
            bytes[at] = static_cast<uint8_t>(random.bits());
            break;
          case 2:
            bytes[at] = 0xFF;
            break;
          case 3:
            bytes[at] = 0;
            break;
          default:
            bytes.erase(bytes.begin() + static_cast<int64_t>(at));
            break;
        }
        if (bytes.empty()) break;
      }
      try {
        // Small limits, so that a huge size in the header is refused and not tried.
        const Image image =
            decode_image(bytes, round % 2 == 0 ? 3 : 1, name, {.max_pixels = 1 << 20});
        CHECK(static_cast<int64_t>(image.pixels.size()) ==
              image.width * image.height * image.channels);
        ++images;
      } catch (const Error& error) {
        CHECK(std::string(error.what()).starts_with(name));
        ++errors;
      }
    }
  }
  MESSAGE(images << " images, " << errors << " errors");
  CHECK(images > 500);
  CHECK(errors > 500);
}

// PNG checksums stop nearly every mutation; with them repaired the decoder behind is reached.
TEST_CASE("hostile PNG chunks with right checksums give an error or an image") {
  RandomStream random({20260102, 0, 0});
  const auto crc = [](const uint8_t* data, size_t size) {
    uint32_t value = 0xFFFFFFFFu;
    for (size_t i = 0; i < size; ++i) {
      value ^= data[i];
      for (int bit = 0; bit < 8; ++bit) value = value & 1 ? 0xEDB88320u ^ (value >> 1) : value >> 1;
    }
    return ~value;
  };
  for (const char* name : {"rgb.png", "grey16.png", "interlaced.png", "palette_transparent.png"}) {
    const std::vector<uint8_t> whole = read(name);
    for (int round = 0; round < 1500; ++round) {
      std::vector<uint8_t> bytes = whole;
      for (int64_t i = 0, n = 1 + random.below(4); i < n; ++i) {
        const size_t at =
            16 + static_cast<size_t>(random.below(static_cast<int64_t>(bytes.size() - 16)));
        bytes[at] = static_cast<uint8_t>(random.bits());
      }
      for (size_t at = 8; at + 12 <= bytes.size();) {
        const size_t length = size_t{bytes[at]} << 24 | size_t{bytes[at + 1]} << 16 |
                              size_t{bytes[at + 2]} << 8 | bytes[at + 3];
        if (length > bytes.size() - at - 12) break;
        const uint32_t value = crc(bytes.data() + at + 4, length + 4);
        for (size_t b = 0; b < 4; ++b) {
          bytes[at + 8 + length + b] = static_cast<uint8_t>(value >> (24 - 8 * b));
        }
        at += length + 12;
      }
      try {
        const Image image = decode_image(bytes, 3, name, {.max_pixels = 1 << 20});
        CHECK(static_cast<int64_t>(image.pixels.size()) == image.width * image.height * 3);
      } catch (const Error&) {
      }
    }
  }
}

}  // namespace
}  // namespace graft
