// Features of labelled images in files, for other programs and for `graft probe`:
//
//   X.safetensors   tensors "features" (n, ...), f32, and "labels" (n), i64; in its metadata the
//                   classes, the images and what the features are of
//   X.npy           the features; X.labels.npy, X.classes.txt and X.paths.txt beside it
#pragma once

#include <filesystem>
#include <memory>
#include <string>
#include <vector>

#include "engine/data/dataset.h"
#include "engine/io/weights.h"
#include "engine/tensor.h"

namespace graft {

class FeatureWriter {
 public:
  // The ending chooses the format; throws Error on another one.
  explicit FeatureWriter(std::filesystem::path path);
  ~FeatureWriter();
  // rows (m, ...), f32 on the host, of these samples of the data set. A .npy file is written as
  // rows come, a safetensors file holds them in memory.
  void add(const Tensor& rows, const ImageDataset& data, const std::vector<int64_t>& samples);
  // Puts the files in place, each complete or not at all, the features last. Returns their paths,
  // the features first. Throws when there were no rows.
  std::vector<std::filesystem::path> finish(const std::vector<std::string>& class_names,
                                            const Metadata& about);
  // (n, ...), so far.
  const Shape& shape() const { return shape_; }

 private:
  struct Rows;
  std::filesystem::path path_;
  std::unique_ptr<Rows> rows_;
  Shape shape_;
  std::vector<int64_t> labels_;
  std::vector<std::string> images_;
};

struct FeatureTable {
  Tensor features;              // f32 (n, width)
  std::vector<int64_t> labels;  // n, from 0
  std::vector<std::string> class_names;
};
// What a FeatureWriter, or NumPy, wrote. Without X.classes.txt the classes are called by their
// numbers. The files are treated as hostile; throws Error naming the file.
FeatureTable read_features(const std::filesystem::path& path);

}  // namespace graft
