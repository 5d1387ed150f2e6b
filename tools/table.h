// A table for people, on stdout.
#pragma once

#include <string>
#include <vector>

namespace graft {

class Table {
 public:
  // A title that starts with '<' aligns its column to the left, without the '<'; others are
  // aligned to the right.
  explicit Table(const std::vector<std::string>& titles);
  // As many cells as titles.
  void row(std::vector<std::string> cells);
  // Two blanks between columns, each line indented by `indent` blanks.
  std::string text(size_t indent = 0) const;

 private:
  std::vector<bool> left_;
  std::vector<std::vector<std::string>> rows_;  // the titles first
};

}  // namespace graft
