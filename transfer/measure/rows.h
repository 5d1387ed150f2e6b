// Some rows of a table of features, and their labels.
#pragma once

#include <algorithm>
#include <cstdint>
#include <span>
#include <vector>

#include "engine/tensor.h"

namespace graft {

// x f32 (n, d) on the CPU.
inline Tensor rows_of(const Tensor& x, std::span<const int64_t> rows) {
  const int64_t width = x.dim(1);
  Tensor result({static_cast<int64_t>(rows.size()), width});
  float* out = result.mutable_data<float>();
  for (const int64_t row : rows) out = std::copy_n(x.data<float>() + row * width, width, out);
  return result;
}

inline std::vector<int64_t> labels_of(std::span<const int64_t> labels,
                                      std::span<const int64_t> rows) {
  std::vector<int64_t> result;
  for (const int64_t row : rows) result.push_back(labels[static_cast<size_t>(row)]);
  return result;
}

}  // namespace graft
