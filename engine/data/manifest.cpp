// CSV manifests. Source of the quoting rules: RFC 4180; a byte order mark and bare line feeds are
// accepted as well.
#include <algorithm>
#include <cerrno>
#include <fcntl.h>
#include <fstream>
#include <iterator>
#include <map>
#include <numeric>
#include <optional>
#include <set>
#include <system_error>
#include <unistd.h>

#include "engine/data/dataset.h"
#include "kernels/error.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

struct Record {
  int64_t line = 0;  // where it starts, from 1
  std::vector<std::string> fields;
};

class CsvReader {
 public:
  CsvReader(std::string name, std::string content)
      : name_(std::move(name)), content_(std::move(content)) {
    if (content_.starts_with("\xEF\xBB\xBF")) at_ = 3;
  }

  // The next record that is not blank.
  std::optional<Record> next() {
    while (at_ < content_.size()) {
      Record record{line_, {}};
      do {
        record.fields.push_back(field());
      } while (take(','));
      if (!take('\n') && take('\r')) take('\n');
      if (record.fields.size() > 1 || !record.fields[0].empty()) return record;
    }
    return std::nullopt;
  }

 private:
  bool take(char wanted) {
    if (at_ >= content_.size() || content_[at_] != wanted) return false;
    // A line ends at \n, or at a \r that no \n follows.
    if (wanted == '\n' || (wanted == '\r' && !content_.substr(at_ + 1, 1).starts_with('\n'))) {
      ++line_;
    }
    ++at_;
    return true;
  }

  std::string field() {
    if (at_ < content_.size() && content_[at_] == '"') return quoted();
    const size_t end = std::min(content_.find_first_of(",\r\n", at_), content_.size());
    std::string value = content_.substr(at_, end - at_);
    at_ = end;
    return value;
  }

  std::string quoted() {
    const int64_t start = line_;
    std::string value;
    for (++at_; at_ < content_.size(); ++at_) {
      const char c = content_[at_];
      if (c == '\n') ++line_;
      if (c != '"') {
        value += c;
      } else if (at_ + 1 < content_.size() && content_[at_ + 1] == '"') {
        value += '"';
        ++at_;
      } else {
        ++at_;
        GRAFT_CHECK(
            at_ == content_.size() || std::string(",\r\n").find(content_[at_]) != std::string::npos,
            name_, ": line ", line_,
            ": text after a closing quote; double the quotes inside a field");
        return value;
      }
    }
    fail(name_, ": line ", start, ": a quote is not closed");
  }

  std::string name_, content_;
  size_t at_ = 0;
  int64_t line_ = 1;
};

std::string read_text(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  GRAFT_CHECK(file.is_open() && !fs::is_directory(path), path.string(),
              ": the manifest cannot be opened; check the path and its permissions");
  return {std::istreambuf_iterator<char>(file), {}};
}

// The columns' positions in the header; -1 where absent.
struct Columns {
  int path = -1, label = -1, group = -1, split = -1;
  size_t count = 0;
};

Columns read_header(const std::string& name, const std::optional<Record>& header) {
  GRAFT_CHECK(header, name, ": the manifest is empty; expected a header line \"path,label\"");
  Columns columns;
  columns.count = header->fields.size();
  for (size_t i = 0; i < columns.count; ++i) {
    const std::string& field = header->fields[i];
    int* column = field == "path"    ? &columns.path
                  : field == "label" ? &columns.label
                  : field == "group" ? &columns.group
                  : field == "split" ? &columns.split
                                     : nullptr;
    if (column == nullptr) continue;
    GRAFT_CHECK(*column < 0, name, ": line ", header->line, ": column \"", field,
                "\" appears twice");
    *column = static_cast<int>(i);
  }
  const bool other_separator =
      columns.count == 1 && header->fields[0].find_first_of(";\t") != std::string::npos;
  GRAFT_CHECK(columns.path >= 0 && columns.label >= 0, name, ": line ", header->line,
              ": expected the columns \"path\" and \"label\" in the header, got ", header->fields,
              other_separator ? "; separate the columns by commas" : "");
  return columns;
}

}  // namespace

Manifest read_manifest(const fs::path& csv) {
  const std::string name = csv.string();
  CsvReader reader(name, read_text(csv));
  const Columns columns = read_header(name, reader.next());

  struct Row {
    Sample sample;
    std::string label, split;
  };
  std::vector<Row> rows;
  std::map<std::string, int64_t> first_line;  // of a path
  std::set<std::string> classes;
  while (const std::optional<Record> record = reader.next()) {
    const auto where = text(name, ": line ", record->line, ": ");
    GRAFT_CHECK(record->fields.size() == columns.count, where, "expected ", columns.count,
                " fields, got ", record->fields.size(), "; quote fields that hold a comma");
    const auto field = [&](int column) {
      return column < 0 ? std::string() : record->fields[static_cast<size_t>(column)];
    };
    GRAFT_CHECK(!field(columns.path).empty(), where, "the path is empty");
    GRAFT_CHECK(!field(columns.label).empty(), where, "the label is empty");
    Row row{{(csv.parent_path() / field(columns.path)).lexically_normal(), 0, field(columns.group)},
            field(columns.label),
            field(columns.split)};
    const std::string path = row.sample.path.string();
    const auto [earlier, is_new] = first_line.emplace(path, record->line);
    GRAFT_CHECK(is_new, where, path, " is listed in line ", earlier->second, " already");
    std::error_code error;
    GRAFT_CHECK(fs::is_regular_file(row.sample.path, error), where, "no such file: ", path);
    GRAFT_CHECK(::faccessat(AT_FDCWD, row.sample.path.c_str(), R_OK, AT_EACCESS) == 0, where, path,
                " cannot be read (", std::generic_category().message(errno), ")");
    GRAFT_CHECK(
        columns.split < 0 || row.split == "train" || row.split == "val" || row.split == "test",
        where, "expected the split train, val or test, got \"", row.split, "\"");
    classes.insert(row.label);
    rows.push_back(std::move(row));
  }
  GRAFT_CHECK(classes.size() >= 2, name, ": expected at least two classes, got ", classes.size());
  std::sort(rows.begin(), rows.end(), [](const Row& a, const Row& b) {
    return a.sample.path.native() < b.sample.path.native();
  });

  Manifest manifest;
  manifest.all.class_names.assign(classes.begin(), classes.end());
  std::vector<bool> trained(classes.size(), false);
  for (Row& row : rows) {
    const size_t label =
        static_cast<size_t>(std::distance(classes.begin(), classes.find(row.label)));
    row.sample.label = static_cast<int64_t>(label);
    if (row.split == "train") trained[label] = true;
    manifest.all.samples.push_back(std::move(row.sample));
    if (columns.split >= 0) manifest.splits.push_back(std::move(row.split));
  }
  for (size_t c = 0; c < trained.size(); ++c) {
    GRAFT_CHECK(columns.split < 0 || trained[c], name, ": class \"", manifest.all.class_names[c],
                "\" has no sample in the split \"train\"");
  }
  return manifest;
}

}  // namespace graft
