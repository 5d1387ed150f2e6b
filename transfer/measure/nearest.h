// Nearest neighbours: what features know without any training.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/tensor.h"

namespace graft {

// The label of each query by a vote of its k nearest references, by cosine similarity; between
// equal votes the more similar neighbours win. queries (m, d), references (n, d), f32; labels (n)
// in 0..classes-1. k is cut to n.
std::vector<int64_t> nearest_labels(const Tensor& queries, const Tensor& references,
                                    std::span<const int64_t> labels, int64_t classes, int64_t k);
// The same for every row, from the other rows.
std::vector<int64_t> leave_one_out_labels(const Tensor& features, std::span<const int64_t> labels,
                                          int64_t classes, int64_t k);
// The part of rows whose k nearest other rows vote for their label.
double leave_one_out_accuracy(const Tensor& features, std::span<const int64_t> labels,
                              int64_t classes, int64_t k);

}  // namespace graft
