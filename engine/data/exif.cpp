// Source: TIFF 6.0 section 2 (header, image file directory), EXIF 2.32 tag 0x0112.
#include <cstddef>

#include "engine/data/file_structure.h"

namespace graft {
namespace {

// Reads integers of either byte order; out of range gives 0 and clears `sound`.
struct TiffReader {
  std::span<const uint8_t> bytes;
  bool little = true;
  bool sound = true;

  uint32_t read(uint64_t offset, int size) {
    if (offset + static_cast<uint64_t>(size) > bytes.size()) {
      sound = false;
      return 0;
    }
    uint32_t value = 0;
    for (int i = 0; i < size; ++i) {
      const int from = little ? size - 1 - i : i;
      value = value << 8 | bytes[static_cast<size_t>(offset) + static_cast<size_t>(from)];
    }
    return value;
  }
};

constexpr uint32_t kOrientationTag = 0x0112;
constexpr uint32_t kTypeShort = 3, kTypeLong = 4;

}  // namespace

int exif_orientation(std::span<const uint8_t> tiff) {
  if (tiff.size() < 8) return 1;
  TiffReader reader{tiff};
  if (tiff[0] == 'I' && tiff[1] == 'I') {
    reader.little = true;
  } else if (tiff[0] == 'M' && tiff[1] == 'M') {
    reader.little = false;
  } else {
    return 1;
  }
  if (reader.read(2, 2) != 42) return 1;
  const uint64_t directory = reader.read(4, 4);
  const uint32_t entries = reader.read(directory, 2);
  for (uint32_t i = 0; i < entries && reader.sound; ++i) {
    const uint64_t entry = directory + 2 + 12ull * i;
    if (reader.read(entry, 2) != kOrientationTag) continue;
    const uint32_t type = reader.read(entry + 2, 2);
    // The value sits left-justified in the entry's last four bytes.
    const uint32_t value = type == kTypeShort  ? reader.read(entry + 8, 2)
                           : type == kTypeLong ? reader.read(entry + 8, 4)
                                               : 0;
    return reader.sound && value >= 1 && value <= 8 ? static_cast<int>(value) : 1;
  }
  return 1;
}

}  // namespace graft
