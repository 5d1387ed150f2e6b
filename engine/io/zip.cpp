// Sizes come from the central directory alone: PyTorch writes local headers without them. What both
// places do say (the name, the method) must agree, and entries must not overlap, so that no two
// readers can see two different archives in one file and no small file unfolds many times over.
#include "engine/io/zip.h"

#include <algorithm>
#include <zlib.h>

#include "engine/storage.h"

namespace graft {
namespace {

constexpr uint32_t kLocalHeader = 0x04034b50, kDirectoryEntry = 0x02014b50;
constexpr uint32_t kEnd = 0x06054b50, kEnd64 = 0x06064b50, kLocator64 = 0x07064b50;
constexpr size_t kEndBytes = 22, kLocatorBytes = 20, kMaxComment = 65535;
constexpr uint16_t kStored = 0, kDeflated = 8, kEncrypted = 1;
// Deflate cannot do better than 258 bytes from two bits.
constexpr uint64_t kMaxRatio = 1032;

uint32_t word_at(ByteSpan bytes, size_t at) {
  uint32_t word;
  std::memcpy(&word, bytes.data() + at, sizeof word);
  return word;
}

// The end record is the last thing in the file but for a comment of the length it tells.
size_t find_end(ByteSpan bytes, const std::string& where) {
  if (bytes.size() >= kEndBytes) {
    const size_t last = bytes.size() - kEndBytes;
    const size_t first = last - std::min(last, kMaxComment);
    for (size_t at = last + 1; at-- > first;) {
      const size_t comment = bytes[at + 20] + 256u * bytes[at + 21];
      if (word_at(bytes, at) == kEnd && comment == last - at) return at;
    }
  }
  fail(where,
       ": the zip archive has no directory at its end: the file is cut short (an unfinished ",
       "download?) or damaged");
}

// The sizes that a zip64 extra field carries for those that do not fit into 32 bits.
void apply_zip64(ByteSpan extra, const std::string& where, ZipEntry& entry) {
  ByteReader fields(extra, where);
  while (fields.remaining() >= 4) {
    const auto id = fields.little<uint16_t>("extra field");
    const auto bytes = fields.little<uint16_t>("extra field");
    ByteReader field(fields.take(bytes, "extra field"), where);
    if (id != 1) continue;
    for (uint64_t* value : {&entry.bytes, &entry.compressed_bytes, &entry.header_at}) {
      if (*value == 0xFFFFFFFF) *value = field.little<uint64_t>("zip64 size");
    }
    return;
  }
}

void inflate_into(ByteSpan from, std::span<uint8_t> to, const std::string& where) {
  z_stream stream{};
  GRAFT_CHECK(inflateInit2(&stream, -MAX_WBITS) == Z_OK, where, ": inflate: out of memory");
  struct Ender {
    z_stream* stream;
    ~Ender() { inflateEnd(stream); }
  } ender{&stream};
  constexpr size_t kChunk = size_t{1} << 30;  // zlib counts in 32 bits
  uint8_t nothing = 0;
  size_t read = 0, written = 0;
  int status = Z_OK;
  while (status == Z_OK) {
    const size_t in = std::min(from.size() - read, kChunk);
    const size_t out = std::min(to.size() - written, kChunk);
    stream.next_in = const_cast<Bytef*>(from.data() + read);
    stream.avail_in = static_cast<uInt>(in);
    stream.next_out = to.empty() ? &nothing : to.data() + written;
    stream.avail_out = static_cast<uInt>(out);
    status = inflate(&stream, Z_NO_FLUSH);
    read += in - stream.avail_in;
    written += out - stream.avail_out;
  }
  GRAFT_CHECK(status == Z_STREAM_END && written == to.size() && read == from.size(), where,
              ": does not unpack to the ", to.size(), " bytes its directory entry tells; the file ",
              "is damaged");
}

uint32_t crc_of(ByteSpan bytes) {
  return static_cast<uint32_t>(crc32_z(0, bytes.data(), bytes.size()));
}

}  // namespace

ZipArchive::ZipArchive(const FileBytes& file) : file_(file), in_(file.bytes, file.name) {
  const size_t end_at = find_end(file.bytes, file.name);
  in_.seek(end_at + 4, "end record");
  const auto disk = in_.little<uint16_t>("end record");
  const auto directory_disk = in_.little<uint16_t>("end record");
  const auto entries_here = in_.little<uint16_t>("end record");
  uint64_t count = in_.little<uint16_t>("end record");
  uint64_t bytes = in_.little<uint32_t>("end record");
  uint64_t begin = in_.little<uint32_t>("end record");
  GRAFT_CHECK(disk == directory_disk && entries_here == count, file.name,
              ": a zip archive in several parts; join them first");
  uint64_t directory_end = end_at;

  if (end_at >= kLocatorBytes && word_at(file.bytes, end_at - kLocatorBytes) == kLocator64) {
    in_.seek(end_at - kLocatorBytes + 8, "zip64 locator");
    directory_end = in_.little<uint64_t>("zip64 locator");
    in_.seek(directory_end, "zip64 end record");
    GRAFT_CHECK(in_.little<uint32_t>("zip64 end record") == kEnd64, file.name, ": byte ",
                directory_end, ": no zip64 end record where the locator points");
    in_.take(8 + 2 + 2 + 4 + 4 + 8, "zip64 end record");
    const auto count64 = in_.little<uint64_t>("zip64 end record");
    const auto bytes64 = in_.little<uint64_t>("zip64 end record");
    const auto begin64 = in_.little<uint64_t>("zip64 end record");
    GRAFT_CHECK((count == 0xFFFF || count == count64) &&
                    (bytes == 0xFFFFFFFF || bytes == bytes64) &&
                    (begin == 0xFFFFFFFF || begin == begin64),
                file.name, ": the two end records of the zip archive disagree");
    count = count64, bytes = bytes64, begin = begin64;
  }
  GRAFT_CHECK(begin <= directory_end && bytes == directory_end - begin, file.name,
              ": the zip directory is said to be ", bytes, " bytes at byte ", begin,
              ", but it ends at byte ", directory_end,
              "; the file is damaged, or two archives were joined into one");
  read_directory(begin, directory_end, count);
  check_apart(begin);
}

void ZipArchive::read_directory(uint64_t begin, uint64_t end, uint64_t count) {
  constexpr uint64_t kEntryBytes = 46;
  GRAFT_CHECK(count <= (end - begin) / kEntryBytes, in_.where(), ": a zip directory of ",
              end - begin, " bytes cannot hold ", count, " entries");
  in_.seek(begin, "zip directory");
  entries_.reserve(count);
  for (uint64_t i = 0; i < count; ++i) {
    const size_t at = in_.position();
    GRAFT_CHECK(in_.little<uint32_t>("zip directory") == kDirectoryEntry, in_.where(), ": byte ",
                at, ": entry ", i, " of the zip directory has no signature");
    in_.take(4, "zip directory");
    const auto flags = in_.little<uint16_t>("zip directory");
    ZipEntry entry;
    entry.method = in_.little<uint16_t>("zip directory");
    in_.take(4, "zip directory");
    entry.crc = in_.little<uint32_t>("zip directory");
    entry.compressed_bytes = in_.little<uint32_t>("zip directory");
    entry.bytes = in_.little<uint32_t>("zip directory");
    const auto name_bytes = in_.little<uint16_t>("zip directory");
    const auto extra_bytes = in_.little<uint16_t>("zip directory");
    const auto comment_bytes = in_.little<uint16_t>("zip directory");
    in_.take(8, "zip directory");
    entry.header_at = in_.little<uint32_t>("zip directory");
    entry.name = in_.chars(name_bytes, "name in the zip directory");
    apply_zip64(in_.take(extra_bytes, "zip directory"), in_.where(), entry);
    in_.take(comment_bytes, "zip directory");

    const std::string subject = text(in_.where(), ": record ", printable(entry.name));
    GRAFT_CHECK(!(flags & kEncrypted), subject, " is encrypted; decrypt the archive first");
    GRAFT_CHECK(entry.method == kStored || entry.method == kDeflated, subject,
                " is packed by method ", entry.method, "; stored (0) and deflated (8) can be read");
    GRAFT_CHECK(entry.method != kStored || entry.bytes == entry.compressed_bytes, subject,
                " is stored, but its two sizes differ: ", entry.bytes, " and ",
                entry.compressed_bytes);
    GRAFT_CHECK(entry.bytes / kMaxRatio <= entry.compressed_bytes, subject, " cannot hold ",
                entry.bytes, " bytes in ", entry.compressed_bytes, " packed ones");
    GRAFT_CHECK(by_name_.emplace(entry.name, entries_.size()).second, subject,
                " stands twice in the zip directory");
    entries_.push_back(entry);
  }
  GRAFT_CHECK(in_.position() == end, in_.where(), ": the zip directory ends at byte ",
              in_.position(), ", not at ", end, " as its end record tells");
  for (ZipEntry& entry : entries_) locate_data(entry);
}

void ZipArchive::locate_data(ZipEntry& entry) {
  const std::string subject = text(in_.where(), ": record ", printable(entry.name));
  in_.seek(entry.header_at, "zip local header");
  GRAFT_CHECK(in_.little<uint32_t>("zip local header") == kLocalHeader, subject, ": byte ",
              entry.header_at, ": no local header where the directory points");
  in_.take(4, "zip local header");
  const auto method = in_.little<uint16_t>("zip local header");
  in_.take(16, "zip local header");
  const auto name_bytes = in_.little<uint16_t>("zip local header");
  const auto extra_bytes = in_.little<uint16_t>("zip local header");
  const auto name = in_.chars(name_bytes, "name in a zip local header");
  GRAFT_CHECK(name == entry.name && method == entry.method, subject,
              ": its local header tells another name or method (", printable(name), ", ", method,
              ")");
  in_.take(extra_bytes, "zip local header");
  entry.data_at = in_.position();
  in_.take(entry.compressed_bytes, "zip record");
}

void ZipArchive::check_apart(uint64_t directory) const {
  std::vector<const ZipEntry*> order;
  for (const ZipEntry& entry : entries_) order.push_back(&entry);
  std::ranges::sort(order, {}, &ZipEntry::header_at);
  for (size_t i = 0; i < order.size(); ++i) {
    const uint64_t next = i + 1 < order.size() ? order[i + 1]->header_at : directory;
    GRAFT_CHECK(order[i]->data_at + order[i]->compressed_bytes <= next, in_.where(), ": record ",
                printable(order[i]->name), " runs into what follows it at byte ", next);
  }
}

const ZipEntry* ZipArchive::find(std::string_view name) const {
  const auto found = by_name_.find(name);
  return found == by_name_.end() ? nullptr : &entries_[found->second];
}

Record ZipArchive::read(const ZipEntry& entry) const {
  const std::string subject = text(in_.where(), ": record ", printable(entry.name));
  Record record{file_.bytes.subspan(entry.data_at, entry.compressed_bytes), file_.owner};
  if (entry.method == kDeflated) {
    auto unpacked = std::make_shared<Storage>(entry.bytes, kCpu);
    const std::span<uint8_t> bytes(static_cast<uint8_t*>(unpacked->data()), entry.bytes);
    inflate_into(record.bytes, bytes, subject);
    record = {bytes, unpacked};
  }
  if (entry.crc != 0) {
    const uint32_t crc = crc_of(record.bytes);
    GRAFT_CHECK(crc == entry.crc, subject, " (byte ", entry.data_at,
                "): the checksum of its contents is ", crc, ", not ", entry.crc,
                " as the archive tells; the file is damaged, fetch it again");
  }
  return record;
}

}  // namespace graft
