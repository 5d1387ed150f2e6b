// The JSON header of a safetensors file, syntax only: names, dtypes, shapes and offsets as they are
// written there.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "engine/io/weights.h"

namespace graft {

struct HeaderEntry {
  std::string name;
  std::string dtype;
  Shape shape;
  uint64_t begin = 0, end = 0;  // data_offsets, counted from the end of the header
};

struct SafetensorsHeader {
  std::vector<HeaderEntry> entries;
  Metadata metadata;
};

// Strict: UTF-8, no duplicate key at any level, no unknown field, nothing after the object. Spaces
// around the object are accepted. `where` is the file's name; offsets in messages count from its
// start.
SafetensorsHeader parse_safetensors_header(std::string_view json, const std::string& where);

}  // namespace graft
