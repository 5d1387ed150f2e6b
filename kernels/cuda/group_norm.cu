// Group normalisation (Wu and He 2018), and its gradient. Within one sample:
//
//   y = xhat weight + bias,  xhat = (x - mean) invstd;    mean, invstd: of the channel's group
//   dx = invstd (h - mean(h) - xhat mean(h xhat)),  h = g weight;    means over the group
//   dweight = sum g xhat,  dbias = sum g;    over samples and positions
//
// Layout: x is (samples, spatial, channels), channels last; a group is channels / groups
// neighbours. Sums are taken column by column within each sample, as in batch-norm (columns.cuh),
// and then over a group's channels. Memory-bound: x is read twice forward, x and g twice backward.
//
// Numerics: as batch-norm: shifted f32 sums over a thread's rows, double across. Deterministic: the
// cut depends on the shape alone, and partial results are merged in a fixed order.
#include "kernels/cuda/columns.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

__global__ void group_norm_finish_kernel(float* stats, const double* partial, ColumnCut cut,
                                         int64_t groups, float epsilon) {
  const int64_t item = neighbour(), sample = item / groups;
  const int width = static_cast<int>(cut.channels / groups);
  const bool inside = sample < cut.samples;
  const Moments moments =
      merge_moments(partial, cut, sample, item - sample * groups, width, inside);
  if (!inside || threadIdx.x >= kNeighbours) return;
  const float rounded = static_cast<float>(moments.mean);
  const double variance = moments.square / (static_cast<double>(cut.rows) * width);
  stats[3 * item] = rounded;
  stats[3 * item + 1] = static_cast<float>(1 / sqrt(variance + epsilon));
  stats[3 * item + 2] = static_cast<float>(moments.mean - rounded);
}

// The map (samples, groups, 2) of dx.
__global__ void group_norm_map_kernel(float* map, const double* partial, const float* stats,
                                      const float* weight, ColumnCut cut, int64_t groups) {
  const int64_t item = neighbour(), sample = item / groups, group = item - sample * groups;
  const int width = static_cast<int>(cut.channels / groups);
  const bool inside = sample < cut.samples;
  const int64_t n = inside ? cut.chunks * width : 0;
  const double* own = partial + 2 * sample * cut.chunks * cut.channels + group * width;
  const auto sum_of = [&](int which) {
    return lane_sum(n, [&](int64_t i) {
      const int64_t chunk = static_cast<uint32_t>(i) / static_cast<uint32_t>(width);
      const int64_t j = i - chunk * width;
      const double w = weight != nullptr ? weight[group * width + j] : 1.0f;
      return w * own[(2 * chunk + which) * cut.channels + j];
    });
  };
  const double h = sum_of(0), product = sum_of(1);  // of h and of h (x - center)
  if (!inside || threadIdx.x >= kNeighbours) return;
  const double invstd = stats[3 * item + 1], rest = stats[3 * item + 2];
  const double inverse = invstd / (static_cast<double>(cut.rows) * width);
  const double slope = (product - rest * h) * invstd * inverse * invstd;
  map[2 * item] = static_cast<float>(slope);
  map[2 * item + 1] = static_cast<float>(h * inverse - rest * slope);
}

__global__ void group_norm_sums_kernel(float* dweight, float* dbias, const double* partial,
                                       ColumnTable stats, ColumnCut cut) {
  const int64_t j = neighbour();
  const ColumnTotals totals = merge_sums(partial, cut, stats, j, j < cut.channels);
  if (j >= cut.channels || threadIdx.x >= kNeighbours) return;
  if (dweight != nullptr) dweight[j] = static_cast<float>(totals.dweight);
  if (dbias != nullptr) dbias[j] = static_cast<float>(totals.dbias);
}

}  // namespace

void group_norm(float* y, float* stats, const float* x, const float* weight, const float* bias,
                int64_t samples, int64_t spatial, int64_t channels, int64_t groups, float epsilon) {
  constexpr const char* kOp = "group_norm";
  const int width = column_width<float>(channels, {x});
  const ColumnCut cut = cut_columns(samples, spatial, channels, width);
  auto* partial =
      static_cast<double*>(scratch(kOp, static_cast<size_t>(cut.partials()) * sizeof(double)));
  launch(kOp, cut.grid(), 0,
         width == 1 ? column_moments_kernel<float, 1>
                    : column_moments_kernel<float, kPackWidth<float>>,
         partial, x, cut);
  launch(kOp, neighbour_grid(samples * groups), 0, group_norm_finish_kernel, stats, partial, cut,
         groups, epsilon);
  launch_column_affine<float>(kOp, y, x, nullptr, group_table(stats, groups, 3, channels / groups),
                              weight, bias, Activation::none, samples, spatial, channels);
}

void group_norm_grad(float* dx, float* dweight, float* dbias, const float* g, const float* x,
                     const float* stats, const float* weight, int64_t samples, int64_t spatial,
                     int64_t channels, int64_t groups) {
  constexpr const char* kOp = "group_norm_grad";
  constexpr int kWide = kPackWidth<float>;
  const bool wide = column_width<float>(channels, {g, x, dx}) == kWide;
  const ColumnCut cut = cut_columns(samples, spatial, channels, wide ? kWide : 1);
  const ColumnTable table = group_table(stats, groups, 3, channels / groups);
  auto* partial = static_cast<double*>(
      scratch(kOp, static_cast<size_t>(cut.partials()) * sizeof(double) +
                       static_cast<size_t>(2 * samples * groups) * sizeof(float)));
  auto* map = reinterpret_cast<float*>(partial + cut.partials());
  ColumnGrad<float> p{g, x, nullptr, nullptr, nullptr, table, weight, nullptr, 0.0f};
  launch(kOp, cut.grid(), 0,
         wide ? column_grad_kernel<float, kWide, Mask::none, true>
              : column_grad_kernel<float, 1, Mask::none, true>,
         partial, p, cut);
  if (dweight != nullptr || dbias != nullptr) {
    launch(kOp, neighbour_grid(channels), 0, group_norm_sums_kernel, dweight, dbias, partial, table,
           cut);
  }
  if (dx == nullptr) return;
  launch(kOp, neighbour_grid(samples * groups), 0, group_norm_map_kernel, map, partial, stats,
         weight, cut, groups);
  p.dx = dx;
  launch(kOp, cut.grid(), 0,
         wide ? column_center_grad_kernel<float, kWide, Mask::none>
              : column_center_grad_kernel<float, 1, Mask::none>,
         p, group_table(map, groups, 2, channels / groups), cut);
}

}  // namespace graft::cuda
