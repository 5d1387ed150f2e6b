#include "tools/table.h"

#include <algorithm>

#include "kernels/error.h"

namespace graft {
namespace {

// Characters, not bytes: what a terminal needs room for.
size_t width_of(const std::string& cell) {
  return static_cast<size_t>(std::count_if(cell.begin(), cell.end(), [](char c) {
    return (static_cast<unsigned char>(c) & 0xc0) != 0x80;
  }));
}

}  // namespace

Table::Table(const std::vector<std::string>& titles) {
  std::vector<std::string> head;
  for (const std::string& title : titles) {
    left_.push_back(title.starts_with('<'));
    head.push_back(left_.back() ? title.substr(1) : title);
  }
  rows_.push_back(std::move(head));
}

void Table::row(std::vector<std::string> cells) {
  GRAFT_CHECK(cells.size() == left_.size(), "table: expected ", left_.size(), " cells, got ",
              cells.size());
  rows_.push_back(std::move(cells));
}

std::string Table::text(size_t indent) const {
  std::vector<size_t> widths(left_.size());
  for (const auto& row : rows_) {
    for (size_t c = 0; c < row.size(); ++c) widths[c] = std::max(widths[c], width_of(row[c]));
  }
  std::string all;
  for (const auto& row : rows_) {
    std::string line(indent, ' ');
    for (size_t c = 0; c < row.size(); ++c) {
      const std::string room(widths[c] - width_of(row[c]), ' ');
      line += (c > 0 ? "  " : "") + (left_[c] ? row[c] + room : room + row[c]);
    }
    line.erase(line.find_last_not_of(' ') + 1);
    all += line + "\n";
  }
  return all;
}

}  // namespace graft
