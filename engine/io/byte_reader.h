// A cursor over bytes that cannot leave them: every read says what it reads and fails with the
// file, the byte offset and the sizes when the bytes are not there.
#pragma once

#include <bit>
#include <concepts>
#include <cstring>
#include <span>
#include <string>
#include <string_view>

#include "kernels/error.h"

namespace graft {

static_assert(std::endian::native == std::endian::little, "weight files are read in place");

using ByteSpan = std::span<const uint8_t>;

class ByteReader {
 public:
  // `where` starts every message: the file, and the record in it.
  ByteReader(ByteSpan bytes, std::string where) : bytes_(bytes), where_(std::move(where)) {}

  size_t position() const { return position_; }
  size_t remaining() const { return bytes_.size() - position_; }
  const std::string& where() const { return where_; }

  void seek(uint64_t position, const char* what) {
    GRAFT_CHECK(position <= bytes_.size(), where_, ": ", what, " is said to be at byte ", position,
                ", but there are ", bytes_.size(), " bytes: the file is cut short or damaged");
    position_ = position;
  }

  ByteSpan take(uint64_t count, const char* what) {
    GRAFT_CHECK(count <= remaining(), where_, ": byte ", position_, ": ", what, " needs ", count,
                " bytes, ", remaining(), " are left: the file is cut short or damaged");
    const ByteSpan taken = bytes_.subspan(position_, count);
    position_ += count;
    return taken;
  }

  template <std::integral T>
  T little(const char* what) {
    T value;
    std::memcpy(&value, take(sizeof(T), what).data(), sizeof(T));
    return value;
  }

  std::string_view chars(uint64_t count, const char* what) {
    const ByteSpan taken = take(count, what);
    return {reinterpret_cast<const char*>(taken.data()), taken.size()};
  }

  // The bytes up to the next newline, which is taken too.
  std::string_view line(const char* what) {
    const void* end = remaining() ? std::memchr(&bytes_[position_], '\n', remaining()) : nullptr;
    GRAFT_CHECK(end != nullptr, where_, ": byte ", position_, ": ", what,
                " has no end: the file is cut short or damaged");
    const size_t length = static_cast<const uint8_t*>(end) - &bytes_[position_];
    const std::string_view taken = chars(length + 1, what);
    return taken.substr(0, length);
  }

 private:
  ByteSpan bytes_;
  std::string where_;
  size_t position_ = 0;
};

// Text from a file made fit for a message: at most 200 bytes, control characters replaced, so that
// a hostile name cannot drive a terminal.
inline std::string printable(std::string_view raw) {
  std::string clean(raw.substr(0, 200));
  for (char& c : clean) {
    if (static_cast<unsigned char>(c) < 0x20 || c == 0x7F) c = '?';
  }
  return raw.size() > 200 ? clean + "..." : clean;
}

}  // namespace graft
