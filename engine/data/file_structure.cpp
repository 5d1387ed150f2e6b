#include "engine/data/file_structure.h"

#include <cstring>
#include <string_view>

#include "kernels/error.h"

namespace graft {
namespace {

using Bytes = std::span<const uint8_t>;

bool has(Bytes bytes, size_t at, std::string_view wanted) {
  return bytes.size() >= at + wanted.size() &&
         std::memcmp(bytes.data() + at, wanted.data(), wanted.size()) == 0;
}

constexpr std::string_view kPngSignature("\x89PNG\r\n\x1a\n", 8);

uint32_t big_endian(Bytes bytes, size_t at, int size) {
  uint32_t value = 0;
  for (int i = 0; i < size; ++i) value = value << 8 | bytes[at + static_cast<size_t>(i)];
  return value;
}

// Real encoders write at most some dozens of progressive scans; thousands of them over a large
// frame are an attack on the decoder's time.
constexpr int kMaxScans = 100;

constexpr bool is_restart(uint8_t marker) { return marker >= 0xD0 && marker <= 0xD7; }
// SOF0..15 without DHT (C4), JPG (C8) and DAC (CC).
constexpr bool is_frame(uint8_t marker) {
  return marker >= 0xC0 && marker <= 0xCF && marker != 0xC4 && marker != 0xC8 && marker != 0xCC;
}

// The position of the next marker's 0xFF in entropy-coded data, where 0xFF00 is a stuffed byte.
size_t end_of_scan(Bytes bytes, size_t at) {
  while (at + 1 < bytes.size()) {
    const void* found = std::memchr(bytes.data() + at, 0xFF, bytes.size() - 1 - at);
    if (found == nullptr) break;
    at = static_cast<size_t>(static_cast<const uint8_t*>(found) - bytes.data());
    const uint8_t next = bytes[at + 1];
    if (next == 0xFF) {
      ++at;  // fill byte
    } else if (next == 0 || is_restart(next)) {
      at += 2;
    } else {
      return at;
    }
  }
  return bytes.size();
}

// A table defines at most 256 symbols, all of them in the segment (T.81 B.2.4.2). stb_image 2.27
// writes past its tables when there are more.
bool sound_huffman_tables(Bytes payload) {
  while (!payload.empty()) {
    if (payload.size() < 17) return false;
    size_t symbols = 0;
    for (size_t i = 1; i <= 16; ++i) symbols += payload[i];
    if (symbols > 256 || symbols > payload.size() - 17) return false;
    payload = payload.subspan(17 + symbols);
  }
  return true;
}

}  // namespace

SniffedKind sniff(Bytes bytes) {
  if (has(bytes, 0, "\xFF\xD8\xFF")) return {FileKind::jpeg, "JPEG", ""};
  if (has(bytes, 0, kPngSignature)) return {FileKind::png, "PNG", ""};
  const std::string convert = "convert it to JPEG or PNG";
  const auto other = [&](const char* name) { return SniffedKind{FileKind::other, name, convert}; };
  if (has(bytes, 0, "GIF8")) return other("GIF");
  if (has(bytes, 0, "RIFF") && has(bytes, 8, "WEBP")) return other("WebP");
  if (has(bytes, 0, std::string_view("II*\0", 4)) || has(bytes, 0, std::string_view("MM\0*", 4))) {
    return other("TIFF");
  }
  if (has(bytes, 0, "BM")) return other("BMP");
  if (has(bytes, 4, "ftypavif") || has(bytes, 4, "ftypavis")) return other("AVIF");
  if (has(bytes, 4, "ftyphei") || has(bytes, 4, "ftyphev") || has(bytes, 4, "ftypmif1")) {
    return other("HEIC");
  }
  if (has(bytes, 0, std::string_view("\0\0\0\x0CjP  ", 8))) return other("JPEG 2000");
  if (has(bytes, 0, "\xFF\x0A") || has(bytes, 0, std::string_view("\0\0\0\x0CJXL ", 8))) {
    return other("JPEG XL");
  }
  if (has(bytes, 0, "8BPS")) return other("Photoshop");
  if (has(bytes, 0, "%PDF")) return other("PDF");
  if (has(bytes, 0, "<svg") || has(bytes, 0, "<?xml")) return other("SVG or XML");
  const std::string again = "download the image again";
  if (has(bytes, 0, "<!DOCTYPE") || has(bytes, 0, "<!doctype") || has(bytes, 0, "<html")) {
    return {FileKind::other, "an HTML page", again};
  }
  if (has(bytes, 0, "version https://git-lfs")) {
    return {FileKind::other, "a Git LFS pointer", "fetch the real file with `git lfs pull`"};
  }
  if (has(bytes, 0, "PK\x03\x04")) return {FileKind::other, "a zip archive", "unpack it"};
  return {};
}

FileStructure walk_jpeg(Bytes bytes) {
  FileStructure result;
  const std::string truncated = "truncated JPEG: the data ends before the end-of-image marker";
  bool seen_frame = false, seen_exif = false;
  int scans = 0;
  size_t at = 2;
  for (;;) {
    if (at + 2 > bytes.size()) return {truncated};
    if (bytes[at] != 0xFF) {
      return {text("damaged JPEG: expected a marker at byte ", at, ", got ", int{bytes[at]})};
    }
    const uint8_t marker = bytes[at + 1];
    if (marker == 0xFF) {  // fill byte
      ++at;
      continue;
    }
    at += 2;
    if (marker == 0xD9) {
      if (scans == 0) return {"damaged JPEG: no picture data before the end-of-image marker"};
      return result;
    }
    if (marker == 0x01 || is_restart(marker)) continue;  // markers without a payload
    if (marker == 0x00 || marker == 0xD8) {
      return {text("damaged JPEG: marker ", int{marker}, " at byte ", at - 1)};
    }
    if (at + 2 > bytes.size()) return {truncated};
    const size_t length = big_endian(bytes, at, 2);
    if (length < 2) return {text("damaged JPEG: segment of length ", length, " at byte ", at)};
    if (length > bytes.size() - at) return {truncated};
    const Bytes payload = bytes.subspan(at + 2, length - 2);
    at += length;
    if (is_frame(marker)) {
      // Decoders keep state per frame header; a second one has been the way into more than one.
      if (seen_frame) return {"damaged JPEG: more than one frame header"};
      seen_frame = true;
      if (payload.size() < 6) return {"damaged JPEG: the frame header is too short"};
      result.height = big_endian(payload, 1, 2);
      result.width = big_endian(payload, 3, 2);
    } else if (marker == 0xC4) {
      if (!sound_huffman_tables(payload)) return {"damaged JPEG: impossible Huffman table"};
    } else if (marker == 0xE1 && !seen_exif && has(payload, 0, std::string_view("Exif\0\0", 6))) {
      seen_exif = true;
      result.orientation = exif_orientation(payload.subspan(6));
    } else if (marker == 0xDA) {
      if (!seen_frame) return {"damaged JPEG: picture data before the frame header"};
      if (++scans > kMaxScans) return {text("damaged JPEG: more than ", kMaxScans, " scans")};
      at = end_of_scan(bytes, at);
    }
  }
}

}  // namespace graft
