// The safetensors format: https://github.com/huggingface/safetensors. The checks stand in the order
// of the reference reader, so that a bad file gets the same verdict from both.
#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/io/byte_reader.h"
#include "engine/io/formats.h"
#include "engine/io/safetensors_header.h"

namespace graft {
namespace {

constexpr uint64_t kMaxHeader = 100'000'000;

struct DtypeName {
  std::string_view name;
  uint64_t bits;
  std::optional<Dtype> dtype;  // none: known to the format, not to graft
};

constexpr std::array<DtypeName, 22> kDtypes = {{
    {"BOOL", 8, Dtype::boolean},
    {"F4", 4, {}},
    {"F6_E2M3", 6, {}},
    {"F6_E3M2", 6, {}},
    {"U8", 8, Dtype::u8},
    {"I8", 8, Dtype::i8},
    {"F8_E5M2", 8, {}},
    {"F8_E4M3", 8, {}},
    {"F8_E8M0", 8, {}},
    {"F8_E4M3FNUZ", 8, {}},
    {"F8_E5M2FNUZ", 8, {}},
    {"I16", 16, Dtype::i16},
    {"U16", 16, {}},
    {"F16", 16, Dtype::f16},
    {"BF16", 16, Dtype::bf16},
    {"I32", 32, Dtype::i32},
    {"U32", 32, {}},
    {"F32", 32, Dtype::f32},
    {"C64", 64, {}},
    {"F64", 64, Dtype::f64},
    {"I64", 64, Dtype::i64},
    {"U64", 64, {}},
}};

const DtypeName* find_dtype(std::string_view name) {
  const auto found = std::ranges::find(kDtypes, name, &DtypeName::name);
  return found == kDtypes.end() ? nullptr : &*found;
}

std::string_view file_name_of(Dtype dtype) {
  return std::ranges::find(kDtypes, std::optional(dtype), &DtypeName::dtype)->name;
}

// The bytes of a tensor as shape and dtype say, checked against the offsets.
void check_extent(const HeaderEntry& entry, const DtypeName& dtype, uint64_t previous_end,
                  const std::string& subject) {
  GRAFT_CHECK(entry.begin == previous_end, subject, ": its data begin at byte ", entry.begin,
              " of the data, the tensor before it ends at ", previous_end,
              "; the format allows no gap and no overlap");
  GRAFT_CHECK(entry.end >= entry.begin, subject, ": its data end at byte ", entry.end,
              ", before their begin at ", entry.begin);
  uint64_t elements = 1, bits = 0;
  GRAFT_CHECK(checked_bytes(entry.shape, 1, &elements) &&
                  !__builtin_mul_overflow(elements, dtype.bits, &bits),
              subject, ": the number of elements of shape ", entry.shape, " overflows");
  GRAFT_CHECK(bits % 8 == 0, subject, ": ", elements, " elements of ", dtype.name,
              " do not fill whole bytes");
  GRAFT_CHECK(entry.end - entry.begin == bits / 8, subject, ": shape ", entry.shape, " of ",
              dtype.name, " needs ", bits / 8, " bytes, its offsets [", entry.begin, ", ",
              entry.end, "] hold ", entry.end - entry.begin);
}

void append_padding(std::string& header) { header.append((8 - header.size() % 8) % 8, ' '); }

}  // namespace

WeightFile parse_safetensors(const FileBytes& file) {
  ByteReader in(file.bytes, file.name);
  GRAFT_CHECK(file.bytes.size() >= 8, file.name, ": ", file.bytes.size(),
              " bytes are too few for safetensors, which begins with an 8-byte header length");
  const auto length = in.little<uint64_t>("header length");
  GRAFT_CHECK(length <= kMaxHeader, file.name, ": byte 0: a header of ", length,
              " bytes is over the format's limit of ", kMaxHeader);
  GRAFT_CHECK(length <= in.remaining(), file.name, ": byte 0: a header of ", length,
              " bytes does not fit into the ", in.remaining(),
              " bytes that follow; the file is cut short or damaged");
  SafetensorsHeader header = parse_safetensors_header(in.chars(length, "header"), file.name);
  std::ranges::stable_sort(header.entries, {},
                           [](const HeaderEntry& e) { return std::pair(e.begin, e.end); });

  WeightFile result;
  result.format = "safetensors";
  result.metadata = std::move(header.metadata);
  const uint64_t data_bytes = in.remaining();
  uint64_t end = 0;
  std::vector<const DtypeName*> dtypes;
  for (const HeaderEntry& entry : header.entries) {
    const std::string subject = text(file.name, ": tensor '", printable(entry.name), "'");
    const DtypeName* dtype = find_dtype(entry.dtype);
    GRAFT_CHECK(dtype != nullptr, subject, ": unknown dtype '", printable(entry.dtype), "'");
    check_extent(entry, *dtype, end, subject);
    end = entry.end;
    dtypes.push_back(dtype);
  }
  GRAFT_CHECK(end == data_bytes, file.name, ": the tensors end at byte ", end,
              " of the data, the file has ", data_bytes, " bytes of data: it is ",
              end > data_bytes ? "cut short" : "followed by bytes that belong to no tensor");

  uint8_t* data = file.bytes.data() + 8 + length;
  for (size_t i = 0; i < header.entries.size(); ++i) {
    HeaderEntry& entry = header.entries[i];
    GRAFT_CHECK(dtypes[i]->dtype.has_value(), file.name, ": tensor '", printable(entry.name),
                "' has dtype ", entry.dtype,
                ", which graft cannot hold; convert it to F32, F16 or BF16 first");
    result.tensors.push_back(
        {std::move(entry.name),
         tensor_over(data + entry.begin, file.owner, std::move(entry.shape), *dtypes[i]->dtype),
         ""});
  }
  return result;
}

void write_safetensors(const std::filesystem::path& path,
                       const std::map<std::string, Tensor>& tensors, const Metadata& metadata) {
  // Descending alignment keeps every tensor aligned in the mapping without gaps.
  std::vector<std::pair<std::string, Tensor>> order;
  for (const auto& [name, tensor] : tensors) {
    GRAFT_CHECK(tensor.defined(), path.string(), ": tensor '", printable(name),
                "' has no value and cannot be written");
    GRAFT_CHECK(name != "__metadata__", path.string(), ": a tensor cannot be named __metadata__");
    order.emplace_back(name, tensor.to(kCpu));
  }
  std::ranges::stable_sort(order, std::ranges::greater(),
                           [](const auto& item) { return size_of(item.second.dtype()); });

  nlohmann::ordered_json header = nlohmann::ordered_json::object();
  std::string text_of_header;
  try {
    if (!metadata.empty()) header["__metadata__"] = metadata;
    uint64_t end = 0;
    for (const auto& [name, tensor] : order) {
      header[name] = {{"dtype", file_name_of(tensor.dtype())},
                      {"shape", tensor.shape()},
                      {"data_offsets", {end, end + tensor.bytes()}}};
      end += tensor.bytes();
    }
    text_of_header = header.dump();
  } catch (const nlohmann::json::exception&) {
    fail(path.string(), ": a tensor name or metadata text is not valid UTF-8");
  }
  append_padding(text_of_header);
  const uint64_t length = text_of_header.size();
  GRAFT_CHECK(length <= kMaxHeader, path.string(), ": a header of ", length,
              " bytes is over the format's limit of ", kMaxHeader, "; shorten the metadata");

  AtomicFile out(path);
  out.write(&length, sizeof length);
  out.write(text_of_header.data(), text_of_header.size());
  for (const auto& [name, tensor] : order) out.write(tensor.raw(), tensor.bytes());
  out.commit();
}

}  // namespace graft
