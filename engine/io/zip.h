// Reads a zip archive out of memory: central directory, zip64, stored and deflated entries. Format:
// PKWARE's APPNOTE.TXT 6.3.
#pragma once

#include <map>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/byte_reader.h"
#include "engine/io/file.h"

namespace graft {

struct ZipEntry {
  std::string_view name;
  uint16_t method = 0;
  uint32_t crc = 0;  // 0 also stands for "not computed": PyTorch can be told to save so
  uint64_t compressed_bytes = 0;
  uint64_t bytes = 0;
  uint64_t header_at = 0;  // of the local header
  uint64_t data_at = 0;
};

// Bytes of a record and what keeps them alive.
struct Record {
  std::span<uint8_t> bytes;
  std::shared_ptr<void> owner;
};

class ZipArchive {
 public:
  // Reads and checks the directory: entries lie inside the file, apart from each other, once each.
  explicit ZipArchive(const FileBytes& file);

  const std::vector<ZipEntry>& entries() const { return entries_; }  // in the directory's order
  const ZipEntry* find(std::string_view name) const;
  // The contents: of a stored entry a view of the file. Verifies the checksum unless it is 0.
  Record read(const ZipEntry& entry) const;

 private:
  void read_directory(uint64_t begin, uint64_t end, uint64_t count);
  void locate_data(ZipEntry& entry);
  void check_apart(uint64_t directory) const;

  FileBytes file_;
  ByteReader in_;
  std::vector<ZipEntry> entries_;
  std::map<std::string_view, size_t> by_name_;
};

}  // namespace graft
