// Singular values by Eigen's divide and conquer, in double: in f32 the smallest would be noise. On
// one thread, so that the bits do not depend on how many there are.
#include <algorithm>
#include <limits>

#include "kernels/cpu/eigen_svd.h"
#include "kernels/kernels.h"

template class Eigen::BDCSVD<Eigen::MatrixXd>;

namespace graft::cpu {
namespace {

using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using ConstMap = Eigen::Map<const Floats>;

}  // namespace

void singular_values(float* values, float* u, float* vt, const float* x, int64_t rows,
                     int64_t columns) {
  const int64_t count = std::min(rows, columns);
  if (count == 0) return;
  const Eigen::MatrixXd matrix = ConstMap(x, rows, columns).cast<double>();
  if (!matrix.allFinite()) {  // the iteration would never end
    constexpr float kNan = std::numeric_limits<float>::quiet_NaN();
    std::fill_n(values, count, kNan);
    if (u != nullptr) std::fill_n(u, rows * count, kNan);
    if (vt != nullptr) std::fill_n(vt, count * columns, kNan);
    return;
  }
  const unsigned vectors = u != nullptr ? Eigen::ComputeThinU | Eigen::ComputeThinV : 0;
  const Eigen::BDCSVD<Eigen::MatrixXd> svd(matrix, vectors);
  Eigen::Map<Eigen::VectorXf>(values, count) = svd.singularValues().cast<float>();
  if (u == nullptr) return;
  Eigen::Map<Floats>(u, rows, count) = svd.matrixU().cast<float>();
  Eigen::Map<Floats>(vt, count, columns) = svd.matrixV().transpose().cast<float>();
}

void singular_values_grad(float* dx, const float* g, const float* u, const float* vt, int64_t rows,
                          int64_t columns) {
  const int64_t count = std::min(rows, columns);
  const Eigen::MatrixXd left = ConstMap(u, rows, count).cast<double>();
  const Eigen::MatrixXd right = ConstMap(vt, count, columns).cast<double>();
  const Eigen::VectorXd weights = Eigen::Map<const Eigen::VectorXf>(g, count).cast<double>();
  Eigen::Map<Floats>(dx, rows, columns) = (left * weights.asDiagonal() * right).cast<float>();
}

}  // namespace graft::cpu
