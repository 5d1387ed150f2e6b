// Rows of sparse numbers in the svmlight (LIBSVM) format, such as counts of words:
//
//   LABEL [qid:N] COLUMN:VALUE COLUMN:VALUE ...  # comment
//
// Source: Joachims, SVM-light, https://www.cs.cornell.edu/people/tj/svm_light. Columns count from 0
// or from 1, which the format does not say.
#pragma once

#include <filesystem>
#include <span>
#include <vector>

#include "engine/tensor.h"

namespace graft {

// Row i has the values starts[i] to starts[i + 1] - 1, in ascending columns; all others are 0.
struct SparseRows {
  int64_t columns = 0;
  std::vector<int64_t> labels;  // as the file has them, often -1 and 1
  std::vector<int64_t> starts{0};
  std::vector<int64_t> column;  // from 0
  std::vector<float> value;
  int64_t size() const { return std::ssize(labels); }
  // f32 (rows.size(), columns) on the CPU.
  Tensor dense(std::span<const int64_t> rows) const;
};

// Reads a file, plain or compressed by gzip. first_column: what the file calls column 0, 0 or 1.
// Throws naming file and line on what is no number, a label that is not whole, a column outside
// [first_column, first_column + columns), one that is named twice or out of order, a value that is
// not finite, and a file without rows, cut short, or of more than 2 GiB of text.
SparseRows read_svmlight(const std::filesystem::path& path, int64_t columns,
                         int64_t first_column = 0);

}  // namespace graft
