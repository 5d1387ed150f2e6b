// The pickle machine: protocols 2 to 5, the opcodes that PyTorch's own restricted reader accepts
// and those that protocol 4 adds. Opcodes: cpython/Lib/pickletools.py.
//
// Bounds. An operation takes at least one byte and makes at most one node, so nodes are bounded by
// the file and by kMaxOperations. Strings are views of the file. Memo and stack hold indices: a
// memo bomb (a list of two references to a list of two references ...) stays as small as its file.
// Nothing recurses.
#include "engine/io/pickle.h"

#include <unordered_map>

namespace graft {
namespace {

constexpr size_t kMaxOperations = 8'000'000;
constexpr size_t kMaxStack = 1'000'000;
constexpr size_t kMaxMemo = 4'000'000;
constexpr size_t kMaxName = 128;

// clang-format off
enum Opcode : uint8_t {
  PROTO = 0x80, FRAME = 0x95, STOP = '.', MARK = '(',
  NONE = 'N', NEWTRUE = 0x88, NEWFALSE = 0x89,
  BININT = 'J', BININT1 = 'K', BININT2 = 'M', LONG1 = 0x8a, LONG4 = 0x8b, BINFLOAT = 'G',
  BINUNICODE = 'X', SHORT_BINUNICODE = 0x8c, BINUNICODE8 = 0x8d,
  BINSTRING = 'T', SHORT_BINSTRING = 'U',
  BINBYTES = 'B', SHORT_BINBYTES = 'C', BINBYTES8 = 0x8e,
  EMPTY_DICT = '}', EMPTY_LIST = ']', EMPTY_SET = 0x8f, EMPTY_TUPLE = ')',
  TUPLE = 't', TUPLE1 = 0x85, TUPLE2 = 0x86, TUPLE3 = 0x87, FROZENSET = 0x91,
  APPEND = 'a', APPENDS = 'e', SETITEM = 's', SETITEMS = 'u', ADDITEMS = 0x90,
  BINPUT = 'q', LONG_BINPUT = 'r', MEMOIZE = 0x94, BINGET = 'h', LONG_BINGET = 'j',
  GLOBAL = 'c', STACK_GLOBAL = 0x93, REDUCE = 'R', BUILD = 'b',
  NEWOBJ = 0x81, NEWOBJ_EX = 0x92, BINPERSID = 'Q',
};
// clang-format on

class Machine {
 public:
  explicit Machine(ByteReader& in) : in_(in) {}

  PickleGraph run() {
    require(in_.take(1, "pickle")[0] == PROTO, "a pickle of protocol 2 or later was expected");
    const uint8_t protocol = in_.little<uint8_t>("pickle protocol");
    require(protocol >= 2 && protocol <= 5, "only pickle protocols 2 to 5 can be read");
    for (size_t operations = 0;; ++operations) {
      at_ = in_.position();
      require(operations < kMaxOperations, "too many operations in one pickle");
      const auto opcode = in_.little<uint8_t>("pickle opcode");
      if (opcode == STOP) break;
      if (!constant(opcode) && !container(opcode) && !memo(opcode) && !object(opcode)) {
        fail(in_.where(), ": byte ", at_, ": pickle opcode ", int{opcode},
             " is not one that weights need; the file is damaged or holds something else");
      }
      require(stack_.size() <= kMaxStack, "the pickle's stack is too deep");
    }
    graph_.root = pop();
    require(stack_.empty() && marks_.empty(), "values are left over at the end of the pickle");
    return std::move(graph_);
  }

 private:
  void require(bool condition, const char* what) const {
    GRAFT_CHECK(condition, in_.where(), ": byte ", at_, ": ", what,
                "; the file is damaged or not made by torch.save");
  }

  // --- stack
  PickleId add(PickleKind kind) {
    graph_.nodes.emplace_back().kind = kind;
    return static_cast<PickleId>(graph_.nodes.size() - 1);
  }
  PickleNode& node(PickleId id) { return graph_.nodes[id]; }
  void push(PickleId id) { stack_.push_back(id); }
  size_t floor() const { return marks_.empty() ? 0 : marks_.back(); }
  PickleId pop() {
    require(stack_.size() > floor(), "the pickle takes a value that is not there");
    const PickleId id = stack_.back();
    stack_.pop_back();
    return id;
  }
  PickleId top() const {
    require(stack_.size() > floor(), "the pickle looks at a value that is not there");
    return stack_.back();
  }
  std::vector<PickleId> pop_to_mark() {
    require(!marks_.empty(), "the pickle goes back to a mark that is not there");
    const std::vector<PickleId> items(stack_.begin() + static_cast<ptrdiff_t>(marks_.back()),
                                      stack_.end());
    stack_.resize(marks_.back());
    marks_.pop_back();
    return items;
  }

  // --- values
  void push_integer(int64_t value) {
    push(add(PickleKind::integer));
    node(top()).integer = value;
  }
  void push_boolean(bool value) {
    push(add(PickleKind::boolean));
    node(top()).integer = value;
  }
  void push_text(PickleKind kind, uint64_t length) {
    const std::string_view chars = in_.chars(length, "string in a pickle");
    push(add(kind));
    node(top()).text = chars;
  }
  // Little-endian two's complement of any length.
  void push_long(uint64_t length) {
    const ByteSpan digits = in_.take(length, "number in a pickle");
    if (length > 8) {
      push(add(PickleKind::big_integer));
      node(top()).integer = static_cast<int64_t>(length);
      return;
    }
    uint64_t value = 0;
    if (length > 0) std::memcpy(&value, digits.data(), length);
    if (length > 0 && length < 8 && (digits.back() & 0x80)) value |= ~uint64_t{0} << (8 * length);
    push_integer(static_cast<int64_t>(value));
  }
  void push_real() {
    const auto bits = __builtin_bswap64(in_.little<uint64_t>("number in a pickle"));
    push(add(PickleKind::real));
    node(top()).real = std::bit_cast<double>(bits);
  }

  bool constant(uint8_t opcode) {
    switch (opcode) {
      case FRAME:
        in_.take(8, "pickle frame");
        return true;
      case NONE:
        push(add(PickleKind::none));
        return true;
      case NEWTRUE:
        push_boolean(true);
        return true;
      case NEWFALSE:
        push_boolean(false);
        return true;
      case BININT:
        push_integer(in_.little<int32_t>("number"));
        return true;
      case BININT1:
        push_integer(in_.little<uint8_t>("number"));
        return true;
      case BININT2:
        push_integer(in_.little<uint16_t>("number"));
        return true;
      case LONG1:
        push_long(in_.little<uint8_t>("number"));
        return true;
      case LONG4:
        push_long(in_.little<uint32_t>("number"));
        return true;
      case BINFLOAT:
        push_real();
        return true;
      case SHORT_BINUNICODE:
      case SHORT_BINSTRING:
        push_text(PickleKind::string, in_.little<uint8_t>("string length"));
        return true;
      case BINUNICODE:
      case BINSTRING:
        push_text(PickleKind::string, in_.little<uint32_t>("string length"));
        return true;
      case BINUNICODE8:
        push_text(PickleKind::string, in_.little<uint64_t>("string length"));
        return true;
      case SHORT_BINBYTES:
        push_text(PickleKind::bytes, in_.little<uint8_t>("bytes length"));
        return true;
      case BINBYTES:
        push_text(PickleKind::bytes, in_.little<uint32_t>("bytes length"));
        return true;
      case BINBYTES8:
        push_text(PickleKind::bytes, in_.little<uint64_t>("bytes length"));
        return true;
      default:
        return false;
    }
  }

  // --- containers
  void push_tuple(size_t count) {
    std::vector<PickleId> items(count);
    for (size_t i = count; i-- > 0;) items[i] = pop();
    push_items(PickleKind::tuple, std::move(items));
  }
  void push_items(PickleKind kind, std::vector<PickleId> items) {
    push(add(kind));
    node(top()).items = std::move(items);
  }
  // Additions go to containers of the right kind only: SETITEM on something else is how
  // CVE-2026-24747 wrote out of bounds. Those made for a call (a deque) are dropped with it.
  void extend_top(PickleKind kind, const std::vector<PickleId>& items) {
    PickleNode& target = node(top());
    if (target.kind == PickleKind::call) return;
    require(target.kind == kind, kind == PickleKind::dict
                                     ? "the pickle sets an item of something that is no dict"
                                     : "the pickle appends to something that is no list or set");
    require(kind != PickleKind::dict || items.size() % 2 == 0, "a dict key has no value");
    target.items.insert(target.items.end(), items.begin(), items.end());
  }

  bool container(uint8_t opcode) {
    switch (opcode) {
      case MARK:
        require(marks_.size() < kMaxStack, "too many marks in a pickle");
        marks_.push_back(stack_.size());
        return true;
      case EMPTY_DICT:
        push(add(PickleKind::dict));
        return true;
      case EMPTY_LIST:
        push(add(PickleKind::list));
        return true;
      case EMPTY_SET:
        push(add(PickleKind::set));
        return true;
      case EMPTY_TUPLE:
        push(add(PickleKind::tuple));
        return true;
      case TUPLE:
        push_items(PickleKind::tuple, pop_to_mark());
        return true;
      case FROZENSET:
        push_items(PickleKind::set, pop_to_mark());
        return true;
      case TUPLE1:
        push_tuple(1);
        return true;
      case TUPLE2:
        push_tuple(2);
        return true;
      case TUPLE3:
        push_tuple(3);
        return true;
      case APPEND: {
        const PickleId item = pop();
        extend_top(PickleKind::list, {item});
        return true;
      }
      case SETITEM: {
        const PickleId value = pop(), key = pop();
        extend_top(PickleKind::dict, {key, value});
        return true;
      }
      case APPENDS:
        extend_top(PickleKind::list, pop_to_mark());
        return true;
      case SETITEMS:
        extend_top(PickleKind::dict, pop_to_mark());
        return true;
      case ADDITEMS:
        extend_top(PickleKind::set, pop_to_mark());
        return true;
      default:
        return false;
    }
  }

  // --- memo
  void remember(uint32_t slot) {
    memo_[slot] = top();
    require(memo_.size() <= kMaxMemo, "too many entries in the pickle's memo");
  }
  void recall(uint32_t slot) {
    const auto found = memo_.find(slot);
    require(found != memo_.end(), "the pickle recalls something it never stored");
    push(found->second);
  }
  bool memo(uint8_t opcode) {
    switch (opcode) {
      case BINPUT:
        remember(in_.little<uint8_t>("memo slot"));
        return true;
      case LONG_BINPUT:
        remember(in_.little<uint32_t>("memo slot"));
        return true;
      case MEMOIZE:
        remember(static_cast<uint32_t>(memo_.size()));
        return true;
      case BINGET:
        recall(in_.little<uint8_t>("memo slot"));
        return true;
      case LONG_BINGET:
        recall(in_.little<uint32_t>("memo slot"));
        return true;
      default:
        return false;
    }
  }

  // --- names and calls, none of which is looked up or made
  void push_global(std::string_view module, std::string_view name) {
    // Names are short; long ones joined over and over could fill the memory.
    require(module.size() <= kMaxName && name.size() <= kMaxName,
            "the name of a class is too long");
    if (module == "__builtin__") module = "builtins";  // as Python 2 called it
    const auto stored = graph_.names.insert(text(module, '.', name)).first;
    push(add(PickleKind::global));
    node(top()).text = *stored;
  }
  void push_call(PickleId callee, PickleId arguments) {
    require(node(callee).kind == PickleKind::global, "the pickle calls something that is no name");
    require(node(arguments).kind == PickleKind::tuple, "the arguments of a call are no tuple");
    const PickleNode& first = node(arguments);
    // The two containers that state dicts are made of take part as what they are.
    if (node(callee).text == "collections.OrderedDict") {
      push(add(PickleKind::dict));
      return add_pairs(arguments);
    }
    if (node(callee).text == "torch.Size" && first.items.size() == 1 &&
        node(first.items[0]).kind == PickleKind::tuple) {
      return push(first.items[0]);
    }
    push_items(PickleKind::call, {callee, arguments});
  }
  // Python 2 pickled OrderedDict([[key, value], ...]).
  void add_pairs(PickleId arguments) {
    for (const PickleId list : std::vector(node(arguments).items)) {
      require(node(list).kind == PickleKind::list,
              "an OrderedDict is made of something else than "
              "a list of pairs");
      for (const PickleId pair : node(list).items) {
        require((node(pair).kind == PickleKind::list || node(pair).kind == PickleKind::tuple) &&
                    node(pair).items.size() == 2,
                "an OrderedDict is made of something else than a list of pairs");
        // The same list may be named again and again: what is copied counts as operations.
        require(++copied_pairs_ < kMaxOperations, "too many pairs in the pickle's dicts");
        node(top()).items.insert(node(top()).items.end(), node(pair).items.begin(),
                                 node(pair).items.end());
      }
    }
  }

  // A whole model saved by an older PyTorch names its classes by ('module', class, file, source).
  void push_persistent(PickleId id) {
    const std::vector<PickleId>& items = node(id).items;
    if (items.size() >= 2 && node(items[0]).text == "module" &&
        node(items[1]).kind == PickleKind::global) {
      return push(items[1]);
    }
    push_items(PickleKind::persistent, {id});
  }

  bool object(uint8_t opcode) {
    switch (opcode) {
      case GLOBAL: {
        const std::string_view module = in_.line("name of a module");
        push_global(module, in_.line("name of a class"));
        return true;
      }
      case STACK_GLOBAL: {
        const PickleNode name = node(pop()), module = node(pop());
        require(name.kind == PickleKind::string && module.kind == PickleKind::string,
                "the name of a class is no string");
        push_global(module.text, name.text);
        return true;
      }
      case NEWOBJ_EX:
        pop();
        [[fallthrough]];  // keyword arguments
      case NEWOBJ:
      case REDUCE: {
        const PickleId arguments = pop(), callee = pop();
        push_call(callee, arguments);
        return true;
      }
      case BUILD: {
        // The state of a dict is PyTorch's _metadata (module versions): not needed.
        const PickleId state = pop();
        if (node(top()).kind == PickleKind::call) node(top()).items.push_back(state);
        return true;
      }
      case BINPERSID:
        push_persistent(pop());
        return true;
      default:
        return false;
    }
  }

  ByteReader& in_;
  size_t at_ = 0;
  size_t copied_pairs_ = 0;
  PickleGraph graph_;
  std::vector<PickleId> stack_;
  std::vector<size_t> marks_;
  std::unordered_map<uint32_t, PickleId> memo_;
};

}  // namespace

PickleGraph read_pickle(ByteReader& in) { return Machine(in).run(); }

}  // namespace graft
