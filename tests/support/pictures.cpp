// PNG: W3C recommendation, second edition; deflate's stored blocks: RFC 1951, 3.2.4.
#include "tests/support/pictures.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <fstream>
#include <sstream>
#include <unistd.h>

#include "engine/rng.h"
#include "kernels/error.h"

namespace graft::testing {
namespace fs = std::filesystem;
namespace {

std::string big_endian(uint32_t value) {
  return {static_cast<char>(value >> 24), static_cast<char>(value >> 16),
          static_cast<char>(value >> 8), static_cast<char>(value)};
}

uint32_t crc32(const std::string& bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) {
    crc ^= static_cast<uint8_t>(byte);
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1) ? 0xedb88320u : 0);
  }
  return ~crc;
}

uint32_t adler32(const std::string& bytes) {
  uint32_t a = 1, b = 0;
  for (const char byte : bytes) {
    a = (a + static_cast<uint8_t>(byte)) % 65521;
    b = (b + a) % 65521;
  }
  return (b << 16) | a;
}

std::string chunk(const std::string& type, const std::string& data) {
  return big_endian(static_cast<uint32_t>(data.size())) + type + data +
         big_endian(crc32(type + data));
}

std::string stored_deflate(const std::string& data) {
  std::string out = "\x78\x01";
  for (size_t at = 0; at < data.size(); at += 65535) {
    const size_t n = std::min<size_t>(65535, data.size() - at);
    const bool last = at + n == data.size();
    out += static_cast<char>(last);
    out += {static_cast<char>(n), static_cast<char>(n >> 8), static_cast<char>(~n),
            static_cast<char>(~n >> 8)};
    out += data.substr(at, n);
  }
  return out + big_endian(adler32(data));
}

uint8_t to_byte(double value) { return static_cast<uint8_t>(std::clamp(value, 0.0, 255.0)); }

}  // namespace

void write_png(const fs::path& path, int64_t width, int64_t height, int64_t channels,
               const std::vector<uint8_t>& pixels) {
  std::string rows;
  const int64_t stride = width * channels;
  for (int64_t y = 0; y < height; ++y) {
    rows += '\0';  // no filter
    rows.append(reinterpret_cast<const char*>(pixels.data()) + y * stride,
                static_cast<size_t>(stride));
  }
  std::string header =
      big_endian(static_cast<uint32_t>(width)) + big_endian(static_cast<uint32_t>(height));
  header += {8, static_cast<char>(channels == 3 ? 2 : 0), 0, 0, 0};
  std::ofstream file(path, std::ios::binary);
  file << "\x89PNG\r\n\x1a\n"
       << chunk("IHDR", header) << chunk("IDAT", stored_deflate(rows)) << chunk("IEND", "");
  GRAFT_CHECK(file.good(), path.string(), ": the test cannot write it");
}

void write_stripes(const fs::path& root, int images_per_class, int64_t size, uint64_t seed) {
  for (uint32_t label = 0; label < 2; ++label) {
    const fs::path folder = root / (label == 0 ? "across" : "down");
    fs::create_directories(folder);
    for (int i = 0; i < images_per_class; ++i) {
      RandomStream random({seed, static_cast<uint64_t>(i), label});
      const double period = random.uniform(3, 7), phase = random.uniform(0, 6.28);
      const double middle = random.uniform(80, 170), contrast = random.uniform(30, 60);
      std::vector<uint8_t> pixels;
      for (int64_t y = 0; y < size; ++y) {
        for (int64_t x = 0; x < size; ++x) {
          const double along = static_cast<double>(label == 0 ? y : x);
          const double wave = std::sin(along * 6.2832 / period + phase);
          for (int c = 0; c < 3; ++c) {
            pixels.push_back(to_byte(middle + contrast * wave + 15 * random.normal()));
          }
        }
      }
      write_png(folder / ("picture" + std::to_string(i) + ".png"), size, size, 3, pixels);
    }
  }
}

TemporaryFolder::TemporaryFolder() {
  std::string name = (fs::temp_directory_path() / "graft-test-XXXXXX").string();
  GRAFT_CHECK(mkdtemp(name.data()) != nullptr, name, ": the test cannot make a folder");
  path_ = name;
}

TemporaryFolder::~TemporaryFolder() {
  std::error_code ignored;
  fs::remove_all(path_, ignored);
}

std::string file_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  GRAFT_CHECK(file.is_open(), path.string(), ": the test cannot read it");
  std::ostringstream all;
  all << file.rdbuf();
  return all.str();
}

}  // namespace graft::testing
