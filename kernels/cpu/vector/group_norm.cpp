// Group normalisation (Wu and He 2018), and its gradient. Within one sample:
//
//   y = xhat weight + bias,  xhat = (x - mean) invstd,  mean and invstd of the channel's group
//   dx = invstd (h - mean(h) - xhat mean(h xhat)),  h = g weight, means over the group
//   dweight = sum g xhat and dbias = sum g over samples and positions
//
// Layout: x is (samples, spatial, channels), channels last; a group is channels / groups
// neighbours. Sums are taken channel by channel, as in batch-norm (columns.h), and then over a
// group's channels, so the inner loops run over contiguous channels however small the groups are.
//
// Numerics: as batch-norm: shifted f32 sums in blocks, double across. Deterministic: one sample is
// one unit of work; the sums over samples are taken in order.
#include <cmath>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vector/columns.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {

void group_norm(float* y, float* stats, const float* x, const float* weight, const float* bias,
                int64_t samples, int64_t spatial, int64_t channels, int64_t groups, float epsilon) {
  const int64_t width = channels / groups;
  // Per sample: mean and squared deviations (double), three rows of work or of the affine map
  // (float).
  auto* memory = static_cast<double*>(
      scratch(static_cast<size_t>(samples * channels) * (2 * sizeof(double) + 3 * sizeof(float))));
  auto* floats = reinterpret_cast<float*>(memory + 2 * samples * channels);
  parallel_for(samples, 3 * spatial * channels, [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const float* in = x + n * spatial * channels;
      double *mean = memory + 2 * n * channels, *m2 = mean + channels;
      float *center = floats + 3 * n * channels, *scale = center + channels,
            *offset = scale + channels;
      column_moments(mean, m2, center, in, spatial, channels);
      for (int64_t k = 0; k < groups; ++k) {
        double common = 0, square = 0;
        for (int64_t j = k * width; j < (k + 1) * width; ++j) common += mean[j];
        common /= static_cast<double>(width);
        for (int64_t j = k * width; j < (k + 1) * width; ++j) {
          const double delta = mean[j] - common;
          square += m2[j] + static_cast<double>(spatial) * delta * delta;
        }
        const double variance = square / static_cast<double>(spatial * width);
        const float invstd = static_cast<float>(
            1 / std::sqrt((variance < 0 ? 0.0 : variance) + static_cast<double>(epsilon)));
        const float rounded = static_cast<float>(common);
        const float rest = static_cast<float>(common - static_cast<double>(rounded));
        float* own = stats + 3 * (n * groups + k);
        own[0] = rounded;
        own[1] = invstd;
        own[2] = rest;
        for (int64_t j = k * width; j < (k + 1) * width; ++j) {
          center[j] = rounded;
          scale[j] = (weight ? weight[j] : 1.0f) * invstd;
          offset[j] = (bias ? bias[j] : 0.0f) - rest * scale[j];
        }
      }
      affine_matrix<Activation::none, false, float>(y + n * spatial * channels, in, nullptr, center,
                                                    scale, offset, spatial, channels);
    }
  });
}

void group_norm_grad(float* dx, float* dweight, float* dbias, const float* g, const float* x,
                     const float* stats, const float* weight, int64_t samples, int64_t spatial,
                     int64_t channels, int64_t groups) {
  const int64_t width = channels / groups;
  // Per sample: sums of g and g (x - mean) (double), two rows of work and the map of dx (float).
  auto* memory = static_cast<double*>(
      scratch(static_cast<size_t>(samples * channels) * (2 * sizeof(double) + 6 * sizeof(float))));
  auto* floats = reinterpret_cast<float*>(memory + 2 * samples * channels);
  parallel_for(samples, 4 * spatial * channels, [=](int64_t begin, int64_t end) {
    for (int64_t n = begin; n < end; ++n) {
      const int64_t at = n * spatial * channels;
      double *sum = memory + 2 * n * channels, *product = sum + channels;
      float *work = floats + 6 * n * channels, *center = work + 2 * channels;
      float *scale = center + channels, *slope = scale + channels, *constant = slope + channels;
      const float* own = stats + 3 * n * groups;
      for (int64_t j = 0; j < channels; ++j) {
        center[j] = own[3 * (j / width)];
        scale[j] = (weight ? weight[j] : 1.0f) * own[3 * (j / width) + 1];
        sum[j] = product[j] = 0;
      }
      const ColumnGradRows<float> rows{g + at, x + at, nullptr, nullptr, dx ? dx + at : nullptr};
      grad_matrix<Mask::none, true, false, false>(rows, sum, product, work, center, scale, scale,
                                                  0.0f, spatial, channels);
      for (int64_t k = 0; k < groups; ++k) {
        const double invstd = own[3 * k + 1], rest = own[3 * k + 2];
        double mean_h = 0, mean_hx = 0;
        for (int64_t j = k * width; j < (k + 1) * width; ++j) {
          const double w = weight ? weight[j] : 1.0f;
          product[j] = (product[j] - rest * sum[j]) * invstd;
          mean_h += w * sum[j];
          mean_hx += w * product[j];
        }
        const double inverse = invstd / static_cast<double>(spatial * width);
        for (int64_t j = k * width; j < (k + 1) * width; ++j) {
          slope[j] = static_cast<float>(mean_hx * inverse * invstd);
          constant[j] = static_cast<float>(mean_h * inverse - rest * mean_hx * inverse * invstd);
        }
      }
      if (dx != nullptr) {
        center_grad_matrix<Mask::none>(rows, center, scale, scale, slope, constant, 0.0f, spatial,
                                       channels);
      }
    }
  });
  for (int64_t n = 1; n < samples; ++n) {
    for (int64_t j = 0; j < 2 * channels; ++j) memory[j] += memory[2 * n * channels + j];
  }
  for (int64_t j = 0; j < channels; ++j) {
    if (dbias != nullptr) dbias[j] = static_cast<float>(memory[j]);
    if (dweight != nullptr) dweight[j] = static_cast<float>(memory[channels + j]);
  }
}

}  // namespace graft::cpu::GRAFT_ISA
