#include "engine/io/npy.h"

#include <charconv>
#include <cstring>
#include <string_view>

#include "engine/io/formats.h"
#include "kernels/error.h"

namespace graft {
namespace {

constexpr std::string_view kMagic("\x93NUMPY\x01\x00", 8);
// Magic, length and dictionary of a file of ours: room for four sizes, and a multiple of 64, which
// the format asks for so that the elements are aligned.
constexpr size_t kHeaderBytes = 192;
constexpr size_t kMostDimensions = 32;  // NumPy's own limit

const char* descr_of(Dtype dtype) {
  return dtype == Dtype::f32 ? "<f4" : dtype == Dtype::f64 ? "<f8" : "<i8";
}

std::string header_of(int64_t rows, const Shape& row, Dtype dtype) {
  std::string shape = text("(", rows, ",");
  for (const int64_t size : row) shape += text(" ", size, ",");
  if (!row.empty()) shape.pop_back();
  std::string header(kMagic);
  const size_t length = kHeaderBytes - kMagic.size() - 2;
  header += static_cast<char>(length & 255);
  header += static_cast<char>(length >> 8);
  header +=
      text("{'descr': '", descr_of(dtype), "', 'fortran_order': False, 'shape': ", shape, "), }");
  GRAFT_CHECK(header.size() < kHeaderBytes, "npy: the shape ", row, " has too many sizes");
  header.resize(kHeaderBytes - 1, ' ');
  return header + '\n';
}

// The dictionary, key by key in any order, as Python writes it.
class HeaderParser {
 public:
  HeaderParser(std::string_view rest, const std::string& file) : rest_(rest), file_(file) {}

  void parse(Dtype& dtype, Shape& shape) {
    bool has_descr = false, has_order = false, has_shape = false;
    expect("{");
    while (!accept("}")) {
      const std::string_view key = word();
      expect(":");
      bool& seen = key == "descr"           ? has_descr
                   : key == "fortran_order" ? has_order
                   : key == "shape"         ? has_shape
                                            : refuse("it has an unknown key in its header");
      if (seen) refuse("it has a key twice in its header");
      seen = true;
      if (&seen == &has_descr) {
        const std::string_view descr = word();
        if (descr == "<f4") {
          dtype = Dtype::f32;
        } else if (descr == "<f8") {
          dtype = Dtype::f64;
        } else if (descr == "<i8") {
          dtype = Dtype::i64;
        } else {
          refuse("its elements are of type \"" + std::string(descr.substr(0, 16)) +
                 "\"; expected <f4, <f8 or <i8");
        }
      } else if (&seen == &has_order) {
        if (!accept("False")) refuse("it is in Fortran order; save it with np.ascontiguousarray");
      } else {
        sizes(shape);
      }
      if (!accept(",")) {
        expect("}");
        break;
      }
    }
    skip();
    if (!rest_.empty() || !has_descr || !has_order || !has_shape) refuse("its header is malformed");
  }

 private:
  [[noreturn]] bool& refuse(const std::string& why) const { fail(file_, ": ", why); }
  void skip() {
    while (!rest_.empty() && (rest_[0] == ' ' || rest_[0] == '\n')) rest_.remove_prefix(1);
  }
  bool accept(std::string_view token) {
    skip();
    if (!rest_.starts_with(token)) return false;
    rest_.remove_prefix(token.size());
    return true;
  }
  void expect(std::string_view token) {
    if (!accept(token)) refuse("its header is malformed");
  }
  std::string_view word() {
    expect("'");
    const size_t end = rest_.find('\'');
    if (end == std::string_view::npos) refuse("its header is malformed");
    const std::string_view result = rest_.substr(0, end);
    rest_.remove_prefix(end + 1);
    return result;
  }
  void sizes(Shape& shape) {
    expect("(");
    while (!accept(")")) {
      skip();
      int64_t size = -1;
      const auto [end, error] = std::from_chars(rest_.data(), rest_.data() + rest_.size(), size);
      if (error != std::errc() || size < 0) refuse("its header has a size that is no number");
      rest_.remove_prefix(static_cast<size_t>(end - rest_.data()));
      shape.push_back(size);
      if (shape.size() > kMostDimensions) refuse("it has more than 32 dimensions");
      if (!accept(",")) {
        expect(")");
        break;
      }
    }
    if (shape.empty()) refuse("it holds a single number; expected at least one dimension");
  }

  std::string_view rest_;
  const std::string& file_;
};

}  // namespace

NpyWriter::NpyWriter(const std::filesystem::path& path, Shape row, Dtype dtype)
    : file_(path), row_(std::move(row)), dtype_(dtype) {
  GRAFT_CHECK(dtype == Dtype::f32 || dtype == Dtype::i64, "npy: expected f32 or i64, got ", dtype);
  const std::string header = header_of(0, row_, dtype_);
  file_.write(header.data(), header.size());
}

void NpyWriter::add(const Tensor& rows) {
  GRAFT_CHECK(
      rows.defined() && rows.dtype() == dtype_ && rows.rank() > 0 &&
          std::equal(rows.shape().begin() + 1, rows.shape().end(), row_.begin(), row_.end()),
      "npy: expected rows of ", dtype_, " ", row_, ", got ", rows);
  file_.write(rows.raw(), rows.bytes());
  rows_ += rows.dim(0);
}

void NpyWriter::finish() {
  const std::string header = header_of(rows_, row_, dtype_);
  file_.write_at_start(header.data(), header.size());
  file_.commit();
}

Tensor read_npy(const std::filesystem::path& path) {
  const FileBytes file = map_file(path);
  const std::string_view bytes(reinterpret_cast<const char*>(file.bytes.data()), file.bytes.size());
  GRAFT_CHECK(bytes.size() >= 10 && bytes.substr(0, 8) == kMagic, path.string(),
              ": is no .npy file of version 1.0");
  const size_t length = static_cast<uint8_t>(bytes[8]) + 256u * static_cast<uint8_t>(bytes[9]);
  GRAFT_CHECK(bytes.size() - 10 >= length, path.string(), ": is cut short in its header");
  Dtype dtype = Dtype::f32;
  Shape shape;
  HeaderParser(bytes.substr(10, length), file.name).parse(dtype, shape);
  uint64_t wanted = 0;
  const size_t there = bytes.size() - 10 - length;
  GRAFT_CHECK(checked_bytes(shape, size_of(dtype), &wanted) && wanted == there, path.string(),
              ": its header says ", shape, " of ", dtype, ", but ", there, " bytes follow it");
  Tensor result(std::move(shape), dtype);
  if (there > 0) std::memcpy(result.raw(), bytes.data() + 10 + length, there);
  return result;
}

}  // namespace graft
