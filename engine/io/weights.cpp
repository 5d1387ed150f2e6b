// Tells weight files apart by content.
#include "engine/io/weights.h"

#include <cstring>

#include "engine/io/byte_reader.h"
#include "engine/io/formats.h"

namespace graft {
namespace {

bool starts_with(const FileBytes& file, std::string_view prefix, size_t at = 0) {
  return file.bytes.size() >= at + prefix.size() &&
         std::memcmp(file.bytes.data() + at, prefix.data(), prefix.size()) == 0;
}

// A header length that no text file has in its first eight bytes, then the start of JSON.
bool looks_like_safetensors(const FileBytes& file) {
  if (file.bytes.size() < 9) return false;
  uint64_t header;
  std::memcpy(&header, file.bytes.data(), sizeof header);
  return header < (uint64_t{1} << 40) &&
         std::string_view("{ \t\r\n").find(static_cast<char>(file.bytes[8])) !=
             std::string_view::npos;
}

}  // namespace

const Tensor* WeightFile::find(const std::string& name) const {
  for (const FileTensor& entry : tensors) {
    if (entry.name == name) return &entry.tensor;
  }
  return nullptr;
}

bool checked_bytes(const Shape& shape, uint64_t item_bytes, uint64_t* bytes) {
  int64_t product = 1;
  for (const int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(product, size, &product)) return false;
  }
  return !__builtin_mul_overflow(static_cast<uint64_t>(product), item_bytes, bytes) &&
         *bytes <= static_cast<uint64_t>(INT64_MAX);
}

Tensor tensor_over(uint8_t* data, const std::shared_ptr<void>& owner, Shape shape, Dtype dtype) {
  const size_t bytes = static_cast<size_t>(numel_of(shape)) * size_of(dtype);
  if (bytes > 0 && reinterpret_cast<uintptr_t>(data) % size_of(dtype) == 0) {
    return Tensor(std::make_shared<Storage>(data, bytes, owner), 0, std::move(shape), dtype);
  }
  Tensor copy(std::move(shape), dtype);
  if (bytes > 0) std::memcpy(copy.raw(), data, bytes);
  return copy;
}

WeightFile parse_weights(const FileBytes& file) {
  // Zip, the magic number of a legacy checkpoint, and tar, which the PyTorch reader refuses by
  // name.
  if (starts_with(file, "PK\x03\x04") || starts_with(file, "PK\x05\x06") ||
      starts_with(file, "\x80\x02\x8a\x0a\x6c\xfc\x9c\x46\xf9\x20\x6a\xa8\x50\x19\x2e") ||
      starts_with(file, "ustar", 257)) {
    return parse_torch(file);
  }
  if (looks_like_safetensors(file)) return parse_safetensors(file);
  GRAFT_CHECK(!starts_with(file, "version https://git-lfs"), file.name,
              ": is a Git LFS pointer, not the weights; fetch them with `git lfs pull`");
  GRAFT_CHECK(!starts_with(file, "<!DOCTYPE") && !starts_with(file, "<!doctype") &&
                  !starts_with(file, "<html"),
              file.name, ": is a web page, not a weight file; the download went wrong");
  fail(file.name, ": not a weight file: expected safetensors or a PyTorch checkpoint");
}

WeightFile read_weights(const std::filesystem::path& path) { return parse_weights(map_file(path)); }
WeightFile read_safetensors(const std::filesystem::path& path) {
  return parse_safetensors(map_file(path));
}
WeightFile read_torch(const std::filesystem::path& path) { return parse_torch(map_file(path)); }

}  // namespace graft
