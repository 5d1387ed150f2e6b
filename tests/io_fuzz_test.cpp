// Damaged weight files: every byte changed, every length cut, thousands of random mutations, random
// pickles. A reader may refuse a file or read it; with checksums it may not read it wrongly. The
// suite also runs under AddressSanitizer, and the buffers end where the files end.
#include <doctest/doctest.h>
#include <fstream>
#include <iterator>
#include <random>

#include "engine/io/weights.h"
#include "tests/support/weight_bytes.h"

using namespace graft;
using namespace graft::test;

namespace {

std::string contents(const std::string& name) {
  std::ifstream in(std::string(GRAFT_SOURCE_DIR) + "/tests/data/" + name, std::ios::binary);
  REQUIRE(in.good());
  return {std::istreambuf_iterator<char>(in), {}};
}

std::string small_torch_body() {
  using namespace pickle;
  return dict({{"epoch", integer(3)},
               {"state_dict", dict({{"a", tensor({})},
                                    {"b", tensor({.size = {2, 2}, .stride = {1, 2}})},
                                    {"c", tensor({.storage = "LongStorage",
                                                  .key = "1",
                                                  .count = 1,
                                                  .size = {},
                                                  .stride = {}})}})}});
}

const std::string kFloats = [] {
  const float values[] = {1, 2, 3, 4};
  return std::string(reinterpret_cast<const char*>(values), sizeof values);
}();

std::string small_zip() { return torch_zip(small_torch_body(), {kFloats, little(7, 8)}); }
std::string small_legacy() {
  return torch_legacy(small_torch_body(), {{4, kFloats}, {1, little(7, 8)}});
}
std::string small_safetensors() {
  return safetensors_bytes(
      "{\"__metadata__\":{\"k\":\"v\"},\"a\":{\"dtype\":\"I64\",\"shape\":[1],\"data_offsets\":[0,"
      "8]},"
      "\"b\":{\"dtype\":\"F32\",\"shape\":[2,2],\"data_offsets\":[8,24]},"
      "\"c\":{\"dtype\":\"BF16\",\"shape\":[0],\"data_offsets\":[24,24]}}",
      little(7, 8) + kFloats);
}

// Reads every byte, so that a tensor which reaches outside its memory is noticed.
uint64_t touch(const WeightFile& file) {
  uint64_t sum = 0;
  for (const FileTensor& t : file.tensors) {
    const auto* bytes = static_cast<const uint8_t*>(t.tensor.raw());
    for (size_t i = 0; i < t.tensor.bytes(); ++i) sum += bytes[i];
  }
  return sum;
}

bool equal(const WeightFile& a, const WeightFile& b) {
  if (a.tensors.size() != b.tensors.size()) return false;
  for (size_t i = 0; i < a.tensors.size(); ++i) {
    const FileTensor &x = a.tensors[i], &y = b.tensors[i];
    if (x.name != y.name || x.tensor.shape() != y.tensor.shape() ||
        x.tensor.dtype() != y.tensor.dtype() ||
        std::memcmp(x.tensor.raw(), y.tensor.raw(), x.tensor.bytes()) != 0) {
      return false;
    }
  }
  return true;
}

enum class Outcome { refused, same, different };

// Anything but Error (bad_alloc, length_error, a library's own exception) fails the test.
Outcome outcome(const std::string& bytes, const WeightFile& original) {
  try {
    const WeightFile file = parse_weights(in_memory(bytes));
    touch(file);
    return equal(file, original) ? Outcome::same : Outcome::different;
  } catch (const Error& error) {
    CHECK(std::string(error.what()).starts_with("file: "));
    return Outcome::refused;
  }
}

struct Sample {
  const char* name;
  std::string bytes;
  bool checksums;
};

std::vector<Sample> samples() {
  return {{"safetensors", small_safetensors(), false},
          {"zip", small_zip(), true},
          {"legacy", small_legacy(), false},
          {"protocol 4 by PyTorch", contents("torch_protocol4.pt"), true},
          {"deflated", contents("torch_deflated.pt"), true}};
}

// Numbers at which parsers break.
const uint64_t kEdges[] = {0,
                           1,
                           0x7F,
                           0x80,
                           0xFF,
                           0x7FFF,
                           0xFFFF,
                           1u << 31,
                           (1u << 31) - 1,
                           0xFFFFFFFF,
                           uint64_t{1} << 63,
                           UINT64_MAX};

std::string mutated(std::string bytes, std::mt19937& random) {
  const auto below = [&](size_t limit) { return limit == 0 ? 0 : random() % limit; };
  for (size_t count = 1 + below(4); count-- > 0;) {
    const size_t at = below(bytes.size());
    switch (below(7)) {
      case 0:
        bytes[at] = static_cast<char>(random());
        break;
      case 1:
        bytes[at] = static_cast<char>(bytes[at] ^ (1 << below(8)));
        break;
      case 2:
        bytes.erase(at, 1 + below(16));
        break;
      case 3:
        bytes.insert(at, bytes.substr(below(bytes.size()), 1 + below(32)));
        break;
      case 4:
        bytes.resize(at + 1);
        break;
      default: {
        const std::string number = little(kEdges[below(std::size(kEdges))], 1 << below(4));
        bytes.replace(at, number.size(), number);
      }
    }
    if (bytes.empty()) bytes = "x";
  }
  return bytes;
}

}  // namespace

TEST_CASE("every byte changed in every file: refused, or the same tensors where checksums exist") {
  for (const Sample& sample : samples()) {
    CAPTURE(sample.name);
    const WeightFile original = parse_weights(in_memory(sample.bytes));
    REQUIRE(original.tensors.size() >= 3);
    size_t refused = 0;
    for (size_t at = 0; at < sample.bytes.size(); ++at) {
      for (const int change : {0x01, 0x80, 0xFF}) {
        std::string damaged = sample.bytes;
        damaged[at] = static_cast<char>(damaged[at] ^ change);
        const Outcome result = outcome(damaged, original);
        refused += result == Outcome::refused;
        if (sample.checksums) {
          CHECK_MESSAGE(result != Outcome::different, "byte " << at << " change " << change);
        }
      }
    }
    CHECK(refused > sample.bytes.size());
  }
}

TEST_CASE("every truncation is refused") {
  for (const Sample& sample : samples()) {
    CAPTURE(sample.name);
    const WeightFile original = parse_weights(in_memory(sample.bytes));
    for (size_t length = 0; length < sample.bytes.size(); ++length) {
      CHECK_MESSAGE(outcome(sample.bytes.substr(0, length), original) == Outcome::refused,
                    "length " << length);
    }
  }
}

TEST_CASE("20,000 random mutations of each format") {
  std::mt19937 random(20240607);
  for (const Sample& sample : samples()) {
    CAPTURE(sample.name);
    const WeightFile original = parse_weights(in_memory(sample.bytes));
    size_t read = 0;
    for (int i = 0; i < 20'000; ++i) {
      read += outcome(mutated(sample.bytes, random), original) != Outcome::refused;
    }
    CHECK(read > 0);
    CHECK(read < 20'000);
  }
}

// Behind a checksum mutations hardly reach the pickle machine: here the archive is made around
// them.
TEST_CASE("20,000 mutated pickles in sound archives") {
  std::mt19937 random(7);
  const WeightFile original = parse_torch(in_memory(small_zip()));
  size_t read = 0;
  for (int i = 0; i < 20'000; ++i) {
    const std::string bytes =
        torch_zip(mutated(small_torch_body(), random), {kFloats, little(7, 8)});
    read += outcome(bytes, original) != Outcome::refused;
  }
  CHECK(read > 0);
  CHECK(read < 20'000);
}

TEST_CASE("10,000 random sequences of pickle opcodes") {
  using namespace pickle;
  std::mt19937 random(11);
  const std::vector<std::string> pieces = {"N",
                                           "\x88",
                                           "\x89",
                                           integer(5),
                                           "K\3",
                                           "M\1\2",
                                           std::string("\x8a\2\1\2"),
                                           "G" + std::string(8, '@'),
                                           string("key"),
                                           "U\1k",
                                           "}",
                                           "]",
                                           ")",
                                           "\x8f",
                                           "(",
                                           "(",
                                           "t",
                                           "\x85",
                                           "\x86",
                                           "\x87",
                                           "a",
                                           "e",
                                           "s",
                                           "u",
                                           "\x90",
                                           "\x91",
                                           "q\1",
                                           "q\2",
                                           "h\1",
                                           "h\2",
                                           "r" + little(1, 4),
                                           "j" + little(2, 4),
                                           "\x94",
                                           "R",
                                           "R",
                                           "b",
                                           "\x81",
                                           "\x92",
                                           "Q",
                                           "\x93",
                                           global("collections", "OrderedDict"),
                                           global("torch._utils", "_rebuild_tensor_v2"),
                                           global("torch._utils", "_rebuild_parameter"),
                                           global("os", "system"),
                                           global("torch", "FloatStorage"),
                                           storage({}),
                                           tensor({}),
                                           integers({4}),
                                           "\x8c\1x",
                                           "C\1b"};
  const WeightFile nothing;
  size_t read = 0;
  for (int i = 0; i < 10'000; ++i) {
    std::string body;
    for (size_t count = 1 + random() % 40; count-- > 0;) body += pieces[random() % pieces.size()];
    // Half of them closed so that they end with one value: everything so far goes into a tuple.
    if (random() % 2) body = "(" + body + "t";
    read += outcome(torch_zip(body, {kFloats}), nothing) != Outcome::refused;
  }
  CHECK(read > 10);
}
