// A SAX reader: memory stays proportional to the tensors described, depth to the format's three
// levels, and duplicate keys are seen where a DOM would silently keep one of them (the differences
// between parsers that the Trail of Bits audit of safetensors warns of, TOB-SFTN-7).
#include "engine/io/safetensors_header.h"

#include <algorithm>
#include <array>
#include <nlohmann/json.hpp>
#include <unordered_set>

#include "engine/io/byte_reader.h"

namespace graft {
namespace {

using nlohmann::json;

constexpr size_t kMaxRank = 64;

class HeaderReader : public nlohmann::json_sax<json> {
 public:
  HeaderReader(const std::string& where, SafetensorsHeader& out) : where_(where), out_(out) {}

  bool start_object(size_t) override {
    if (level_ == Level::file) {
      level_ = Level::names;
    } else {
      want(level_ == Level::names, "an object");
      level_ = in_metadata_ ? Level::metadata : Level::tensor;
      field_ = Field::none;
    }
    return true;
  }

  bool key(std::string& key) override {
    if (level_ == Level::names) {
      reject_duplicate(names_.insert(key).second, key);
      in_metadata_ = key == "__metadata__";
      if (!in_metadata_) out_.entries.push_back({key, {}, {}, 0, 0});
      seen_ = {};
    } else if (level_ == Level::metadata) {
      reject_duplicate(!out_.metadata.contains(key), key);
      metadata_key_ = key;
      out_.metadata[key];
    } else {
      field_ = key == "dtype"          ? Field::dtype
               : key == "shape"        ? Field::shape
               : key == "data_offsets" ? Field::offsets
                                       : Field::none;
      GRAFT_CHECK(field_ != Field::none, subject(), ": unknown field '", printable(key),
                  "'; a tensor has dtype, shape and data_offsets");
      bool& seen = seen_[static_cast<size_t>(field_)];
      reject_duplicate(!seen, key);
      seen = true;
    }
    return true;
  }

  bool end_object() override {
    if (level_ == Level::names) {
      level_ = Level::done;
      return true;
    }
    if (level_ == Level::tensor) {
      GRAFT_CHECK(seen_[0] && seen_[1] && seen_[2], subject(), ": the field '",
                  !seen_[0]   ? "dtype"
                  : !seen_[1] ? "shape"
                              : "data_offsets",
                  "' is missing");
    }
    level_ = Level::names;
    return true;
  }

  bool start_array(size_t) override {
    want(level_ == Level::tensor && (field_ == Field::shape || field_ == Field::offsets), "a list");
    level_ = Level::list;
    offsets_ = 0;
    return true;
  }

  bool end_array() override {
    GRAFT_CHECK(field_ != Field::offsets || offsets_ == 2, subject(),
                ": data_offsets holds two numbers, begin and end; there are ", offsets_);
    level_ = Level::tensor;
    return true;
  }

  bool number_unsigned(uint64_t value) override {
    want(level_ == Level::list, "a number");
    HeaderEntry& entry = out_.entries.back();
    if (field_ == Field::offsets) {
      if (offsets_ < 2) (offsets_ == 0 ? entry.begin : entry.end) = value;
      ++offsets_;
      return true;
    }
    GRAFT_CHECK(value <= static_cast<uint64_t>(INT64_MAX), subject(), ": the size ", value,
                " in its shape overflows");
    GRAFT_CHECK(entry.shape.size() < kMaxRank, subject(), ": more than ", kMaxRank, " dimensions");
    entry.shape.push_back(static_cast<int64_t>(value));
    return true;
  }

  bool string(std::string& value) override {
    if (level_ == Level::metadata) {
      out_.metadata[metadata_key_] = value;
      return true;
    }
    want(level_ == Level::tensor && field_ == Field::dtype, "a string");
    out_.entries.back().dtype = value;
    return true;
  }

  bool null() override { return refuse("null"); }
  bool boolean(bool) override { return refuse("true or false"); }
  bool number_integer(int64_t) override { return refuse("a negative number"); }
  bool number_float(double, const std::string& raw) override {
    return refuse("the number " + printable(raw));
  }
  bool binary(json::binary_t&) override { return refuse("binary data"); }

  bool parse_error(size_t position, const std::string&,
                   const nlohmann::detail::exception&) override {
    // nlohmann counts from 1; eight bytes of length stand before the header.
    fail(where_, ": byte ", 8 + (position > 0 ? position - 1 : 0),
         ": the header is not valid JSON in UTF-8; the file is damaged or not safetensors");
  }

 private:
  enum class Level { file, names, tensor, metadata, list, done };
  enum class Field { dtype, shape, offsets, none };

  std::string subject() const {
    if (level_ == Level::file || level_ == Level::done) return where_ + ": header";
    if (in_metadata_) return where_ + ": __metadata__";
    if (out_.entries.empty()) return where_ + ": header";
    return where_ + ": tensor '" + printable(out_.entries.back().name) + "'";
  }
  void want(bool fits, const char* what) const {
    if (!fits) refuse(what);
  }
  bool refuse(const std::string& what) const {
    const char* expected = level_ == Level::file       ? "an object that names the tensors"
                           : level_ == Level::metadata ? "strings only"
                           : level_ == Level::names    ? "an object"
                           : level_ == Level::list     ? "whole numbers from 0"
                           : field_ == Field::dtype    ? "a string as dtype"
                                                       : "a list of whole numbers";
    fail(subject(), ": the header has ", what, " where the format wants ", expected);
  }
  void reject_duplicate(bool fresh, const std::string& key) const {
    GRAFT_CHECK(fresh, where_, ": the header has the key '", printable(key),
                "' twice in one object; which one counts would depend on the reader");
  }

  const std::string& where_;
  SafetensorsHeader& out_;
  Level level_ = Level::file;
  Field field_ = Field::none;
  bool in_metadata_ = false;
  std::array<bool, 4> seen_{};
  size_t offsets_ = 0;
  std::string metadata_key_;
  std::unordered_set<std::string> names_;
};

}  // namespace

SafetensorsHeader parse_safetensors_header(std::string_view json_text, const std::string& where) {
  // Two leniencies of the JSON library that the reference reader does not share: it takes a NUL for
  // the end of the text, and skips a byte order mark.
  const size_t nul = json_text.find('\0');
  GRAFT_CHECK(nul == std::string_view::npos, where, ": byte ", 8 + nul,
              ": a zero byte in the header, which pads with spaces; save the file again");
  const size_t first = json_text.find_first_not_of(" \t\r\n");
  GRAFT_CHECK(first != std::string_view::npos && json_text[first] == '{', where, ": byte ",
              8 + std::min(first, json_text.size()),
              ": the header does not begin with '{'; the file is damaged or not safetensors");
  SafetensorsHeader header;
  HeaderReader reader(where, header);
  json::sax_parse(json_text.begin(), json_text.end(), &reader);
  return header;
}

}  // namespace graft
