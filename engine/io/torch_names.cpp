// Where the tensors of a checkpoint are, what they are called, and what else it holds.
#include <algorithm>
#include <map>
#include <set>

#include "engine/io/torch_tensors.h"

namespace graft {
namespace {

// A graph can share nodes, so the number of paths through it is not bounded by the file.
constexpr size_t kMaxDepth = 64;
constexpr size_t kMaxSteps = 4'000'000;
constexpr size_t kMaxTensors = 100'000;
constexpr size_t kMaxPath = 1024;
constexpr size_t kMaxOpaque = 1000;

struct Found {
  std::vector<std::string> path;
  PickleId call;
};

std::string joined(const std::vector<std::string>& path) {
  std::string name;
  for (const std::string& part : path) name += (name.empty() ? "" : ".") + part;
  return name;
}

// A scalar for people; empty for what is no scalar.
std::string described(const PickleNode& node) {
  switch (node.kind) {
    case PickleKind::none:
      return "None";
    case PickleKind::boolean:
      return node.integer ? "True" : "False";
    case PickleKind::integer:
      return std::to_string(node.integer);
    case PickleKind::big_integer:
      return text("an integer of ", node.integer, " bytes");
    case PickleKind::real:
      return text(node.real);
    case PickleKind::string:
      return "'" + printable(node.text) + "'";
    case PickleKind::bytes:
      return text(node.text.size(), " bytes");
    case PickleKind::global:
      return printable(node.text);
    default:
      return "";
  }
}

class Walk {
 public:
  Walk(const TorchCheckpoint& checkpoint, WeightFile& out)
      : checkpoint_(checkpoint), graph_(checkpoint.graph), out_(out) {}

  std::vector<Found> run() {
    visit(graph_.root, {}, false);
    while (!frames_.empty()) {
      Frame& frame = frames_.back();
      if (frame.next >= frame.children.size()) {
        if (frame.scalars > 0) {
          opaque(frame.path, text("a list of ", frame.scalars, " values"));
        }
        frames_.pop_back();
        continue;
      }
      const Child child = frame.children[frame.next++];
      std::vector<std::string> path = frame.path;
      if (frame.glue && !path.empty()) {
        path.back() += "." + child.key;
      } else {
        path.push_back(child.key);
      }
      visit(child.id, std::move(path), frame.module);
    }
    GRAFT_CHECK(found_.size() <= kMaxTensors, checkpoint_.where, ": more than ", kMaxTensors,
                " tensors");
    return std::move(found_);
  }

 private:
  struct Child {
    std::string key;
    PickleId id;
  };
  struct Frame {
    std::vector<Child> children;
    std::vector<std::string> path;
    bool module = false;  // a pickled nn.Module: its children are parameters and modules
    bool glue = false;    // a module in a module: one dotted name, never a wrapper
    size_t next = 0;
    size_t scalars = 0;
    bool list = false;
  };

  void opaque(const std::vector<std::string>& path, const std::string& what) {
    ++opaque_count_;
    if (opaque_count_ > kMaxOpaque) return;
    out_.opaque.push_back(path.empty() ? what : printable(joined(path)) + ": " + what);
  }

  void visit(PickleId id, std::vector<std::string> path, bool in_module) {
    GRAFT_CHECK(++steps_ <= kMaxSteps, checkpoint_.where,
                ": the pickle holds too many values, or the same ones over and over");
    const PickleNode& node = graph_[id];
    if (rebuilds_tensor(graph_, id)) {
      GRAFT_CHECK(found_.size() < kMaxTensors, checkpoint_.where, ": more than ", kMaxTensors,
                  " tensors");
      found_.push_back({std::move(path), id});
      return;
    }
    Frame frame;
    switch (node.kind) {
      case PickleKind::dict:
        add_pairs(node, frame);
        break;
      case PickleKind::list:
      case PickleKind::tuple:
      case PickleKind::set:
        frame.list = true;
        break;
      case PickleKind::call:
        if (!add_module(node, frame)) {
          opaque(path, "object of " + printable(graph_[node.items[0]].text));
          return;
        }
        frame.module = true;
        frame.glue = in_module;
        break;
      case PickleKind::persistent:
        opaque(path, "a storage");
        return;
      default:
        if (!in_module) opaque(path, described(node));
        return;
    }
    GRAFT_CHECK(frames_.size() < kMaxDepth, checkpoint_.where, ": values are nested deeper than ",
                kMaxDepth, " levels");
    if (frame.list) add_entries(node, frame);
    size_t name_bytes = 0;
    for (const std::string& part : path) name_bytes += part.size() + 1;
    for (const Child& child : frame.children) {
      GRAFT_CHECK(name_bytes + child.key.size() <= kMaxPath, checkpoint_.where,
                  ": the name of a value is longer than ", kMaxPath,
                  " bytes: ", printable(joined(path)));
    }
    steps_ += frame.children.size() + frame.scalars;
    frame.path = std::move(path);
    frames_.push_back(std::move(frame));
  }

  // Numbers in a list are counted, not listed one by one.
  void add_entries(const PickleNode& list, Frame& frame) const {
    for (size_t i = 0; i < list.items.size(); ++i) {
      if (described(graph_[list.items[i]]).empty()) {
        frame.children.push_back({std::to_string(i), list.items[i]});
      } else {
        ++frame.scalars;
      }
    }
  }

  void add_pairs(const PickleNode& dict, Frame& frame) const {
    for (size_t i = 0; i + 1 < dict.items.size(); i += 2) {
      const PickleNode& key = graph_[dict.items[i]];
      GRAFT_CHECK(key.text.size() <= kMaxPath, checkpoint_.where, ": a dict has a key longer than ",
                  kMaxPath, " bytes");
      frame.children.push_back(
          {key.kind == PickleKind::string ? std::string(key.text) : described(key),
           dict.items[i + 1]});
    }
  }

  // A pickled nn.Module keeps what it is made of in dicts of its state.
  bool add_module(const PickleNode& call, Frame& frame) const {
    bool is_module = false;
    for (size_t s = 2; s < call.items.size(); ++s) {
      const PickleNode& state = graph_[call.items[s]];
      if (state.kind != PickleKind::dict) continue;
      for (size_t i = 0; i + 1 < state.items.size(); i += 2) {
        const std::string_view key = graph_[state.items[i]].text;
        const PickleNode& value = graph_[state.items[i + 1]];
        if ((key == "_parameters" || key == "_buffers" || key == "_modules") &&
            value.kind == PickleKind::dict) {
          add_pairs(value, frame);
          is_module = true;
        }
      }
    }
    return is_module;
  }

  const TorchCheckpoint& checkpoint_;
  const PickleGraph& graph_;
  WeightFile& out_;
  std::vector<Frame> frames_;
  std::vector<Found> found_;
  size_t steps_ = 0;
  size_t opaque_count_ = 0;
};

// Keeps what is under `wrapper`, without it; tells what was left out.
void unwrap(std::vector<Found>& found, const std::string& wrapper, WeightFile& out) {
  std::map<std::string, size_t> left_out;
  std::vector<Found> kept;
  for (Found& tensor : found) {
    if (tensor.path.size() >= 2 && tensor.path[0] == wrapper) {
      tensor.path.erase(tensor.path.begin());
      kept.push_back(std::move(tensor));
    } else {
      ++left_out[tensor.path.empty() ? "" : tensor.path[0]];
    }
  }
  for (const auto& [key, count] : left_out) {
    out.opaque.push_back(
        text(printable(key), ": ", count, " tensors beside '", printable(wrapper), "', left out"));
  }
  out.notes.push_back("the tensors were taken from under '" + printable(wrapper) + "'");
  found = std::move(kept);
}

// The dict that holds the weights of a training checkpoint: a usual name, or the only one there is.
std::string find_wrapper(const std::vector<Found>& found) {
  for (const char* usual : {"state_dict", "model_state_dict", "model"}) {
    const bool present = std::ranges::any_of(
        found, [&](const Found& f) { return f.path.size() >= 2 && f.path[0] == usual; });
    if (present) return usual;
  }
  const bool only = !found.empty() && std::ranges::all_of(found, [&](const Found& f) {
    return f.path.size() >= 2 && f.path[0] == found[0].path[0];
  });
  return only ? found[0].path[0] : "";
}

}  // namespace

void collect_tensors(const TorchCheckpoint& checkpoint, WeightFile& out) {
  std::vector<Found> found = Walk(checkpoint, out).run();
  for (const std::string& name : checkpoint.graph.names) {
    if (!is_known_global(name)) out.opaque.push_back("class " + printable(name));
  }
  for (std::string wrapper = find_wrapper(found); !wrapper.empty(); wrapper = find_wrapper(found)) {
    unwrap(found, wrapper, out);
  }
  std::vector<std::string> names;
  for (const Found& tensor : found) {
    names.push_back(tensor.path.empty() ? "tensor" : joined(tensor.path));
  }
  constexpr std::string_view kParallel = "module.";
  const auto is_parallel = [&](const std::string& name) { return name.starts_with(kParallel); };
  if (!names.empty() && std::ranges::all_of(names, is_parallel)) {
    for (std::string& name : names) name.erase(0, kParallel.size());
    out.notes.push_back("the prefix 'module.' of a data-parallel model was taken away");
  }

  uint64_t expanded = 0;
  std::set<std::string> seen;
  std::map<std::string, size_t> uses;
  for (size_t i = 0; i < found.size(); ++i) {
    GRAFT_CHECK(seen.insert(names[i]).second, checkpoint.where, ": two tensors are called '",
                printable(names[i]), "'");
    std::string key;
    Tensor tensor = rebuild_tensor(checkpoint, found[i].call, names[i], &expanded, &key);
    ++uses[key];
    out.tensors.push_back({names[i], std::move(tensor), std::move(key)});
  }
  for (FileTensor& tensor : out.tensors) {
    tensor.storage = uses[tensor.storage] > 1 ? "storage " + tensor.storage : "";
  }
}

}  // namespace graft
