// PyTorch checkpoints: files written by PyTorch (tests/data/make_torch_fixtures.py) against what it
// says they hold, and archives and pickles made by hand to break every rule.
#include <algorithm>
#include <bit>
#include <cstdlib>
#include <doctest/doctest.h>
#include <filesystem>

#include "engine/io/weights.h"
#include "tests/support/weight_bytes.h"

using namespace graft;
using namespace graft::test;
using namespace std::string_literals;

namespace {

const std::string kData = std::string(GRAFT_SOURCE_DIR) + "/tests/data/";

void check_contains(const std::string& message, const std::string& part) {
  CHECK_MESSAGE(message.find(part) != std::string::npos,
                "message: " << message << "\nwanted: " << part);
}

bool lists(const std::vector<std::string>& list, const std::string& entry) {
  return std::ranges::find(list, entry) != list.end();
}

WeightFile parse(const std::string& bytes) { return parse_torch(in_memory(bytes)); }
std::string rejection(const std::string& bytes) {
  return error_of([&] { parse(bytes); });
}

// Same names, dtypes, shapes and bytes as a safetensors file of the safetensors package.
void check_equal(const WeightFile& file, const std::string& expected_name) {
  const WeightFile expected = read_weights(kData + expected_name);
  CHECK(file.tensors.size() == expected.tensors.size());
  for (const FileTensor& want : expected.tensors) {
    CAPTURE(want.name);
    const Tensor* got = file.find(want.name);
    REQUIRE(got != nullptr);
    CHECK(got->shape() == want.tensor.shape());
    CHECK(got->dtype() == want.tensor.dtype());
    CHECK(std::memcmp(got->raw(), want.tensor.raw(), want.tensor.bytes()) == 0);
  }
}

const std::string kFourFloats = [] {
  const float values[] = {1, 2, 3, 4};
  return std::string(reinterpret_cast<const char*>(values), sizeof values);
}();

// What reading a checkpoint with one tensor "w" over four floats says.
std::string tensor_rejection(const pickle::TensorSpec& spec) {
  return rejection(torch_zip(pickle::dict({{"w", pickle::tensor(spec)}}), {kFourFloats}));
}

std::string body_rejection(const std::string& body) {
  return rejection(torch_zip(body, {kFourFloats}));
}

}  // namespace

TEST_CASE("ten dtypes in eight layouts are read bit by bit, from both containers") {
  for (const char* name : {"torch_zip.pt", "torch_legacy.pt"}) {
    CAPTURE(name);
    const WeightFile file = read_weights(kData + name);
    check_equal(file, "torch_layouts.safetensors");
    CHECK(file.tensors.size() == 82);
    CHECK(file.format == (name == std::string("torch_zip.pt") ? "PyTorch zip" : "PyTorch legacy"));
    CHECK(file.opaque.empty());
    // The file's order, and who shares a storage with whom.
    CHECK(file.tensors[0].name == "f32.contiguous");
    const auto storage = [&](const std::string& tensor) {
      return std::ranges::find(file.tensors, tensor, &FileTensor::name)->storage;
    };
    CHECK(!storage("f32.tied").empty());
    CHECK(storage("f32.tied") == storage("f32.contiguous"));
    CHECK(storage("f32.sliced") == storage("f32.row"));
    CHECK(storage("f32.sliced") != storage("f32.tied"));
    CHECK(storage("f32.transposed").empty());
  }
  CHECK(read_weights(kData + "torch_zip.pt").notes.empty());
}

TEST_CASE("a state dict by protocol 4, deflated, or inside a whole pickled model") {
  for (const char* name : {"torch_protocol4.pt", "torch_deflated.pt", "torch_module.pt"}) {
    CAPTURE(name);
    check_equal(read_weights(kData + name), "torch_net.safetensors");
  }
  const WeightFile module = read_weights(kData + "torch_module.pt");
  CHECK(lists(module.opaque, "class __main__.Net"));
  CHECK(lists(module.opaque, "class torch.nn.modules.conv.Conv2d"));
}

TEST_CASE("the weights of a training checkpoint come out of it, the rest is listed") {
  const WeightFile file = read_weights(kData + "torch_training.pt");
  check_equal(file, "torch_training.safetensors");
  for (const char* entry :
       {"epoch: 12", "best: 0.5", "done: False", "nothing: None", "big: an integer of 9 bytes",
        "negative: -3", "arch: 'net'", "args: object of argparse.Namespace",
        "class argparse.Namespace", "classes: a list of 2 values",
        "optimizer: 15 tensors beside 'model', left out", "rng: 1 tensors beside 'model', left out",
        "optimizer.param_groups.0.lr: 0.001"}) {
    CHECK_MESSAGE(lists(file.opaque, entry), entry);
  }
  CHECK(lists(file.notes, "the tensors were taken from under 'model'"));
  CHECK(lists(file.notes, "the prefix 'module.' of a data-parallel model was taken away"));
}

TEST_CASE("tensors in lists and alone have names") {
  const WeightFile list = read_weights(kData + "torch_list.pt");
  REQUIRE(list.tensors.size() == 2);
  CHECK(list.tensors[0].name == "0");
  CHECK(list.tensors[1].name == "2.w");
  const WeightFile bare = read_weights(kData + "torch_bare.pt");
  REQUIRE(bare.tensors.size() == 1);
  CHECK(bare.tensors[0].name == "tensor");
  CHECK(bare.tensors[0].tensor.to_vector<int64_t>() == std::vector<int64_t>{0, 1, 2});
}

TEST_CASE("what PyTorch can save and graft cannot hold is refused with the remedy") {
  const auto refused = [](const std::string& name, const std::string& message) {
    check_contains(error_of([&] { read_weights(kData + name); }), message);
  };
  refused("torch_script.pt", "is a TorchScript archive");
  refused("torch_quantised.pt", "tensor 'q' is quantised; save x.dequantize()");
  refused("torch_sparse.pt", "tensor 's' is sparse; save x.to_dense()");
  refused("torch_complex.pt", "tensor 'z' has elements of ComplexFloatStorage");
  refused("torch_conjugate.pt", "tensor 'c' is a lazy conjugate");
  refused("torch_uint16.pt", "tensor 'u' has dtype torch.uint16, which graft cannot hold");
  std::string tar(512, '\0');
  tar.replace(257, 5, "ustar");
  check_contains(error_of([&] { parse_weights(in_memory(tar)); }),
                 "open it in PyTorch older than 2.6");
  check_contains(rejection("nothing of the kind"), "is not a PyTorch checkpoint");
}

TEST_CASE("wrappers are taken away when all weights are under them") {
  const std::string w = pickle::tensor({});
  const auto names = [](const std::string& body) {
    std::vector<std::string> list;
    for (const FileTensor& t : parse(torch_zip(body, {kFourFloats})).tensors)
      list.push_back(t.name);
    return list;
  };
  using Names = std::vector<std::string>;
  using pickle::dict;
  CHECK(names(dict({{"a", w}, {"b", dict({{"c", w}})}})) == Names{"a", "b.c"});
  for (const char* wrapper : {"state_dict", "model_state_dict", "model", "anything"}) {
    CHECK(names(dict({{wrapper, dict({{"a.w", w}})}, {"epoch", "K\1"}})) == Names{"a.w"});
  }
  CHECK(
      names(dict({{"state_dict", dict({{"model", dict({{"module.a", w}, {"module.b", w}})}})}})) ==
      Names{"a", "b"});
  CHECK(names(dict({{"module.a", w}, {"b", w}})) == Names{"module.a", "b"});
  // A flat name is no wrapper.
  CHECK(names(dict({{"model.a", w}, {"model.b", w}})) == Names{"model.a", "model.b"});
  // Python 2 made an OrderedDict of a list of pairs.
  const std::string ordered = pickle::global("collections", "OrderedDict");
  CHECK(names(pickle::call(ordered, {pickle::list({pickle::list({pickle::string("a"), w})})})) ==
        Names{"a"});
  check_contains(body_rejection(dict({{"a.b", w}, {"a", dict({{"b", w}})}})),
                 "two tensors are called 'a.b'");
}

TEST_CASE("sizes, strides and offsets are checked against the storage") {
  CHECK(tensor_rejection({}).empty());
  CHECK(tensor_rejection({.size = {}, .stride = {}}).empty());
  CHECK(tensor_rejection({.offset = 3, .size = {1}}).empty());
  CHECK(tensor_rejection({.offset = 4, .size = {0}}).empty());
  CHECK(tensor_rejection({.size = {2, 2}, .stride = {0, 3}}).empty());
  check_contains(tensor_rejection({.offset = 1}), "tensor 'w' reaches element 4 of a storage of 4");
  check_contains(tensor_rejection({.offset = 4, .size = {}, .stride = {}}), "reaches element 4");
  check_contains(tensor_rejection({.size = {2, 2}, .stride = {4, 1}}), "reaches element 5");
  check_contains(tensor_rejection({.size = {4, 1}, .stride = {1}}), "has 2 sizes and 1 strides");
  check_contains(tensor_rejection({.size = {-1}}), "has no whole number as its size");
  check_contains(tensor_rejection({.stride = {-1}}), "has no whole number as its stride");
  check_contains(tensor_rejection({.offset = -1}), "has no whole number as its offset");
  check_contains(tensor_rejection({.size = {2, INT64_MAX}, .stride = {1, 1}}), "overflows");
  check_contains(tensor_rejection({.size = {INT64_MAX}, .stride = {0}}), "overflows");
  check_contains(tensor_rejection({.size = {3}, .stride = {INT64_MAX}}), "that overflow");
  check_contains(tensor_rejection({.offset = INT64_MAX, .size = {2}}), "that overflow");
  check_contains(tensor_rejection({.count = 5}),
                 "wants a storage of 5 elements, 20 bytes; the file "
                 "holds 16");
  check_contains(tensor_rejection({.storage = "DoubleStorage"}), "32 bytes; the file holds 16");
  check_contains(tensor_rejection({.count = INT64_MAX}), "overflows");
  check_contains(tensor_rejection({.count = -4}), "a storage has no size");
  check_contains(tensor_rejection({.key = "7"}), "the record data/7 of a tensor is missing");
  check_contains(tensor_rejection({.key = "../data.pkl"}), "is missing");
  check_contains(tensor_rejection({.storage = "FooStorage"}), "unknown storage type torch.FooStor");
  check_contains(tensor_rejection(
                     {.size = std::vector<int64_t>(65, 1), .stride = std::vector<int64_t>(65, 1)}),
                 "more than 64 dimensions");
  // One element made a terabyte by a stride of zero.
  check_contains(tensor_rejection({.size = {int64_t{1} << 38}, .stride = {0}}), "expands to");
  // The same many times over.
  std::vector<std::pair<std::string, std::string>> many;
  for (int i = 0; i < 10; ++i) {
    many.emplace_back(std::to_string(i), pickle::tensor({.size = {1 << 21}, .stride = {0}}));
  }
  check_contains(body_rejection(pickle::dict(many)), "expands to");
}

TEST_CASE("what rebuilds a tensor must have the right parts") {
  using namespace pickle;
  const auto with = [](const std::string& value) { return body_rejection(dict({{"w", value}})); };
  const std::string rebuild = global("torch._utils", "_rebuild_tensor_v2");
  check_contains(with(call(rebuild, {})), "is rebuilt from too few arguments");
  check_contains(with(call(rebuild, {integer(1), integer(0), ")", ")"})),
                 "a storage was expected and something else is there");
  check_contains(with(call(rebuild, {integer(1) + "Q", integer(0), ")", ")"})),
                 "has an unknown kind of persistent id");
  check_contains(with(call(global("torch._utils", "_rebuild_parameter"), {})),
                 "is a parameter of nothing");
  check_contains(with(call(global("torch._utils", "_rebuild_parameter"), {integer(1)})),
                 "is made of something that is no tensor");
  check_contains(with(call(global("torch._utils", "_rebuild_new_kind"), {})),
                 "is of a kind that graft cannot read (torch._utils._rebuild_new_kind)");
  check_contains(with(call(global("torch._tensor", "_rebuild_from_type_v2"), {integer(1)})),
                 "is a damaged tensor subclass");
  // A parameter that is its own data.
  const std::string self = global("torch._utils", "_rebuild_parameter") + "(]q\1tRq\2" + "0";
  CHECK(!body_rejection(self).empty());
  const std::string subclass =
      call(global("torch._tensor", "_rebuild_from_type_v2"),
           {rebuild, global("my", "Tensor"),
            tuple({storage({}), integer(0), integers({4}), integers({1}), "\x89", "}"}), "}"});
  CHECK(with(subclass).empty());
  CHECK(
      with(call(global("torch._utils", "_rebuild_parameter"), {tensor({}), "\x88", "}"})).empty());
}

TEST_CASE("nothing is executed: names are names") {
  const auto marker = std::filesystem::temp_directory_path() / "graft_pickle_was_executed";
  std::filesystem::remove(marker);
  const std::string command = pickle::string("touch " + marker.string());
  for (const auto& [module, name] :
       std::vector<std::pair<std::string, std::string>>{{"os", "system"},
                                                        {"posix", "system"},
                                                        {"builtins", "eval"},
                                                        {"__builtin__", "exec"},
                                                        {"subprocess", "call"},
                                                        {"torch.jit._script", "parse_type_line"}}) {
    const std::string call = pickle::call(pickle::global(module, name), {command});
    const WeightFile file =
        parse(torch_zip(pickle::dict({{"x", call}, {"w", pickle::tensor({})}}), {kFourFloats}));
    const std::string full = (module == "__builtin__" ? "builtins" : module) + "." + name;
    CHECK(lists(file.opaque, "x: object of " + full));
    CHECK(lists(file.opaque, "class " + full));
    CHECK(file.tensors.size() == 1);
  }
  CHECK_FALSE(std::filesystem::exists(marker));
}

TEST_CASE("pickles that are not well formed say where") {
  using namespace pickle;
  check_contains(rejection(zip_bytes({{"a/data.pkl", ""}})), "record a/data.pkl: byte 0: pickle");
  check_contains(rejection(zip_bytes({{"a/data.pkl", "cos\nsystem\n."}})), "protocol 2 or later");
  check_contains(rejection(zip_bytes({{"a/data.pkl", "\x80\x06N."}})), "protocols 2 to 5");
  check_contains(rejection(zip_bytes({{"a/data.pkl", whole("N") + "x"}})),
                 "1 bytes follow the end of the pickle");
  check_contains(body_rejection("i"), "byte 2: pickle opcode 105 is not one that weights need");
  check_contains(body_rejection(""), "takes a value that is not there");
  check_contains(body_rejection("NN"), "values are left over");
  check_contains(body_rejection("N("), "takes a value that is not there");
  check_contains(body_rejection("t"), "goes back to a mark that is not there");
  check_contains(body_rejection("h\x05"), "recalls something it never stored");
  check_contains(body_rejection("K\1K\2K\3s"), "sets an item of something that is no dict");
  check_contains(body_rejection("]K\2K\3s"), "sets an item of something that is no dict");
  check_contains(body_rejection("}K\3a"), "appends to something that is no list");
  check_contains(body_rejection("}(K\1u"), "a dict key has no value");
  check_contains(body_rejection("K\1)R"), "calls something that is no name");
  check_contains(body_rejection("cos\nsystem\nK\1R"), "the arguments of a call are no tuple");
  check_contains(body_rejection("c" + std::string(1000, 'm') + "\nname\n"), "is too long");
  check_contains(body_rejection("cnoend"), "name of a module has no end");
  check_contains(body_rejection("X\xff\xff\xff\xff"), "string in a pickle needs 4294967295 bytes");
  check_contains(body_rejection("\x8d" + little(UINT64_MAX, 8)),
                 "needs 18446744073709551615 bytes");
  check_contains(body_rejection("\x8b\xff\xff\xff\xff"), "number in a pickle needs 4294967295");
  check_contains(body_rejection("K\1K\2\x93"), "the name of a class is no string");
  check_contains(body_rejection(dict({{std::string(2000, 'k'), "N"}})), "longer than 1024 bytes");
}

TEST_CASE("bombs stay small") {
  using namespace pickle;
  // A million lists in one another, by building up the stack and by the memo.
  const int million = 1'000'000;
  std::string deep;
  for (int i = 0; i < million - 1; ++i) deep += ']';
  for (int i = 0; i < million - 2; ++i) deep += 'a';
  check_contains(body_rejection(deep), "nested deeper than 64 levels");
  check_contains(body_rejection(std::string(million + 1, ']')), "stack is too deep");
  check_contains(body_rejection(std::string(million + 1, '(')), "too many marks");
  check_contains(body_rejection(std::string(9'000'000, 'N')), "stack is too deep");
  std::string inert = "}";
  for (int i = 0; i < 3'000'000; ++i) inert += "K\1K\1s";
  check_contains(body_rejection(inert), "too many operations");
  // Each list holds the one before it twice: 2^50 paths through 50 nodes.
  std::string doubling = "]q" + little(0, 1);
  for (int i = 0; i < 50; ++i) {
    doubling += "](h" + little(i, 1) + "h" + little(i, 1) + "eq" + little(i + 1, 1);
  }
  // The lists under the last one are still on the stack: take them into a tuple.
  check_contains(body_rejection("(" + doubling + "t"), "the same ones over and over");
  // A list that contains itself.
  check_contains(body_rejection("]q\1h\1a"), "nested deeper than 64 levels");
  // One long list of pairs poured into an OrderedDict again and again.
  std::string pairs = "](";
  for (int i = 0; i < 20'000; ++i) pairs += "K\1K\1\x86";
  pairs += "e\x85q\1cc\nd\n\x85(";
  std::string pour = pairs + global("collections", "OrderedDict") + "q\2";
  for (int i = 0; i < 1000; ++i) pour += "h\2h\1R";
  check_contains(body_rejection(pour + "t"), "too many pairs");
}

TEST_CASE("zip archives: forms that must be read") {
  using pickle::dict;
  const std::string body = dict({{"w", pickle::tensor({.size = {2, 2}, .stride = {1, 2}})}});
  const std::vector<float> transposed = {1, 3, 2, 4};
  const auto read = [](const std::string& bytes) {
    return parse_weights(in_memory(bytes)).find("w")->to_vector<float>();
  };
  CHECK(read(torch_zip(body, {kFourFloats})) == transposed);
  std::vector<ZipRecord> records = {{"any name/data.pkl", pickle::whole(body)},
                                    {"any name/data/0", kFourFloats}};
  CHECK(read(zip_bytes(records, true)) == transposed);
  records[0].deflated = records[1].deflated = true;
  CHECK(read(zip_bytes(records)) == transposed);
  CHECK(read(zip_bytes(records, true)) == transposed);
  records[1].deflated = records[1].checksum = false;
  const WeightFile unchecked = parse(zip_bytes(records));
  CHECK(lists(unchecked.notes, "1 records carry no checksum; the first is any name/data/0"));
  // A comment at the end.
  std::string commented = zip_bytes(records);
  commented[commented.size() - 2] = 5;
  CHECK(read(commented + "hello") == transposed);
  // Big-endian.
  std::string big = kFourFloats;
  for (size_t i = 0; i < big.size(); i += 4) std::reverse(big.begin() + i, big.begin() + i + 4);
  CHECK(read(torch_zip(body, {big}, "big")) == transposed);
  check_contains(rejection(torch_zip(body, {big}, "middle")), "says 'middle', neither little nor");
}

TEST_CASE("zip archives: forms that must be refused") {
  const std::string body = pickle::dict({{"w", pickle::tensor({})}});
  const std::string good = torch_zip(body, {kFourFloats});
  CHECK(rejection(good).empty());
  check_contains(rejection(good + good), "two archives were joined into one");
  check_contains(rejection("PK\x03\x04"), "no directory at its end");
  check_contains(rejection(good.substr(0, good.size() - 1)), "no directory at its end");
  check_contains(rejection(good + "x"), "no directory at its end");
  check_contains(rejection(zip_bytes({})), "there is no record data.pkl");
  check_contains(rejection(zip_bytes({{"word/document.xml", "<x/>"}})), "not a PyTorch checkpoint");
  check_contains(rejection(zip_bytes({{"a/data.pkl", "x"}, {"a/code/model.py", ""}})),
                 "TorchScript");
  check_contains(rejection(zip_bytes({{"a/data.pkl", "x"}, {"a/data.pkl", "y"}})),
                 "stands twice in the zip directory");

  const auto changed = [&](size_t at, const std::string& bytes) {
    std::string copy = good;
    return rejection(copy.replace(at, bytes.size(), bytes));
  };
  const size_t directory = good.find("PK\x01\x02");
  const size_t data = good.find(kFourFloats);
  check_contains(changed(data, "x"), "the checksum of its contents is");
  check_contains(changed(directory + 8, "\1"), "is encrypted");
  check_contains(changed(directory + 10, "\x0e"), "is packed by method 14");
  check_contains(changed(directory + 20, "\1"), "its two sizes differ");
  check_contains(changed(directory + 42, "\1"), "no local header where the directory points");
  check_contains(changed(directory + 42, "\xff\xff\xff\x7f"), "zip local header is said to be at");
  check_contains(changed(directory, "x"), "entry 0 of the zip directory has no signature");
  check_contains(changed(30, "x"), "its local header tells another name");
  check_contains(changed(8, "\x08"), "another name or method");
  check_contains(changed(28, "\1"), "runs into what follows");
  check_contains(changed(28, "\xff\xff"), "needs");
  check_contains(changed(good.size() - 22 + 4, "\1"), "in several parts");
  check_contains(changed(good.size() - 22 + 8, "\1\0"s), "in several parts");

  // Stored too short for what it says to unpack to.
  std::vector<ZipRecord> zeros = {{"a/data.pkl", std::string(100'000, '\0'), true}};
  std::string bomb = zip_bytes(zeros);
  const size_t entry = bomb.find("PK\x01\x02");
  check_contains(rejection(std::string(bomb).replace(entry + 24, 4, "\xff\xff\xff\x7f")),
                 "cannot hold 2147483647 bytes");
  check_contains(rejection(std::string(bomb).replace(entry + 24, 1, "\x01")),
                 "does not unpack to the");
}

TEST_CASE("the format before 1.6") {
  const std::string body = pickle::dict({{"w", pickle::tensor({})}});
  const std::string good = torch_legacy(body, {{4, kFourFloats}});
  CHECK(parse(good).find("w")->to_vector<float>() == std::vector<float>{1, 2, 3, 4});
  CHECK(parse(good).format == "PyTorch legacy");
  check_contains(rejection(good + "x"), "1 bytes follow the last storage");
  check_contains(rejection(good.substr(0, good.size() - 1)), "storage needs 16 bytes, 15 are left");
  check_contains(rejection(torch_legacy(body, {{5, kFourFloats}})), "has 5 elements, its tensors");
  check_contains(rejection(torch_legacy(body, {})), "the storage 0 of a tensor is missing");
  check_contains(rejection(torch_legacy(body, {{4, kFourFloats}, {4, kFourFloats}})),
                 "the storage 1 belongs to no tensor");
  // Classes of a whole model, with their source; the storage inside another one of PyTorch 0.3.
  using namespace pickle;
  const std::string type =
      tuple({string("module"), global("my", "Net"), string("net.py"), string("source")}) + "Q";
  const std::string module =
      type + ")\x81" + dict({{"_parameters", dict({{"w", tensor({})}, {"bias", "N"}})}}) + "b";
  const WeightFile whole_model = parse(torch_legacy(module, {{4, kFourFloats}}));
  REQUIRE(whole_model.tensors.size() == 1);
  CHECK(whole_model.tensors[0].name == "w");
  const std::string inner =
      tuple({string("storage"), global("torch", "FloatStorage"), string("0"), string("cpu"),
             integer(4), tuple({string("1"), integer(0), integer(4)})}) +
      "Q";
  check_contains(rejection(torch_legacy(dict({{"w", inner}}), {{4, kFourFloats}})),
                 "is a view of another one");
}
