// Batch normalisation (Ioffe and Szegedy 2015) with a fused residual and activation, and its
// gradient.
//
//   y  = act(z),  z = xhat weight + bias + residual,  xhat = (x - mean) invstd
//   dz = g act'(z),  dbias = sum dz,  dweight = sum dz xhat
//   dx = weight invstd (dz - mean(dz) - xhat mean(dz xhat));    frozen:  dx = weight invstd dz
//
// Layout: x is (rows, channels), f32 or bf16, NHWC seen as a matrix; 16 bytes at a time where the
// channels are a multiple of a pack and the arrays aligned, else one by one (columns.cuh).
// Memory-bound: x is read twice forward, x and g twice backward, once when frozen.
//
// The activation's mask is made again from x, with the forward pass's own arithmetic, so that y
// need not be read; with a residual, or when a frozen layer needs nothing else of x, it comes from
// y.
//
// Numerics: variance by shifted f32 sums over a thread's rows, merged in double; the mean's
// rounding error is kept and corrected for, so that mean 1e4 with deviation 1 is harmless.
// Deterministic: rows are cut by shape alone and partial results merged in a fixed order.
#include <limits>
#include <type_traits>

#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

__global__ void batch_norm_finish_kernel(float* stats, float* running_mean, float* running_var,
                                         const double* partial, ColumnCut cut, float momentum,
                                         float epsilon) {
  const int64_t j = neighbour(), c = cut.channels;
  const Moments moments = merge_moments(partial, cut, 0, j, 1, j < c);
  if (j >= c || threadIdx.x >= kNeighbours) return;
  const double count = static_cast<double>(cut.rows), mean = moments.mean;
  const float rounded = static_cast<float>(mean);
  stats[j] = rounded;
  stats[c + j] = static_cast<float>(1 / sqrt(moments.square / count + epsilon));
  stats[2 * c + j] = static_cast<float>(mean - rounded);
  const double keep = 1 - static_cast<double>(momentum);
  running_mean[j] = static_cast<float>(keep * running_mean[j] + momentum * mean);
  running_var[j] =
      static_cast<float>(keep * running_var[j] + momentum * (moments.square / (count - 1)));
}

__global__ void frozen_statistics_kernel(float* stats, const float* mean, const float* variance,
                                         int64_t channels, float epsilon) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t j = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; j < channels; j += step) {
    stats[j] = mean[j];
    stats[channels + j] = 1.0f / sqrtf(variance[j] + epsilon);
    stats[2 * channels + j] = 0.0f;
  }
}

// dweight and dbias (or null), and the map (2, channels) of dx.
__global__ void batch_norm_grad_finish_kernel(float* map, float* dweight, float* dbias,
                                              const double* partial, const float* stats,
                                              const float* weight, ColumnCut cut) {
  const int64_t j = neighbour(), c = cut.channels;
  const ColumnTotals totals = merge_sums(partial, cut, channel_table(stats, c), j, j < c);
  if (j >= c || threadIdx.x >= kNeighbours) return;
  if (dbias != nullptr) dbias[j] = static_cast<float>(totals.dbias);
  if (dweight != nullptr) dweight[j] = static_cast<float>(totals.dweight);
  const double invstd = stats[c + j], rest = stats[2 * c + j];
  const double scale = (weight != nullptr ? weight[j] : 1.0f) * invstd;
  const double slope = scale * invstd * totals.dweight / static_cast<double>(cut.rows);
  map[j] = static_cast<float>(slope);
  map[c + j] =
      static_cast<float>(scale * totals.dbias / static_cast<double>(cut.rows) - rest * slope);
}

template <class T, int kWidth, Mask mask>
void grad(ColumnGrad<T> p, const BatchNormGrad& args) {
  constexpr const char* kOp = "batch_norm_grad";
  const ColumnCut cut = cut_columns(1, args.rows, args.channels, kWidth);
  const bool two_passes = args.batch_statistics && p.dx != nullptr;
  if (!two_passes && args.dweight == nullptr && args.dbias == nullptr) {
    launch(kOp, cut.grid(), 0, column_grad_kernel<T, kWidth, mask, false>, nullptr, p, cut);
    return;
  }
  auto* partial = static_cast<double*>(
      scratch(kOp, static_cast<size_t>(cut.partials()) * sizeof(double) +
                       static_cast<size_t>(2 * args.channels) * sizeof(float)));
  auto* map = reinterpret_cast<float*>(partial + cut.partials());
  ColumnGrad<T> first = p;
  if (two_passes) first.dx = nullptr;
  launch(kOp, cut.grid(), 0, column_grad_kernel<T, kWidth, mask, true>, partial, first, cut);
  launch(kOp, neighbour_grid(args.channels), 0, batch_norm_grad_finish_kernel, map, args.dweight,
         args.dbias, partial, args.stats, args.weight, cut);
  if (!two_passes) return;
  const ColumnTable table = channel_table(map, args.channels);
  if (mask != Mask::none && p.dz != nullptr) {
    p.g = p.dz;
    launch(kOp, cut.grid(), 0, column_center_grad_kernel<T, kWidth, Mask::none>, p, table, cut);
  } else {
    launch(kOp, cut.grid(), 0, column_center_grad_kernel<T, kWidth, mask>, p, table, cut);
  }
}

template <class T, Mask mask>
void grad(const ColumnGrad<T>& p, const BatchNormGrad& args) {
  const int width = column_width<T>(args.channels, {p.g, p.x, p.y, p.dz, p.dx});
  width == 1 ? grad<T, 1, mask>(p, args) : grad<T, kPackWidth<T>, mask>(p, args);
}

}  // namespace

void batch_norm_statistics(float* stats, float* running_mean, float* running_var, ConstReals x,
                           int64_t rows, int64_t channels, float momentum, float epsilon) {
  constexpr const char* kOp = "batch_norm_statistics";
  visit_real(x.dtype, [&]<class T>(T) {
    const int width = column_width<T>(channels, {x.data});
    const ColumnCut cut = cut_columns(1, rows, channels, width);
    auto* partial =
        static_cast<double*>(scratch(kOp, static_cast<size_t>(cut.partials()) * sizeof(double)));
    launch(kOp, cut.grid(), 0,
           width == 1 ? column_moments_kernel<T, 1> : column_moments_kernel<T, kPackWidth<T>>,
           partial, x.as<T>(), cut);
    launch(kOp, neighbour_grid(channels), 0, batch_norm_finish_kernel, stats, running_mean,
           running_var, partial, cut, momentum, epsilon);
  });
}

void batch_norm_frozen_statistics(float* stats, const float* mean, const float* variance,
                                  int64_t channels, float epsilon) {
  launch("batch_norm_frozen_statistics", grid_for(channels), 0, frozen_statistics_kernel, stats,
         mean, variance, channels, epsilon);
}

void batch_norm_apply(Reals y, ConstReals x, ConstReals residual, const float* stats,
                      const float* weight, const float* bias, Activation activation, int64_t rows,
                      int64_t channels) {
  visit_real(y.dtype, [&]<class T>(T) {
    launch_column_affine("batch_norm_apply", y.as<T>(), x.as<T>(), residual.as<T>(),
                         channel_table(stats, channels), weight, bias, activation, 1, rows,
                         channels);
  });
}

void batch_norm_grad(const BatchNormGrad& args) {
  const float high =
      args.activation == Activation::relu6 ? 6.0f : std::numeric_limits<float>::infinity();
  visit_real(args.g.dtype, [&]<class T>(T) {
    const ColumnGrad<T> p{
        args.g.as<T>(),  args.x.as<T>(),  args.y.as<T>(),
        args.dz.as<T>(), args.dx.as<T>(), channel_table(args.stats, args.channels),
        args.weight,     args.bias,       high};
    if (args.activation == Activation::none) {
      grad<T, Mask::none>(p, args);
    } else if (args.y == nullptr) {
      grad<T, Mask::from_x>(p, args);
    } else {
      grad<T, Mask::from_y>(p, args);
    }
  });
}

}  // namespace graft::cuda
