#include "engine/data/svmlight.h"

#include <charconv>
#include <cmath>
#include <memory>
#include <string_view>
#include <zlib.h>

#include "kernels/error.h"

namespace graft {
namespace {

constexpr size_t kMostText = size_t{1} << 31;

// gzread gives the bytes of a file that is not compressed as they are.
std::string decompressed(const std::filesystem::path& path) {
  GRAFT_CHECK(std::filesystem::is_regular_file(path), path.string(), ": there is no such file");
  const std::unique_ptr<gzFile_s, int (*)(gzFile)> file(gzopen(path.c_str(), "rb"), gzclose);
  GRAFT_CHECK(file, path.string(), ": cannot be opened");
  std::string all;
  std::vector<char> part(size_t{1} << 18);
  while (true) {
    const int n = gzread(file.get(), part.data(), static_cast<unsigned>(part.size()));
    int fault = Z_OK;
    const char* words = gzerror(file.get(), &fault);
    GRAFT_CHECK(n >= 0 && (n > 0 || fault == Z_OK), path.string(),
                ": cannot be decompressed: ", words, "; fetch it again");
    if (n == 0) return all;
    all.append(part.data(), static_cast<size_t>(n));
    GRAFT_CHECK(all.size() <= kMostText, path.string(), ": has more than 2 GiB of text");
  }
}

class LineReader {
 public:
  LineReader(std::string place, std::string_view line) : place_(std::move(place)), rest_(line) {
    rest_ = rest_.substr(0, rest_.find('#'));
  }

  // The next word; empty at the end.
  std::string_view word() {
    constexpr std::string_view kBlanks = " \t\r";
    rest_.remove_prefix(std::min(rest_.find_first_not_of(kBlanks), rest_.size()));
    const std::string_view found = rest_.substr(0, rest_.find_first_of(kBlanks));
    rest_.remove_prefix(found.size());
    return found;
  }

  template <class Number>
  Number number(std::string_view word, const char* what) const {
    if (word.size() > 1 && word[0] == '+' && word[1] != '-') word.remove_prefix(1);
    Number value{};
    const auto [end, fault] = std::from_chars(word.data(), word.data() + word.size(), value);
    GRAFT_CHECK(fault == std::errc() && end == word.data() + word.size(), place_, ": expected ",
                what, ", got \"", std::string(word.substr(0, 40)), "\"");
    return value;
  }

  const std::string& place() const { return place_; }

 private:
  std::string place_;
  std::string_view rest_;
};

void add_row(SparseRows& rows, LineReader& line, std::string_view label, int64_t first_column) {
  rows.labels.push_back(line.number<int64_t>(label, "a whole number as label"));
  int64_t last = -1;
  for (std::string_view word = line.word(); !word.empty(); word = line.word()) {
    const size_t colon = word.find(':');
    GRAFT_CHECK(colon != std::string_view::npos, line.place(), ": expected COLUMN:VALUE, got \"",
                std::string(word.substr(0, 40)), "\"");
    if (word.substr(0, colon) == "qid") continue;
    const auto named = line.number<int64_t>(word.substr(0, colon), "the number of a column");
    GRAFT_CHECK(named >= first_column && named - first_column < rows.columns, line.place(),
                ": column ", named, " is outside ", first_column, " to ",
                first_column + rows.columns - 1);
    const auto value = line.number<float>(word.substr(colon + 1), "a value");
    GRAFT_CHECK(std::isfinite(value), line.place(), ": the value of column ", named,
                " is not finite");
    GRAFT_CHECK(named - first_column > last, line.place(), ": column ", named,
                " comes twice or out of order");
    last = named - first_column;
    rows.column.push_back(last);
    rows.value.push_back(value);
  }
  rows.starts.push_back(std::ssize(rows.column));
}

}  // namespace

Tensor SparseRows::dense(std::span<const int64_t> rows) const {
  Tensor result = Tensor::zeros({std::ssize(rows), columns});
  float* out = result.mutable_data<float>();
  for (const int64_t row : rows) {
    GRAFT_CHECK(row >= 0 && row < size(), "sparse rows: row ", row, " is outside 0 to ",
                size() - 1);
    const auto r = static_cast<size_t>(row);
    for (auto i = static_cast<size_t>(starts[r]); i < static_cast<size_t>(starts[r + 1]); ++i) {
      out[column[i]] = value[i];
    }
    out += columns;
  }
  return result;
}

SparseRows read_svmlight(const std::filesystem::path& path, int64_t columns, int64_t first_column) {
  GRAFT_CHECK(columns > 0 && (first_column == 0 || first_column == 1),
              "svmlight: expected columns, counted from 0 or 1; got ", columns, " from ",
              first_column);
  const std::string all = decompressed(path);
  SparseRows rows;
  rows.columns = columns;
  int64_t number = 0;
  for (std::string_view rest = all; !rest.empty();) {
    const std::string_view line = rest.substr(0, rest.find('\n'));
    rest.remove_prefix(std::min(line.size() + 1, rest.size()));
    LineReader reader(text(path.string(), ": line ", ++number), line);
    const std::string_view label = reader.word();
    if (!label.empty()) add_row(rows, reader, label, first_column);
  }
  GRAFT_CHECK(rows.size() > 0, path.string(), ": has no rows");
  return rows;
}

}  // namespace graft
