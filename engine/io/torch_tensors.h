// From the object graph of a PyTorch checkpoint to named tensors.
#pragma once

#include <functional>
#include <string>
#include <string_view>

#include "engine/io/pickle.h"
#include "engine/io/weights.h"
#include "engine/io/zip.h"

namespace graft {

// A storage as a pickle names it.
struct TorchStorage {
  std::string_view key;
  std::string_view type;  // "FloatStorage"
  uint64_t item_bytes = 0;
  uint64_t count = 0;  // in items
};

struct TorchCheckpoint {
  std::string where;  // starts messages
  PickleGraph graph;
  bool big_endian = false;
  // The bytes of a storage; throws when they are not there.
  std::function<Record(const TorchStorage&)> find;
  uint64_t file_bytes = 0;  // bounds what views may expand to
};

// The storage that a persistent id stands for.
TorchStorage storage_of(const TorchCheckpoint& checkpoint, PickleId persistent);

// The tensor that a call rebuilds, of any layout, made contiguous. `name` is for messages;
// `expanded` counts the bytes of copies made so far.
Tensor rebuild_tensor(const TorchCheckpoint& checkpoint, PickleId call, const std::string& name,
                      uint64_t* expanded, std::string* storage_key);

// Whether a node is a call that rebuilds a tensor, of a kind that graft can hold or not.
bool rebuilds_tensor(const PickleGraph& graph, PickleId id);

// Whether the readers give a meaning to this global; the others are listed as opaque.
bool is_known_global(std::string_view name);

// Finds the tensors in dicts, lists and pickled modules, names them by their path, and takes away
// wrappers such as 'state_dict' and 'module.'. Fills tensors, opaque and notes.
void collect_tensors(const TorchCheckpoint& checkpoint, WeightFile& out);

}  // namespace graft
