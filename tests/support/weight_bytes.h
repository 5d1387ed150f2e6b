// Weight files made by hand, good and bad: safetensors, zip archives and pickles as strings of
// bytes.
#pragma once

#include <cstring>
#include <memory>
#include <string>
#include <vector>
#include <zlib.h>

#include "engine/io/formats.h"
#include "kernels/error.h"

namespace graft::test {

// The lowest `count` bytes of a number, little-endian.
inline std::string little(uint64_t value, int count) {
  std::string bytes;
  for (int i = 0; i < count; ++i) bytes += static_cast<char>(value >> (8 * i));
  return bytes;
}

// A file in a buffer of exactly its size, so that AddressSanitizer sees a read beyond its end.
inline FileBytes in_memory(const std::string& bytes, const std::string& name = "file") {
  const std::shared_ptr<uint8_t[]> copy(new uint8_t[bytes.size()]);
  if (!bytes.empty()) std::memcpy(copy.get(), bytes.data(), bytes.size());
  return {name, {copy.get(), bytes.size()}, copy};
}

// What a call throws as Error; empty when it throws nothing.
template <class Call>
std::string error_of(Call call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

inline std::string safetensors_bytes(const std::string& header, const std::string& data = "") {
  return little(header.size(), 8) + header + data;
}

// --- zip
struct ZipRecord {
  std::string name;
  std::string bytes;
  bool deflated = false;
  bool checksum = true;
};

inline std::string deflated(const std::string& bytes) {
  z_stream stream{};
  deflateInit2(&stream, 9, Z_DEFLATED, -MAX_WBITS, 8, Z_DEFAULT_STRATEGY);
  std::string packed(deflateBound(&stream, bytes.size()), '\0');
  stream.next_in = reinterpret_cast<Bytef*>(const_cast<char*>(bytes.data()));
  stream.avail_in = static_cast<uInt>(bytes.size());
  stream.next_out = reinterpret_cast<Bytef*>(packed.data());
  stream.avail_out = static_cast<uInt>(packed.size());
  deflate(&stream, Z_FINISH);
  packed.resize(stream.total_out);
  deflateEnd(&stream);
  return packed;
}

// As PyTorch writes it: sizes only in the directory. With `zip64`, all sizes and the end record are
// in their 64-bit form.
inline std::string zip_bytes(const std::vector<ZipRecord>& records, bool zip64 = false) {
  std::string file, directory;
  for (const ZipRecord& record : records) {
    const std::string stored = record.deflated ? deflated(record.bytes) : record.bytes;
    const uint32_t crc =
        record.checksum
            ? static_cast<uint32_t>(crc32(0, reinterpret_cast<const Bytef*>(record.bytes.data()),
                                          static_cast<uInt>(record.bytes.size())))
            : 0;
    const std::string method = little(record.deflated ? 8 : 0, 2);
    const uint64_t at = file.size();
    file += "PK\x03\x04" + little(20, 2) + little(0x0808, 2) + method + std::string(16, '\0') +
            little(record.name.size(), 2) + little(0, 2) + record.name + stored;
    const std::string extra = zip64
                                  ? little(1, 2) + little(24, 2) + little(record.bytes.size(), 8) +
                                        little(stored.size(), 8) + little(at, 8)
                                  : "";
    const auto size = [&](uint64_t value) { return little(zip64 ? 0xFFFFFFFF : value, 4); };
    directory += "PK\x01\x02" + little(20, 2) + little(20, 2) + little(0x0808, 2) + method +
                 std::string(4, '\0') + little(crc, 4) + size(stored.size()) +
                 size(record.bytes.size()) + little(record.name.size(), 2) +
                 little(extra.size(), 2) + little(0, 2) + std::string(8, '\0') + size(at) +
                 record.name + extra;
  }
  const uint64_t begin = file.size(), count = records.size();
  file += directory;
  if (zip64) {
    const uint64_t end64 = file.size();
    file += "PK\x06\x06" + little(44, 8) + little(45, 2) + little(45, 2) + little(0, 4) +
            little(0, 4) + little(count, 8) + little(count, 8) + little(directory.size(), 8) +
            little(begin, 8);
    file += "PK\x06\x07" + little(0, 4) + little(end64, 8) + little(1, 4);
    return file + "PK\x05\x06" + little(0, 4) + little(0xFFFF, 2) + little(0xFFFF, 2) +
           little(0xFFFFFFFF, 4) + little(0xFFFFFFFF, 4) + little(0, 2);
  }
  return file + "PK\x05\x06" + little(0, 4) + little(count, 2) + little(count, 2) +
         little(directory.size(), 4) + little(begin, 4) + little(0, 2);
}

// --- pickles, put together from opcodes
namespace pickle {

inline std::string string(const std::string& chars) {
  return "X" + little(chars.size(), 4) + chars;
}
inline std::string integer(int64_t value) {
  return value >= INT32_MIN && value <= INT32_MAX
             ? "J" + little(static_cast<uint64_t>(value), 4)
             : "\x8a\x08" + little(static_cast<uint64_t>(value), 8);
}
inline std::string tuple(const std::vector<std::string>& items) {
  std::string bytes = "(";
  for (const std::string& item : items) bytes += item;
  return bytes + "t";
}
inline std::string integers(const std::vector<int64_t>& values) {
  std::vector<std::string> items;
  for (const int64_t value : values) items.push_back(integer(value));
  return tuple(items);
}
inline std::string list(const std::vector<std::string>& items) {
  std::string bytes = "](";
  for (const std::string& item : items) bytes += item;
  return bytes + "e";
}
inline std::string dict(const std::vector<std::pair<std::string, std::string>>& items) {
  std::string bytes = "}(";
  for (const auto& [key, value] : items) bytes += string(key) + value;
  return bytes + "u";
}
inline std::string global(const std::string& module, const std::string& name) {
  return "c" + module + "\n" + name + "\n";
}
inline std::string call(const std::string& callee, const std::vector<std::string>& arguments) {
  return callee + tuple(arguments) + "R";
}
inline std::string whole(const std::string& body) { return "\x80\x02" + body + "."; }

struct TensorSpec {
  std::string storage = "FloatStorage";
  std::string key = "0";
  int64_t count = 4;
  int64_t offset = 0;
  std::vector<int64_t> size = {4};
  std::vector<int64_t> stride = {1};
};

inline std::string storage(const TensorSpec& spec) {
  return tuple({string("storage"), global("torch", spec.storage), string(spec.key), string("cpu"),
                integer(spec.count)}) +
         "Q";
}
inline std::string tensor(const TensorSpec& spec) {
  return call(global("torch._utils", "_rebuild_tensor_v2"),
              {storage(spec), integer(spec.offset), integers(spec.size), integers(spec.stride),
               "\x89", "}"});
}

}  // namespace pickle

// A PyTorch archive with one pickle and the records of its storages, keyed "0", "1" ...
inline std::string torch_zip(const std::string& body, const std::vector<std::string>& storages,
                             const std::string& byteorder = "little") {
  std::vector<ZipRecord> records = {{"archive/data.pkl", pickle::whole(body)},
                                    {"archive/byteorder", byteorder}};
  for (size_t i = 0; i < storages.size(); ++i) {
    records.push_back({"archive/data/" + std::to_string(i), storages[i]});
  }
  records.push_back({"archive/version", "3\n"});
  return zip_bytes(records);
}

// The format before 1.6. `counts` are the elements of each storage.
inline std::string torch_legacy(const std::string& body,
                                const std::vector<std::pair<int64_t, std::string>>& storages) {
  std::string file("\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e");
  std::vector<std::string> keys;
  std::string data;
  for (size_t i = 0; i < storages.size(); ++i) {
    keys.push_back(pickle::string(std::to_string(i)));
    data += little(static_cast<uint64_t>(storages[i].first), 8) + storages[i].second;
  }
  return file + pickle::whole(pickle::integer(1001)) +
         pickle::whole(pickle::dict({{"little_endian", "\x88"}})) + pickle::whole(body) +
         pickle::whole(pickle::list(keys)) + data;
}

}  // namespace graft::test
