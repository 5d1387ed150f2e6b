// safetensors: the bad inputs of the reference reader's own tests and of bugs found in other
// readers, each with the rule it breaks; what may be read; what is written.
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <unistd.h>

#include "engine/io/weights.h"
#include "tests/support/weight_bytes.h"

using namespace graft;
using namespace graft::test;

namespace {

std::string rejection(const std::string& bytes) {
  return error_of([&] { parse_safetensors(in_memory(bytes)); });
}

std::string rejected_header(const std::string& header, const std::string& data = "") {
  return rejection(safetensors_bytes(header, data));
}

void check_contains(const std::string& message, const std::string& part) {
  CHECK_MESSAGE(message.find(part) != std::string::npos,
                "message: " << message << "\nwanted: " << part);
}

std::filesystem::path scratch(const std::string& name) {
  const auto folder = std::filesystem::temp_directory_path() /
                      ("graft_safetensors_test_" + std::to_string(::getpid()));
  std::filesystem::create_directories(folder);
  return folder / name;
}

std::string contents(const std::filesystem::path& path) {
  std::ifstream in(path, std::ios::binary);
  return {std::istreambuf_iterator<char>(in), {}};
}

}  // namespace

TEST_CASE("every rule of the format has its own message") {
  struct Bad {
    std::string bytes;
    std::string message;
  };
  const auto one = [](const std::string& dtype, const std::string& shape, uint64_t end) {
    return "{\"t\":{\"dtype\":\"" + dtype + "\",\"shape\":" + shape + ",\"data_offsets\":[0," +
           std::to_string(end) + "]}}";
  };
  const auto file = [](const std::string& header, size_t data_bytes = 0) {
    return safetensors_bytes(header, std::string(data_bytes, '\0'));
  };
  const std::vector<Bad> bad = {
      {"", "file: 0 bytes are too few"},
      {"1234567", "7 bytes are too few"},
      {little(0x3c, 8), "byte 0: a header of 60 bytes does not fit into the 0 bytes"},
      {little(0x3c, 1) + little(0, 4) + "\xff\xff\xff", "over the format's limit of 100000000"},
      {little(100'000'001, 8) + "{}", "over the format's limit"},
      {little(100'000'000, 8) + "{}", "does not fit into the 2 bytes that follow"},
      {little(UINT64_MAX, 8) + "{}", "over the format's limit"},
      {file(""), "byte 8: the header does not begin with '{'"},
      {file("\xff"), "does not begin with '{'"},
      {file("{"), "byte 9: the header is not valid JSON in UTF-8"},
      {file("[]"), "does not begin with '{'"},
      {file("\xef\xbb\xbf{}"), "does not begin with '{'"},
      {file(std::string("{}\0\0", 4)), "byte 10: a zero byte in the header"},
      {file("{} x"), "not valid JSON"},
      {file("{}{}"), "not valid JSON"},
      {file("{\"a\xff\":1}"), "not valid JSON in UTF-8"},
      {file("{\"\\ud800\":1}"), "not valid JSON"},
      {file("{'t':1}"), "not valid JSON"},
      {file("{/* */}"), "not valid JSON"},
      {file("{\"t\":1}"), "where the format wants an object"},
      {file("{\"t\":null}"), "the header has null"},
      {file("{\"t\":[]}"), "the header has a list"},
      {file("{\"t\":{}}"), "tensor 't': the field 'dtype' is missing"},
      {file("{\"t\":{\"dtype\":\"F32\",\"shape\":[]}}"), "the field 'data_offsets' is missing"},
      {file("{\"t\":{\"dtype\":\"F32\",\"data_offsets\":[0,4]}}"), "the field 'shape' is missing"},
      {file("{\"t\":{\"dtype\":3}}"), "a string as dtype"},
      {file("{\"t\":{\"shape\":[-1]}}"), "a negative number where the format wants whole"},
      {file("{\"t\":{\"shape\":[1.0]}}"), "the number 1.0 where"},
      {file("{\"t\":{\"shape\":[18446744073709551616]}}"), "the number 18446744073709551616"},
      {file("{\"t\":{\"shape\":[[1]]}}"), "the header has a list"},
      {file("{\"t\":{\"shape\":[true]}}"), "true or false"},
      {file("{\"t\":{\"shape\":{}}}"), "the header has an object"},
      {file("{\"t\":{\"data_offsets\":[0]}}"), "data_offsets holds two numbers"},
      {file("{\"t\":{\"data_offsets\":[0,1,2]}}"), "there are 3"},
      {file("{\"t\":{\"x\":0}}"), "unknown field 'x'"},
      {file("{\"t\":{\"dtype\":\"F32\",\"dtype\":\"F32\"}}"), "the key 'dtype' twice"},
      {file("{\"__metadata__\":{\"a\":\"1\",\"a\":\"2\"}}"), "the key 'a' twice"},
      {file("{\"__metadata__\":{},\"__metadata__\":{}}"), "the key '__metadata__' twice"},
      {file("{\"__metadata__\":{\"a\":1}}"),
       "__metadata__: the header has a number where the "
       "format wants strings only"},
      {file("{\"__metadata__\":{\"a\":{}}}"), "__metadata__: the header has an object"},
      {file("{\"t\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]},"
            "\"t\":{\"dtype\":\"I32\",\"shape\":[1],\"data_offsets\":[0,4]}}",
            4),
       "the key 't' twice"},
      {file(one("F32", "[1]", 4), 5), "followed by bytes that belong to no tensor"},
      {file("{}", 1), "the tensors end at byte 0 of the data, the file has 1"},
      {file(one("I32", "[2,2]", 16), 14), "it is cut short"},
      {file(one("I32", "[2,2]", 4), 4), "needs 16 bytes, its offsets [0, 4] hold 4"},
      {file(one("I32", "[2,18446744073709551614]", 16), 16), "in its shape overflows"},
      {file(one("I32", "[2,9223372036854775807]", 16), 16), "overflows"},
      {file(one("I32", "[4194305,4194305,211106198978564]", 16), 16), "overflows"},
      {file(one("I32", "[4294967296,4294967296]", 0)), "overflows"},
      {file(one("F32", "[9223372036854775807]", 4), 4), "overflows"},
      {file(one("F4", "[3]", 1), 1), "3 elements of F4 do not fill whole bytes"},
      {file(one("F99", "[1]", 4), 4), "tensor 't': unknown dtype 'F99'"},
      {file(one("F8_E4M3", "[2]", 2), 2), "tensor 't' has dtype F8_E4M3, which graft cannot hold"},
      {file(one("C64", "[2]", 16), 16), "tensor 't' has dtype C64, which graft cannot hold"},
      {file("{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}", 2),
       "its data begin at byte 1 of the data, the tensor before it ends at 0"},
      {file("{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,18446744073709551615]}}",
            1),
       "needs 1 bytes"},
      {file("{\"a\":{\"dtype\":\"U8\",\"shape\":[0],\"data_offsets\":[0,0]},"
            "\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[2,1]}}",
            1),
       "tensor 't': its data begin at byte 2"},
      {file("{\"t\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[0,2]},"
            "\"u\":{\"dtype\":\"U8\",\"shape\":[1],\"data_offsets\":[1,2]}}",
            2),
       "tensor 't': shape [1] of U8 needs 1 bytes"},
  };
  for (const Bad& input : bad) check_contains(rejection(input.bytes), input.message);
}

TEST_CASE("tensors that alias one range are refused, be they ten or a hundred thousand") {
  for (const int count : {10, 100'000}) {
    std::string header = "{";
    for (int i = 0; i < count; ++i) {
      header += (i ? ",\"" : "\"") + std::to_string(i) +
                "\":{\"dtype\":\"I32\",\"shape\":[2,2],\"data_offsets\":[0,16]}";
    }
    check_contains(rejected_header(header + "}", std::string(16, '\0')),
                   "the format allows no gap and no overlap");
  }
}

TEST_CASE("deep nesting and many dimensions stop early") {
  check_contains(rejected_header("{\"t\":" + std::string(1'000'000, '[')), "the header has a list");
  check_contains(rejected_header("{\"t\":{\"shape\":" + std::string(1'000'000, '[')),
                 "the header has a list");
  std::string shape = "1";
  for (int i = 0; i < 100; ++i) shape += ",1";
  check_contains(rejected_header("{\"t\":{\"shape\":[" + shape + "]}}"), "more than 64 dimensions");
}

TEST_CASE("all 22 dtypes are known by name") {
  const std::vector<std::pair<std::string, int>> names = {
      {"BOOL", 8},        {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6}, {"U8", 8},
      {"I8", 8},          {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8},
      {"F8_E5M2FNUZ", 8}, {"I16", 16},    {"U16", 16},    {"F16", 16},    {"BF16", 16},
      {"I32", 32},        {"U32", 32},    {"F32", 32},    {"C64", 64},    {"F64", 64},
      {"I64", 64},        {"U64", 64}};
  CHECK(names.size() == 22);
  int held = 0;
  for (const auto& [name, bits] : names) {
    const std::string header = "{\"t\":{\"dtype\":\"" + name +
                               "\",\"shape\":[4],\"data_offsets\":[0," + std::to_string(bits / 2) +
                               "]}}";
    const std::string message = rejected_header(header, std::string(bits / 2, '\0'));
    if (message.empty()) {
      ++held;
    } else {
      check_contains(message, "has dtype " + name + ", which graft cannot hold");
    }
  }
  CHECK(held == 10);
}

TEST_CASE("what the reference reader accepts is accepted") {
  // Spaces on both sides of the header, rank 0, zero-size tensors that share an offset, a name with
  // an escape, tensors listed out of order.
  const std::string header =
      " \n{\"\\u00e9\":{\"dtype\":\"F32\",\"shape\":[],\"data_offsets\":[4,8]},"
      "\"e1\":{\"dtype\":\"F32\",\"shape\":[0,3],\"data_offsets\":[0,0]},"
      "\"e2\":{\"dtype\":\"I64\",\"shape\":[2,0],\"data_offsets\":[0,0]},"
      "\"first\":{\"shape\":[1],\"data_offsets\":[0,4],\"dtype\":\"I32\"},"
      "\"__metadata__\":{\"format\":\"pt\"}}  \n";
  const float value = 1.5f;
  std::string data = little(7, 4) + std::string(4, '\0');
  std::memcpy(data.data() + 4, &value, 4);
  const WeightFile file = parse_safetensors(in_memory(safetensors_bytes(header, data)));
  REQUIRE(file.tensors.size() == 4);
  CHECK(file.tensors.back().name == "\u00e9");
  CHECK(file.find("\u00e9")->item() == 1.5f);
  CHECK(file.find("first")->to_vector<int32_t>() == std::vector<int32_t>{7});
  CHECK(file.find("e1")->shape() == Shape{0, 3});
  CHECK(file.find("e2")->numel() == 0);
  CHECK(file.find("none") == nullptr);
  CHECK(file.metadata == Metadata{{"format", "pt"}});
  CHECK(file.format == "safetensors");
  CHECK(parse_safetensors(in_memory(safetensors_bytes("{}"))).tensors.empty());
}

TEST_CASE("aligned tensors are views of the mapping, others are copies, and both are right") {
  for (const size_t spaces : {0u, 1u, 2u, 3u, 4u}) {
    const std::string header = "{\"t\":{\"dtype\":\"I32\",\"shape\":[2],\"data_offsets\":[0,8]}}" +
                               std::string(spaces, ' ');
    const FileBytes bytes = in_memory(safetensors_bytes(header, little(11, 4) + little(12, 4)));
    const WeightFile file = parse_safetensors(bytes);
    const Tensor& t = file.tensors[0].tensor;
    CHECK(t.to_vector<int32_t>() == std::vector<int32_t>{11, 12});
    const auto* raw = static_cast<const uint8_t*>(t.raw());
    const bool inside = raw >= bytes.bytes.data() && raw < bytes.bytes.data() + bytes.bytes.size();
    CHECK(inside == ((8 + header.size()) % 4 == 0));
    CHECK(reinterpret_cast<uintptr_t>(raw) % 4 == 0);
  }
}

TEST_CASE("a written file reads back, is laid out by the rules and is the same every time") {
  const auto path = scratch("round.safetensors");
  std::map<std::string, Tensor> tensors = {
      {"b.weight", Tensor::of<float>({1.f, -2.f, 3.5f, 0.f, 5.f, 6.f}, {2, 3})},
      {"a.count", Tensor::of<int64_t>({42}, {})},
      {"c.pixels", Tensor::of<uint8_t>({1, 2, 3})},
      {"a.weight", Tensor::of<float>({9.f})},
      {"empty", Tensor(Shape{0, 4})},
      {"half", Tensor::zeros({3}, Dtype::bf16)},
      {"flag", Tensor::zeros({1}, Dtype::boolean)},
      {"quote\"\n\u00e9", Tensor::of<double>({0.1})}};
  const Metadata metadata = {{"z", "last"}, {"a", "f\"irst\n"}};
  write_safetensors(path, tensors, metadata);
  const std::string bytes = contents(path);
  uint64_t header_bytes;
  std::memcpy(&header_bytes, bytes.data(), 8);
  CHECK(header_bytes % 8 == 0);
  CHECK(bytes[8] == '{');
  CHECK(bytes.substr(8).starts_with("{\"__metadata__\":{\"a\":\"f\\\"irst\\n\",\"z\":\"last\"}"));

  const WeightFile file = read_weights(path);
  CHECK(file.metadata == metadata);
  std::vector<std::string> names;
  for (const FileTensor& t : file.tensors) {
    names.push_back(t.name);
    const Tensor& expected = tensors.at(t.name);
    CHECK(t.tensor.shape() == expected.shape());
    CHECK(t.tensor.dtype() == expected.dtype());
    CHECK(std::memcmp(t.tensor.raw(), expected.raw(), expected.bytes()) == 0);
    CHECK(reinterpret_cast<uintptr_t>(t.tensor.raw()) % size_of(expected.dtype()) == 0);
  }
  // By falling alignment, then by name; the empty tensor shares the offset of the next.
  CHECK(names == std::vector<std::string>{"a.count", "quote\"\n\u00e9", "a.weight", "b.weight",
                                          "empty", "half", "c.pixels", "flag"});

  const std::string digest = sha256_hex(path);
  write_safetensors(path, tensors, metadata);
  CHECK(sha256_hex(path) == digest);
  // The mapping of the replaced file still shows the old bytes.
  CHECK(file.find("a.weight")->item() == 9.f);
  // A change through the mapping stays in memory.
  Tensor mapped = *file.find("a.weight");
  mapped.mutable_data<float>()[0] = 1.f;
  CHECK(read_weights(path).find("a.weight")->item() == 9.f);
  std::filesystem::remove_all(path.parent_path());
}

TEST_CASE("what cannot be written is refused before anything is touched") {
  const auto path = scratch("refused.safetensors");
  const auto write = [&](const std::string& name, const Tensor& tensor, const Metadata& metadata) {
    return error_of([&] { write_safetensors(path, {{name, tensor}}, metadata); });
  };
  check_contains(write("t", Tensor(), {}), "tensor 't' has no value");
  check_contains(write("__metadata__", Tensor::scalar(1), {}), "cannot be named __metadata__");
  check_contains(write("\xff", Tensor::scalar(1), {}), "not valid UTF-8");
  check_contains(write("t", Tensor::scalar(1), {{"k", "\xff"}}), "not valid UTF-8");
  CHECK_FALSE(std::filesystem::exists(path));
  std::filesystem::remove_all(path.parent_path());
}

TEST_CASE("files are told apart by content") {
  const auto rejected = [](const std::string& bytes) {
    return error_of([&] { parse_weights(in_memory(bytes)); });
  };
  const std::string expected =
      "file: not a weight file: expected safetensors or a PyTorch checkpoint";
  for (const std::string& bytes :
       {std::string(), std::string("hello {world}, this is text"), std::string(1000, '\xff'),
        std::string("\x89PNG\r\n\x1a\n0000000000"), std::string("\x80\x02}q\x00.", 6)}) {
    CHECK(rejected(bytes) == expected);
  }
  check_contains(rejected("version https://git-lfs.github.com/spec/v1\n"), "git lfs pull");
  check_contains(rejected("<!DOCTYPE html><html>"), "is a web page");
  check_contains(error_of([] { read_weights("/no/such/file"); }),
                 "/no/such/file: cannot be opened");
  check_contains(error_of([] { read_weights("/"); }), "is a folder");
  check_contains(error_of([] { read_weights("/dev/zero"); }), "not a regular file");
}
