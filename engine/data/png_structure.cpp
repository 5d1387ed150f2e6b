#include <array>
#include <cstring>
#include <string_view>
#include <zlib.h>

#include "engine/data/file_structure.h"
#include "kernels/error.h"

namespace graft {
namespace {

using Bytes = std::span<const uint8_t>;

constexpr size_t kSignature = 8;
// length, type and CRC around a chunk's payload
constexpr size_t kFrame = 12;

uint32_t big_endian(Bytes bytes, size_t at) {
  return uint32_t{bytes[at]} << 24 | uint32_t{bytes[at + 1]} << 16 | uint32_t{bytes[at + 2]} << 8 |
         bytes[at + 3];
}

struct Chunk {
  std::string_view type;
  Bytes payload;
  uint32_t crc = 0;
  bool critical() const { return (type[0] & 0x20) == 0; }
  // Over type and payload, which lie side by side.
  bool sound() const {
    const auto* data = reinterpret_cast<const Bytef*>(type.data());
    return crc32(crc32(0, nullptr, 0), data, static_cast<uInt>(payload.size() + 4)) == crc;
  }
};

// Reads the chunk at `at` and moves behind it; false when the file ends before the chunk does.
bool read_chunk(Bytes bytes, size_t& at, Chunk& chunk) {
  if (at > bytes.size() || bytes.size() - at < kFrame) return false;
  const size_t length = big_endian(bytes, at);
  if (length > bytes.size() - at - kFrame) return false;
  chunk.type = {reinterpret_cast<const char*>(bytes.data()) + at + 4, 4};
  chunk.payload = bytes.subspan(at + 8, length);
  chunk.crc = big_endian(bytes, at + 8 + length);
  at += length + kFrame;
  return true;
}

// Bits of a pixel for a colour type and sample depth; 0 when there is no such colour type.
int64_t bits_of_pixel(int colour_type, int depth) {
  constexpr int kSamples[] = {1, 0, 3, 1, 2, 0, 4};
  return colour_type <= 6 ? kSamples[colour_type] * depth : 0;
}

class Inflater {
 public:
  Inflater() { ready_ = inflateInit(&stream_) == Z_OK; }
  ~Inflater() { inflateEnd(&stream_); }
  Inflater(const Inflater&) = delete;
  Inflater& operator=(const Inflater&) = delete;

  // False when the data is damaged or more than `limit` bytes came out.
  bool feed(Bytes bytes, uint64_t limit) {
    if (!ready_) return false;
    stream_.next_in = const_cast<Bytef*>(bytes.data());
    stream_.avail_in = static_cast<uInt>(bytes.size());
    while (!ended_ && stream_.avail_in > 0) {
      stream_.next_out = scratch_.data();
      stream_.avail_out = static_cast<uInt>(scratch_.size());
      const int status = inflate(&stream_, Z_NO_FLUSH);
      produced_ += scratch_.size() - stream_.avail_out;
      if (status == Z_STREAM_END) ended_ = true;
      if ((status != Z_OK && status != Z_STREAM_END) || produced_ > limit) return false;
    }
    return true;
  }
  bool ended() const { return ended_; }
  uint64_t produced() const { return produced_; }

 private:
  z_stream stream_{};
  std::array<uint8_t, 32768> scratch_;
  uint64_t produced_ = 0;
  bool ready_ = false, ended_ = false;
};

}  // namespace

FileStructure walk_png(Bytes bytes) {
  FileStructure result;
  size_t at = kSignature;
  bool first = true, seen_data = false;
  for (Chunk chunk;; first = false) {
    const size_t start = at;
    if (!read_chunk(bytes, at, chunk)) {
      return {"truncated PNG: the data ends before the IEND chunk"};
    }
    if (first != (chunk.type == "IHDR") || (first && chunk.payload.size() != 13)) {
      return {"damaged PNG: it does not begin with one IHDR chunk"};
    }
    if (chunk.critical() && !chunk.sound()) {
      return {text("damaged PNG: wrong checksum in the chunk at byte ", start)};
    }
    if (first) {
      result.width = big_endian(chunk.payload, 0);
      result.height = big_endian(chunk.payload, 4);
    } else if (chunk.type == "IDAT") {
      seen_data = true;
    } else if (chunk.type == "IEND") {
      if (!seen_data) return {"damaged PNG: no picture data before IEND"};
      return result;
    } else if (chunk.type == "eXIf") {
      // Some writers keep the prefix that JPEG needs.
      const bool prefixed =
          chunk.payload.size() >= 6 && std::memcmp(chunk.payload.data(), "Exif\0\0", 6) == 0;
      result.orientation = exif_orientation(chunk.payload.subspan(prefixed ? 6 : 0));
    }
  }
}

std::string inflate_fault(Bytes png) {
  Inflater inflater;
  uint64_t limit = 0;
  size_t at = kSignature;
  for (Chunk chunk; read_chunk(png, at, chunk);) {
    if (chunk.type == "IHDR") {
      const uint64_t width = big_endian(chunk.payload, 0), height = big_endian(chunk.payload, 4);
      const int64_t bits = bits_of_pixel(chunk.payload[9], chunk.payload[8]);
      // A filter byte a row; interlacing splits each row in up to four and rounds each part up.
      limit = (width * static_cast<uint64_t>(bits) + 7) / 8 * height + 8 * height + 64;
    } else if (chunk.type == "IDAT") {
      if (!inflater.feed(chunk.payload, limit)) {
        return inflater.produced() > limit ? "damaged PNG: more picture data than its size allows"
                                           : "damaged PNG: the compressed data is corrupt";
      }
    }
  }
  return inflater.ended() ? "" : "truncated PNG: the compressed data ends early";
}

}  // namespace graft
