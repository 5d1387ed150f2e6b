// What can be known of a JPEG or PNG file without decoding it: its kind, whether it is complete,
// and its EXIF orientation. stb_image returns a half-grey picture for a truncated JPEG and checks
// no PNG checksum, so this walk comes first.
#pragma once

#include <cstdint>
#include <span>
#include <string>

namespace graft {

enum class FileKind : uint8_t { jpeg, png, other };

struct SniffedKind {
  FileKind kind = FileKind::other;
  std::string name;    // "JPEG", "GIF", "an HTML page" ...; "" when unknown
  std::string remedy;  // what to do about a kind that cannot be read
};
// Told from the first bytes, never from the file's name.
SniffedKind sniff(std::span<const uint8_t> bytes);

struct FileStructure {
  std::string fault;  // "" when sound; else the reason, for people
  int64_t width = 0, height = 0;
  int orientation = 1;  // EXIF, 1..8
};
// Walks the segments of a JPEG up to its end marker. Sources: ITU-T T.81 annex B; EXIF in APP1.
// Bytes after the end marker are allowed (cameras append previews and padding).
FileStructure walk_jpeg(std::span<const uint8_t> bytes);
// Walks the chunks of a PNG up to IEND and checks the CRC of the critical ones. Source: PNG
// specification, third edition, sections 5 and 11.
FileStructure walk_png(std::span<const uint8_t> bytes);
// Inflates a PNG's picture data into nothing: "" when it is whole and no larger than the picture,
// else the fault. stb_image would inflate a small file of crafted data to gigabytes.
std::string inflate_fault(std::span<const uint8_t> png);

// The orientation tag of a TIFF block (the payload of APP1 after "Exif\0\0", or of a PNG eXIf
// chunk); 1 when it is absent, out of range or the block is damaged. Every read is bounds-checked.
int exif_orientation(std::span<const uint8_t> tiff);

}  // namespace graft
