// Activations of a list of images, a row each, in memory or in a file.
//
// A file is a header (magic, element type, row's shape, number of rows, key), the rows, the images
// that could not be read, and a checksum of all before it, little-endian. The reader knows what the
// header has to be, so that no size is ever taken from the file; what is not exactly as expected is
// not used.
#pragma once

#include <filesystem>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "engine/io/file.h"
#include "engine/tensor.h"

namespace graft {

// A running checksum of 64 bits over words of eight bytes, a range's last word filled with zeros.
// Every step is a bijection of the state: a change within one word is always noticed.
class Checksum {
 public:
  void add(const void* data, size_t bytes);
  uint64_t value() const { return state_; }

 private:
  uint64_t state_ = 0xcbf29ce484222325ull;
};

struct ActivationLayout {
  Shape row;                 // at most four sizes
  Dtype dtype = Dtype::f32;  // or bf16
  int64_t rows = 0;
  std::string key;  // SHA-256 in hexadecimal of all that the rows depend on
  int64_t row_values() const;
  size_t row_bytes() const { return static_cast<size_t>(row_values()) * size_of(dtype); }
};

class ActivationStore {
 public:
  const ActivationLayout& layout() const { return layout_; }
  // False where the image could not be read.
  bool has(int64_t row) const { return there_[static_cast<size_t>(row)]; }
  const std::vector<std::string>& bad_images() const { return bad_images_; }
  // Writes a row as f32.
  void read(int64_t row, float* out) const;

  // What the file holds; nothing, and `why`, when it is not there ("") or not what is wanted.
  static std::optional<ActivationStore> open(const std::filesystem::path& file,
                                             const ActivationLayout& wanted, std::string& why);

 private:
  friend class ActivationWriter;
  ActivationLayout layout_;
  std::vector<bool> there_;
  std::vector<std::string> bad_images_;
  std::shared_ptr<void> owner_;
  const uint8_t* data_ = nullptr;
};

// Takes rows in order.
class ActivationWriter {
 public:
  // Into memory, into a file (replaced atomically by finish()), or both; a store that is in the
  // file only reads it from there.
  ActivationWriter(ActivationLayout layout, bool in_memory, std::filesystem::path file);
  ~ActivationWriter();
  // The row after the last one; rows in between that are left out count as unreadable.
  void add(int64_t row, const float* values);
  ActivationStore finish(std::vector<std::string> bad_images);

 private:
  void fill_up_to(int64_t row);
  void put(const void* data, size_t bytes);

  ActivationLayout layout_;
  std::filesystem::path path_;
  std::unique_ptr<AtomicFile> file_;
  std::shared_ptr<std::vector<uint8_t>> memory_;
  std::vector<bool> there_;
  std::vector<uint8_t> row_;
  int64_t next_ = 0;
  Checksum checksum_;
};

}  // namespace graft
