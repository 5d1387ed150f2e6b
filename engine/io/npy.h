// NumPy's .npy files, version 1.0: a magic number, a header that is a Python dictionary of element
// type, order and shape, and the elements. (NEP 1, numpy.lib.format.)
#pragma once

#include <filesystem>
#include <memory>

#include "engine/io/file.h"
#include "engine/tensor.h"

namespace graft {

// Writes rows as they come, in memory of a row; the file appears complete or not at all.
class NpyWriter {
 public:
  // Rows of this shape, f32 or i64.
  NpyWriter(const std::filesystem::path& path, Shape row, Dtype dtype);
  // rows (m, row...) on the host.
  void add(const Tensor& rows);
  // Writes the number of rows into the header and puts the file in place.
  void finish();

 private:
  AtomicFile file_;
  Shape row_;
  Dtype dtype_;
  int64_t rows_ = 0;
};

// Little-endian f32, f64 or i64 in C order, at least one dimension. The file is treated as hostile:
// its shape must account for its bytes exactly.
Tensor read_npy(const std::filesystem::path& path);

}  // namespace graft
