// Small PNG files that tests make for themselves.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

namespace graft::testing {

// Rows top to bottom, `channels` (1 or 3) interleaved; stored without compression.
void write_png(const std::filesystem::path& path, int64_t width, int64_t height, int64_t channels,
               const std::vector<uint8_t>& pixels);

// A data set that a small network learns in a few epochs: root/across holds horizontal stripes,
// root/down vertical ones, of random period, phase, brightness and noise.
void write_stripes(const std::filesystem::path& root, int images_per_class, int64_t size,
                   uint64_t seed);

// A folder of its own for one test, removed with its contents at the end.
class TemporaryFolder {
 public:
  TemporaryFolder();
  ~TemporaryFolder();
  TemporaryFolder(const TemporaryFolder&) = delete;
  TemporaryFolder& operator=(const TemporaryFolder&) = delete;
  const std::filesystem::path& path() const { return path_; }
  std::filesystem::path operator/(const std::string& name) const { return path_ / name; }

 private:
  std::filesystem::path path_;
};

// The bytes of a file; throws when there is none.
std::string file_bytes(const std::filesystem::path& path);

}  // namespace graft::testing
