// PyTorch saves a tensor as a call of a rebuild function (torch/_utils.py) with a storage, an
// offset and strides in elements. The numbers are checked against the storage before any element is
// touched; the mismatch of the two was half of CVE-2026-24747.
#include "engine/io/torch_tensors.h"

#include <algorithm>
#include <array>
#include <optional>

#include "engine/io/formats.h"

namespace graft {
namespace {

constexpr size_t kMaxDimensions = 64;
constexpr size_t kMaxKey = 128;

struct StorageType {
  std::string_view name;
  uint64_t item_bytes;
  std::optional<Dtype> dtype;  // none: graft cannot hold it, or the tensor tells (UntypedStorage)
};

constexpr std::array<StorageType, 18> kStorageTypes = {{
    {"FloatStorage", 4, Dtype::f32},
    {"DoubleStorage", 8, Dtype::f64},
    {"HalfStorage", 2, Dtype::f16},
    {"BFloat16Storage", 2, Dtype::bf16},
    {"ByteStorage", 1, Dtype::u8},
    {"CharStorage", 1, Dtype::i8},
    {"ShortStorage", 2, Dtype::i16},
    {"IntStorage", 4, Dtype::i32},
    {"LongStorage", 8, Dtype::i64},
    {"BoolStorage", 1, Dtype::boolean},
    {"ComplexFloatStorage", 8, {}},
    {"ComplexDoubleStorage", 16, {}},
    {"QInt8Storage", 1, {}},
    {"QUInt8Storage", 1, {}},
    {"QInt32Storage", 4, {}},
    {"QUInt4x2Storage", 1, {}},
    {"QUInt2x4Storage", 1, {}},
    {"UntypedStorage", 1, {}},
}};

struct DtypeGlobal {
  std::string_view name;
  Dtype dtype;
};

constexpr std::array<DtypeGlobal, 16> kDtypeGlobals = {{
    {"torch.float32", Dtype::f32},
    {"torch.float", Dtype::f32},
    {"torch.float64", Dtype::f64},
    {"torch.double", Dtype::f64},
    {"torch.float16", Dtype::f16},
    {"torch.half", Dtype::f16},
    {"torch.bfloat16", Dtype::bf16},
    {"torch.uint8", Dtype::u8},
    {"torch.int8", Dtype::i8},
    {"torch.int16", Dtype::i16},
    {"torch.short", Dtype::i16},
    {"torch.int32", Dtype::i32},
    {"torch.int", Dtype::i32},
    {"torch.int64", Dtype::i64},
    {"torch.long", Dtype::i64},
    {"torch.bool", Dtype::boolean},
}};

constexpr std::array<std::string_view, 5> kParameterCalls = {
    "torch._utils._rebuild_parameter", "torch._utils._rebuild_parameter_with_state",
    "torch.nn.parameter.Parameter", "torch.nn.parameter.Buffer",
    "torch._utils._rebuild_device_tensor_from_cpu_tensor"};
constexpr std::string_view kSubclassCall = "torch._tensor._rebuild_from_type_v2";
constexpr std::string_view kRebuild = "torch._utils._rebuild_";

bool is_parameter_call(std::string_view name) {
  return std::ranges::find(kParameterCalls, name) != kParameterCalls.end();
}

const StorageType* find_storage_type(std::string_view global) {
  for (const std::string_view module : {"torch.", "torch.cuda.", "torch.storage."}) {
    if (!global.starts_with(module)) continue;
    const auto found =
        std::ranges::find(kStorageTypes, global.substr(module.size()), &StorageType::name);
    if (found != kStorageTypes.end()) return &*found;
  }
  return nullptr;
}

// A call with parameters and tensor subclasses peeled off it.
struct RebuildCall {
  std::string_view function;
  const PickleNode* arguments;
};

class Rebuilder {
 public:
  Rebuilder(const TorchCheckpoint& checkpoint, const std::string& name)
      : checkpoint_(checkpoint), graph_(checkpoint.graph), name_(name) {}

  Tensor rebuild(PickleId id, uint64_t* expanded, std::string* storage_key) {
    const RebuildCall call = peel(id);
    int metadata = 6;
    int dtype = -1;
    if (call.function == "torch._utils._rebuild_tensor_v3") {
      dtype = 6, metadata = 7;
    } else if (call.function != "torch._utils._rebuild_tensor" &&
               call.function != "torch._utils._rebuild_tensor_v2") {
      refuse_kind(call.function);
    }
    require(call.arguments->items.size() >= 4, "is rebuilt from too few arguments");
    const TorchStorage storage = storage_of(checkpoint_, argument(call, 0));
    const int64_t offset = whole(argument(call, 1), "offset");
    Shape shape = whole_list(argument(call, 2), "size");
    const Shape strides = whole_list(argument(call, 3), "stride");
    refuse_lazy(call, metadata);
    *storage_key = storage.key;
    return view(storage, dtype_of_tensor(call, dtype, storage), offset, std::move(shape), strides,
                expanded);
  }

 private:
  template <class... Parts>
  void require(bool condition, const Parts&... parts) const {
    GRAFT_CHECK(condition, checkpoint_.where, ": tensor '", printable(name_), "' ", parts...);
  }

  RebuildCall peel(PickleId id) const {
    // Parameters of parameters do not occur; eight layers are plenty.
    RebuildCall call = call_of(id);
    for (int layer = 0; layer < 8; ++layer) {
      const std::vector<PickleId>& items = call.arguments->items;
      if (is_parameter_call(call.function)) {
        require(!items.empty(), "is a parameter of nothing");
        call = call_of(items[0]);
      } else if (call.function == kSubclassCall) {
        require(items.size() >= 3 && graph_[items[0]].kind == PickleKind::global &&
                    graph_[items[2]].kind == PickleKind::tuple,
                "is a damaged tensor subclass");
        call = {graph_[items[0]].text, &graph_[items[2]]};
      } else {
        return call;
      }
    }
    fail(checkpoint_.where, ": tensor '", printable(name_), "' is wrapped too many times");
  }

  RebuildCall call_of(PickleId id) const {
    const PickleNode& node = graph_[id];
    require(node.kind == PickleKind::call, "is made of something that is no tensor");
    return {graph_[node.items[0]].text, &graph_[node.items[1]]};
  }

  PickleId argument(const RebuildCall& call, size_t index) const {
    return call.arguments->items[index];
  }

  [[noreturn]] void refuse_kind(std::string_view function) const {
    const char* advice = function.ends_with("_qtensor") ? "is quantised; save x.dequantize()"
                         : function.ends_with("_sparse_tensor") ? "is sparse; save x.to_dense()"
                         : function.ends_with("_no_storage")
                             ? "is a meta tensor without values"
                             : "is of a kind that graft cannot read";
    fail(checkpoint_.where, ": tensor '", printable(name_), "' ", advice, " (", printable(function),
         ")");
  }

  // Conjugates and negatives that PyTorch has not computed yet.
  void refuse_lazy(const RebuildCall& call, size_t metadata) const {
    if (call.arguments->items.size() <= metadata) return;
    const PickleNode& flags = graph_[argument(call, metadata)];
    if (flags.kind != PickleKind::dict) return;
    for (size_t i = 0; i + 1 < flags.items.size(); i += 2) {
      const PickleNode& key = graph_[flags.items[i]];
      const PickleNode& value = graph_[flags.items[i + 1]];
      require(!((key.text == "conj" || key.text == "neg") && value.integer != 0),
              "is a lazy conjugate or negative; save x.resolve_conj().resolve_neg()");
    }
  }

  Dtype dtype_of_tensor(const RebuildCall& call, int index, const TorchStorage& storage) const {
    if (index < 0) {
      const auto type = std::ranges::find(kStorageTypes, storage.type, &StorageType::name);
      require(type->dtype.has_value(), "has elements of ", storage.type,
              ", which graft cannot hold; convert it to float32 first");
      return *type->dtype;
    }
    require(call.arguments->items.size() > static_cast<size_t>(index), "tells no dtype");
    const PickleNode& node = graph_[argument(call, static_cast<size_t>(index))];
    require(node.kind == PickleKind::global, "tells no dtype");
    const auto found = std::ranges::find(kDtypeGlobals, node.text, &DtypeGlobal::name);
    require(found != kDtypeGlobals.end(), "has dtype ", printable(node.text),
            ", which graft cannot hold; convert it to float32 first");
    return found->dtype;
  }

  int64_t whole(PickleId id, const char* what) const {
    const PickleNode& node = graph_[id];
    require(node.kind == PickleKind::integer && node.integer >= 0, "has no whole number as its ",
            what);
    return node.integer;
  }

  Shape whole_list(PickleId id, const char* what) const {
    const PickleNode& node = graph_[id];
    require(node.kind == PickleKind::tuple || node.kind == PickleKind::list, "has no list as its ",
            what);
    require(node.items.size() <= kMaxDimensions, "has more than ", kMaxDimensions, " dimensions");
    Shape list;
    for (const PickleId item : node.items) list.push_back(whole(item, what));
    return list;
  }

  Tensor view(const TorchStorage& storage, Dtype dtype, int64_t offset, Shape shape,
              const Shape& strides, uint64_t* expanded) const {
    require(strides.size() == shape.size(), "has ", shape.size(), " sizes and ", strides.size(),
            " strides");
    uint64_t bytes = 0, storage_bytes = 0;
    const uint64_t item = size_of(dtype);
    require(checked_bytes(shape, item, &bytes), "has a shape ", shape, " that overflows");
    require(!__builtin_mul_overflow(storage.count, storage.item_bytes, &storage_bytes),
            "has a storage whose size overflows");
    const Record record = checkpoint_.find(storage);
    require(record.bytes.size() == storage_bytes, "wants a storage of ", storage.count,
            " elements, ", storage_bytes, " bytes; the file holds ", record.bytes.size());
    if (bytes == 0) return Tensor(std::move(shape), dtype);

    int64_t last = offset;
    bool contiguous = true;
    int64_t expected = 1;
    for (size_t axis = shape.size(); axis-- > 0;) {
      int64_t step = 0;
      const bool fits = !__builtin_mul_overflow(shape[axis] - 1, strides[axis], &step) &&
                        !__builtin_add_overflow(last, step, &last);
      require(fits, "has strides ", strides, " that overflow");
      contiguous = contiguous && (shape[axis] == 1 || strides[axis] == expected);
      expected *= shape[axis];
    }
    require(static_cast<uint64_t>(last) < storage_bytes / item, "reaches element ", last,
            " of a storage of ", storage_bytes / item);

    uint8_t* first = record.bytes.data() + static_cast<uint64_t>(offset) * item;
    if (contiguous && !checkpoint_.big_endian) {
      return tensor_over(first, record.owner, std::move(shape), dtype);
    }
    // A stride of 0 can make any size out of one element.
    const uint64_t limit = 4 * checkpoint_.file_bytes + (uint64_t{64} << 20);
    *expanded += bytes;
    require(*expanded <= limit, "expands to ", bytes, " bytes from a storage of ", storage_bytes,
            "; a file of ", checkpoint_.file_bytes, " bytes may expand to ", limit,
            " in all; save x.clone()");
    Tensor result(std::move(shape), dtype);
    switch (item) {
      case 1:
        gather<uint8_t>(first, strides, result);
        break;
      case 2:
        gather<uint16_t>(first, strides, result);
        break;
      case 4:
        gather<uint32_t>(first, strides, result);
        break;
      default:
        gather<uint64_t>(first, strides, result);
        break;
    }
    return result;
  }

  static uint8_t swapped(uint8_t value) { return value; }
  static uint16_t swapped(uint16_t value) { return __builtin_bswap16(value); }
  static uint32_t swapped(uint32_t value) { return __builtin_bswap32(value); }
  static uint64_t swapped(uint64_t value) { return __builtin_bswap64(value); }

  template <class T>
  void gather(const uint8_t* first, const Shape& strides, const Tensor& result) const {
    const Shape& shape = result.shape();
    Shape index(shape.size(), 0);
    T* out = static_cast<T*>(result.raw());
    int64_t at = 0;
    for (int64_t i = 0; i < result.numel(); ++i) {
      T value;
      std::memcpy(&value, first + static_cast<size_t>(at) * sizeof(T), sizeof(T));
      out[i] = checkpoint_.big_endian ? swapped(value) : value;
      for (size_t axis = shape.size(); axis-- > 0;) {
        at += strides[axis];
        if (++index[axis] < shape[axis]) break;
        at -= strides[axis] * shape[axis];
        index[axis] = 0;
      }
    }
  }

  const TorchCheckpoint& checkpoint_;
  const PickleGraph& graph_;
  const std::string& name_;
};

}  // namespace

TorchStorage storage_of(const TorchCheckpoint& checkpoint, PickleId persistent) {
  const PickleGraph& graph = checkpoint.graph;
  const auto require = [&](bool condition, const char* what) {
    GRAFT_CHECK(condition, checkpoint.where, ": a storage ", what,
                "; the file is damaged or not made by torch.save");
  };
  const PickleNode& node = graph[persistent];
  require(node.kind == PickleKind::persistent, "was expected and something else is there");
  const PickleNode& id = graph[node.items[0]];
  require(
      id.kind == PickleKind::tuple && id.items.size() >= 5 && graph[id.items[0]].text == "storage",
      "has an unknown kind of persistent id");
  const PickleNode& global = graph[id.items[1]];
  const PickleNode& key = graph[id.items[2]];
  const PickleNode& count = graph[id.items[4]];
  require(global.kind == PickleKind::global, "has no type");
  require(key.kind == PickleKind::string && key.text.size() <= kMaxKey, "has no key");
  require(count.kind == PickleKind::integer && count.integer >= 0, "has no size");
  // Written by PyTorch 0.3 and older, for storages inside storages.
  require(id.items.size() == 5 || graph[id.items[5]].kind == PickleKind::none,
          "is a view of another one; open it in PyTorch and save it again");
  const StorageType* type = find_storage_type(global.text);
  GRAFT_CHECK(type != nullptr, checkpoint.where, ": unknown storage type ", printable(global.text));
  return {key.text, type->name, type->item_bytes, static_cast<uint64_t>(count.integer)};
}

Tensor rebuild_tensor(const TorchCheckpoint& checkpoint, PickleId call, const std::string& name,
                      uint64_t* expanded, std::string* storage_key) {
  return Rebuilder(checkpoint, name).rebuild(call, expanded, storage_key);
}

bool rebuilds_tensor(const PickleGraph& graph, PickleId id) {
  const PickleNode& node = graph[id];
  if (node.kind != PickleKind::call) return false;
  const std::string_view callee = graph[node.items[0]].text;
  return callee.starts_with(kRebuild) || is_parameter_call(callee) || callee == kSubclassCall;
}

bool is_known_global(std::string_view name) {
  return name.starts_with(kRebuild) || is_parameter_call(name) || name == kSubclassCall ||
         name == "collections.OrderedDict" || name == "torch.Size" ||
         find_storage_type(name) != nullptr ||
         std::ranges::find(kDtypeGlobals, name, &DtypeGlobal::name) != kDtypeGlobals.end();
}

}  // namespace graft
