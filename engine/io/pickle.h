// Reads a Python pickle as data. Nothing is imported, called or constructed: a class or function is
// its name, a call is a node that holds the name and the arguments.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <vector>

#include "engine/io/byte_reader.h"

namespace graft {

enum class PickleKind : uint8_t {
  none,
  boolean,
  integer,
  big_integer,  // over 64 bits: kept as its length only
  real,
  string,
  bytes,
  tuple,
  list,
  set,
  dict,    // items: key, value, key, value ...
  global,  // text: "torch._utils._rebuild_tensor_v2"
  call,    // items: callee (a global), arguments (a tuple), then the states given to it by BUILD
  persistent,  // items: the persistent id; PyTorch names its storages so
};

using PickleId = uint32_t;

struct PickleNode {
  PickleKind kind = PickleKind::none;
  union {
    int64_t integer = 0;
    double real;
  };
  std::string_view text;  // into the file, or into the graph's names
  std::vector<PickleId> items;
};

// Nodes refer to each other by index. The graph may share nodes and may contain cycles.
struct PickleGraph {
  std::vector<PickleNode> nodes;
  std::set<std::string, std::less<>> names;  // of all globals
  PickleId root = 0;

  const PickleNode& operator[](PickleId id) const { return nodes[id]; }
};

// Reads one pickle and leaves the cursor after its STOP. Throws Error with the byte offset for
// anything that is not well formed, an opcode that weights do not need, or a limit passed.
PickleGraph read_pickle(ByteReader& in);

}  // namespace graft
