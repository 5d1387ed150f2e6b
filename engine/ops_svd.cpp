// Singular values, x = U diag(s) V^T, and their gradient: ds_k / dx = u_k v_k^T (Wedin 1972;
// Papadopoulo and Lourakis 2000). The decomposition is Eigen's, in double, on the host: the
// matrices that want one (a batch of features) are small, and in f32 the smallest values would be
// noise.
#include <algorithm>
#include <cmath>
#include <limits>
#include <memory>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "engine/running.h"
#include "engine/svd.h"
#include "kernels/error.h"

namespace graft {
namespace {

using Floats = Eigen::Matrix<float, Eigen::Dynamic, Eigen::Dynamic, Eigen::RowMajor>;
using Decomposition = Eigen::BDCSVD<Eigen::MatrixXd>;

}  // namespace

Tensor singular_values(const Tensor& x) {
  constexpr const char* kOp = "singular_values";
  const RunningOp running(kOp);
  GRAFT_CHECK(x.defined() && x.dtype() == Dtype::f32, kOp, ": expected an f32 tensor, got ", x,
              "; cast() converts");
  GRAFT_CHECK(x.rank() == 2, kOp, ": expected a matrix, got ", x);
  const int64_t count = std::min(x.dim(0), x.dim(1));
  const bool wants_gradient = any_requires_grad({&x});
  auto svd = std::make_shared<Decomposition>();
  // NaN in, NaN out: the iteration would never end.
  Tensor values = Tensor::full({count}, std::numeric_limits<float>::quiet_NaN());
  bool finite = true;
  if (count > 0) {
    const Tensor here = x.detach().to(kCpu);
    const Eigen::MatrixXd matrix =
        Eigen::Map<const Floats>(here.data<float>(), x.dim(0), x.dim(1)).cast<double>();
    finite = matrix.allFinite();
    if (finite) {
      svd->compute(matrix, wants_gradient ? Eigen::ComputeThinU | Eigen::ComputeThinV : 0);
      Eigen::Map<Eigen::VectorXf>(values.mutable_data<float>(), count) =
          svd->singularValues().cast<float>();
    }
  }
  values = values.to(x.device());
  if (!wants_gradient) return values;
  return record(kOp, {x}, values, [=, shape = x.shape()](const Tensor& g, const Needs&) -> Grads {
    Tensor dx = Tensor::full(shape, std::numeric_limits<float>::quiet_NaN());
    if (finite && count > 0) {
      const Tensor here = g.to(kCpu);
      const Eigen::VectorXd weights =
          Eigen::Map<const Eigen::VectorXf>(here.data<float>(), count).cast<double>();
      Eigen::Map<Floats>(dx.mutable_data<float>(), shape[0], shape[1]) =
          (svd->matrixU() * weights.asDiagonal() * svd->matrixV().transpose()).cast<float>();
    }
    return {dx.to(g.device())};
  });
}

}  // namespace graft
