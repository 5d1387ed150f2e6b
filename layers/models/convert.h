// From somebody's checkpoint to a file that graft opens: tensors under PyTorch's names, and a card.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "layers/models/zoo.h"

namespace graft {

struct ConvertOptions {
  std::string architecture;              // "": recognised from the tensors
  std::string licence;                   // "": from the table of known checkpoints, else "unknown"
  std::vector<std::string> class_names;  // {}: ImageNet's for 1,000 classes, else none
};

// A checkpoint in file layout and f32, complete, and checked against its architecture.
struct Converted {
  StateDict tensors;
  ModelCard card;
  int64_t parameters = 0;          // trained values: without running statistics and counters
  std::vector<std::string> notes;  // what was renamed, cast, filled in or left without, for people
};

// Throws an Error that lists the tensors when any is missing, left over or of another shape; when
// no architecture fits, it shows the nearest ones. `source` and `sha256` name the checkpoint in the
// card.
Converted convert(const WeightFile& file, const ConvertOptions& options, const std::string& source,
                  const std::string& sha256);

struct ConvertReport {
  ModelCard card;
  int64_t tensors = 0, parameters = 0;
  std::vector<std::string> notes;
  std::string output_sha256;
};
// Reads IN, converts, writes OUT atomically, reads it back and compares every byte of every tensor.
// The same input gives the same output bytes. Throws when OUT is there and `force` is not set.
ConvertReport convert_file(const std::filesystem::path& in, const std::filesystem::path& out,
                           const ConvertOptions& options, bool force);

}  // namespace graft
