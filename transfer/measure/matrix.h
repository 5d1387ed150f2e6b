// Tensors as Eigen's matrices of doubles, for the measures' linear algebra. Not part of the
// interface: only .cpp files of this folder include it.
#pragma once

#include <Eigen/Dense>
#include <span>

#include "engine/tensor.h"
#include "kernels/error.h"

namespace graft {

using Matrix = Eigen::Matrix<double, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Vector = Eigen::VectorXd;

// x (rows, columns) f32 on any device.
inline Matrix matrix_of(const char* op, const char* what, const Tensor& x) {
  GRAFT_CHECK(
      x.defined() && x.dtype() == Dtype::f32 && x.rank() == 2 && x.dim(0) > 0 && x.dim(1) > 0, op,
      ": expected ", what, " to be f32 of shape (rows, columns), not empty, got ", x);
  const Tensor here = x.to(kCpu);
  using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
  Matrix result = Eigen::Map<const Floats>(here.data<float>(), x.dim(0), x.dim(1)).cast<double>();
  GRAFT_CHECK(result.allFinite(), op, ": ", what, " holds a number that is not finite");
  return result;
}

// One label a row, each in 0..classes-1; at least one. Returns the number of classes that occur.
inline int64_t check_labels(const char* op, std::span<const int64_t> labels, int64_t rows,
                            int64_t classes) {
  GRAFT_CHECK(static_cast<int64_t>(labels.size()) == rows, op, ": expected a label for each of ",
              rows, " rows, got ", labels.size());
  std::vector<bool> seen(static_cast<size_t>(classes));
  for (const int64_t label : labels) {
    GRAFT_CHECK(label >= 0 && label < classes, op, ": label ", label, " is outside 0..",
                classes - 1);
    seen[static_cast<size_t>(label)] = true;
  }
  int64_t count = 0;
  for (const bool one : seen) count += one;
  return count;
}

}  // namespace graft
