// Weight files in and out. The readers treat a file as hostile: every size is checked against the
// bytes that are there before it is used, and nothing in a file is ever executed.
#pragma once

#include <filesystem>
#include <map>
#include <string>
#include <vector>

#include "engine/tensor.h"

namespace graft {

using Metadata = std::map<std::string, std::string>;

// A named tensor as it stands in a file.
struct FileTensor {
  std::string name;
  Tensor tensor;        // on the CPU; of a mapped file, a view of the mapping
  std::string storage;  // tensors with the same non-empty name share one storage (tied weights)
};

struct WeightFile {
  std::string format;               // "safetensors", "PyTorch zip", "PyTorch legacy"
  std::vector<FileTensor> tensors;  // in the file's order
  Metadata metadata;                // safetensors' __metadata__
  std::vector<std::string>
      opaque;  // what a pickle holds besides tensors: "epoch: 12", "class argparse.Namespace"
  std::vector<std::string> notes;  // "record data/3 carries no checksum"
  const Tensor* find(const std::string& name) const;
};

// Reads any format, told apart by content. Errors name the file, the byte offset or tensor, and the
// rule.
WeightFile read_weights(const std::filesystem::path& path);
WeightFile read_safetensors(const std::filesystem::path& path);  // memory-mapped
WeightFile read_torch(const std::filesystem::path& path);        // zip and legacy .pt/.pth/.bin

// Writes atomically: a temporary file in the same folder, fsync, rename, fsync of the folder. The
// same tensors and metadata give the same bytes.
void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, Tensor>& tensors, const Metadata& metadata = {});

// Atomic replacement of any small file, with the same steps.
void write_file_atomically(const std::filesystem::path& path, const std::string& contents);

std::string sha256_hex(const std::filesystem::path& path);
std::string sha256_hex_of(const void* data, size_t bytes);

}  // namespace graft
