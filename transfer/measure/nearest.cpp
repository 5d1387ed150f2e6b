#include "transfer/measure/nearest.h"

#include <algorithm>
#include <limits>
#include <numeric>

#include "transfer/measure/matrix.h"

namespace graft {
namespace {

Matrix unit_rows(Matrix x) {
  for (int64_t i = 0; i < x.rows(); ++i) {
    const double norm = x.row(i).norm();
    if (norm > 0) x.row(i) /= norm;
  }
  return x;
}

// Row q of `queries` is row q of `references` too, and is not its own neighbour, when `same`.
std::vector<int64_t> vote(const Matrix& queries, const Matrix& references,
                          std::span<const int64_t> labels, int64_t classes, int64_t k, bool same) {
  constexpr int64_t kBlock = 256;  // queries compared at once
  const int64_t n = references.rows();
  k = std::min(k, same ? n - 1 : n);
  std::vector<int64_t> result, order(static_cast<size_t>(n));
  std::vector<double> votes, nearness;
  for (int64_t begin = 0; begin < queries.rows(); begin += kBlock) {
    const int64_t count = std::min(kBlock, queries.rows() - begin);
    Matrix similar = queries.middleRows(begin, count) * references.transpose();
    for (int64_t q = 0; q < count; ++q) {
      if (same) similar(q, begin + q) = -std::numeric_limits<double>::infinity();
      std::iota(order.begin(), order.end(), int64_t{0});
      std::partial_sort(order.begin(), order.begin() + k, order.end(), [&](int64_t a, int64_t b) {
        return similar(q, a) != similar(q, b) ? similar(q, a) > similar(q, b) : a < b;
      });
      votes.assign(static_cast<size_t>(classes), 0);
      nearness.assign(static_cast<size_t>(classes), 0);
      for (int64_t i = 0; i < k; ++i) {
        const int64_t neighbour = order[static_cast<size_t>(i)];
        const auto label = static_cast<size_t>(labels[static_cast<size_t>(neighbour)]);
        votes[label] += 1;
        nearness[label] += similar(q, neighbour);
      }
      int64_t best = 0;
      for (size_t c = 1; c < votes.size(); ++c) {
        const auto b = static_cast<size_t>(best);
        if (votes[c] > votes[b] || (votes[c] == votes[b] && nearness[c] > nearness[b])) {
          best = static_cast<int64_t>(c);
        }
      }
      result.push_back(best);
    }
  }
  return result;
}

}  // namespace

std::vector<int64_t> nearest_labels(const Tensor& queries, const Tensor& references,
                                    std::span<const int64_t> labels, int64_t classes, int64_t k) {
  constexpr const char* kOp = "nearest neighbours";
  const Matrix q = matrix_of(kOp, "queries", queries), r = matrix_of(kOp, "references", references);
  GRAFT_CHECK(q.cols() == r.cols(), kOp, ": queries have ", q.cols(), " features, references ",
              r.cols());
  GRAFT_CHECK(k >= 1, kOp, ": expected a k of at least 1, got ", k);
  check_labels(kOp, labels, r.rows(), classes);
  return vote(unit_rows(q), unit_rows(r), labels, classes, k, false);
}

std::vector<int64_t> leave_one_out_labels(const Tensor& features, std::span<const int64_t> labels,
                                          int64_t classes, int64_t k) {
  constexpr const char* kOp = "nearest neighbours";
  const Matrix x = unit_rows(matrix_of(kOp, "features", features));
  GRAFT_CHECK(x.rows() >= 2, kOp, ": expected at least 2 rows, got ", x.rows());
  GRAFT_CHECK(k >= 1, kOp, ": expected a k of at least 1, got ", k);
  check_labels(kOp, labels, x.rows(), classes);
  return vote(x, x, labels, classes, k, true);
}

double leave_one_out_accuracy(const Tensor& features, std::span<const int64_t> labels,
                              int64_t classes, int64_t k) {
  const std::vector<int64_t> said = leave_one_out_labels(features, labels, classes, k);
  int64_t right = 0;
  for (size_t i = 0; i < said.size(); ++i) right += said[i] == labels[i];
  return static_cast<double>(right) / static_cast<double>(said.size());
}

}  // namespace graft
