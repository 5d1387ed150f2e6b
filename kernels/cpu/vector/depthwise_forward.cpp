// Depthwise convolution: y[n,oh,ow,c] = act(bias[c] + sum over kh, kw of
// x[n, oh sh - pad_top + kh dh, ow sw - pad_left + kw dw, c] w[c,kh,kw]), and its derivative by x.
//
// dx[ih] gathers the outputs oh with oh s = ih + pad - k d. For input rows (columns) of one residue
// p modulo the stride, the taps k that qualify are k0, k0 + s/e, k0 + 2 s/e ... with e = gcd(s, d),
// and each one reads the output one step of d/e above the one before: a correlation of stride 1
// with the flipped subset of the filter.
//
// NHWC, f32 or bf16, any alignment; the filter is first transposed to (kh, kw, c). f32 sums of kh
// kw terms in a fixed order; results do not depend on the number of threads.
#include <limits>
#include <numeric>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/vector/correlation.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

// The taps that reach an input coordinate of one residue: `count` of them, the first one `first`,
// `step` apart. In ascending order of the output coordinate (taps descending) output number i of
// tap j is i + shift + j distance, where i counts the input coordinates of this residue.
struct Residue {
  int64_t first = 0, count = 0, step = 1, shift = 0, distance = 1;

  Residue(int64_t residue, int64_t stride, int64_t dilation, int64_t pad, int64_t kernel) {
    const int64_t common = std::gcd(stride, dilation);
    step = stride / common;
    distance = dilation / common;
    for (first = 0; first < std::min(step, kernel); ++first) {
      if ((residue + pad - first * dilation) % stride == 0) {
        count = (kernel - first + step - 1) / step;
        shift = (residue + pad - (first + (count - 1) * step) * dilation) / stride;
        return;
      }
    }
  }
  int64_t tap(int64_t j) const { return first + (count - 1 - j) * step; }
};

// Rows begin..end-1 of `count` at start + i distance that lie inside 0..size-1.
struct Inside {
  int64_t begin = 0, end;
  Inside(int64_t start, int64_t distance, int64_t count, int64_t size) : end(count) {
    while (begin < end && start + begin * distance < 0) ++begin;
    while (end > begin && start + (end - 1) * distance >= size) --end;
  }
};

template <class T>
void forward(const ConvShape& s, T* y, const T* x, const float* weight, const float* bias,
             Activation activation, float* scratch) {
  const int64_t channels = s.in_channels, taps = s.kernel_height * s.kernel_width;
  for (int64_t c = 0; c < channels; ++c) {
    for (int64_t k = 0; k < taps; ++k) scratch[k * channels + c] = weight[c * taps + k];
  }
  const int64_t x_row = s.in_width * channels, y_row = s.out_width * channels;
  parallel_for(s.batch * s.out_height, y_row * taps, [=](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / s.out_height, oh = item % s.out_height;
      const int64_t top = oh * s.stride_height - s.pad_top;
      const Inside rows(top, s.dilation_height, s.kernel_height, s.in_height);
      correlate<T>({.y = y + item * y_row,
                    .y_step = channels,
                    .width = s.out_width,
                    .x = x + (n * s.in_height + top + rows.begin * s.dilation_height) * x_row,
                    .x_row_step = s.dilation_height * x_row,
                    .x_width = s.in_width,
                    .w = scratch + rows.begin * s.kernel_width * channels,
                    .rows = rows.end - rows.begin,
                    .taps = s.kernel_width,
                    .stride = s.stride_width,
                    .shift = -s.pad_left,
                    .dilation = s.dilation_width,
                    .channels = channels,
                    .bias = bias,
                    .clamped = activation != Activation::none,
                    .low = 0.0f,
                    .high = activation == Activation::relu6 ? 6.0f : kInfinity});
    }
  });
}

template <class T>
void backward_data(const ConvShape& s, T* dx, const T* g, const float* weight, float* scratch) {
  const int64_t channels = s.in_channels, taps = s.kernel_height * s.kernel_width;
  const auto residue_of_row = [&s](int64_t p) {
    return Residue(p, s.stride_height, s.dilation_height, s.pad_top, s.kernel_height);
  };
  const auto residue_of_column = [&s](int64_t p) {
    return Residue(p, s.stride_width, s.dilation_width, s.pad_left, s.kernel_width);
  };
  // One flipped subset of the filter after another, (rows, taps, c) each; together they are the
  // filter.
  float* next = scratch;
  for (int64_t ph = 0; ph < s.stride_height; ++ph) {
    const Residue row = residue_of_row(ph);
    for (int64_t pw = 0; pw < s.stride_width; ++pw) {
      const Residue column = residue_of_column(pw);
      for (int64_t i = 0; i < row.count; ++i) {
        for (int64_t j = 0; j < column.count; ++j, next += channels) {
          const int64_t tap = row.tap(i) * s.kernel_width + column.tap(j);
          for (int64_t c = 0; c < channels; ++c) next[c] = weight[c * taps + tap];
        }
      }
    }
  }
  const int64_t x_row = s.in_width * channels, g_row = s.out_width * channels;
  const int64_t cost = std::max<int64_t>(1, x_row * taps / (s.stride_height * s.stride_width));
  parallel_for(s.batch * s.in_height, cost, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / s.in_height, ih = item % s.in_height;
      const int64_t ph = ih % s.stride_height;
      const float* w = scratch;
      for (int64_t p = 0; p < ph; ++p) w += residue_of_row(p).count * s.kernel_width * channels;
      const Residue row = residue_of_row(ph);
      const int64_t top = ih / s.stride_height + row.shift;
      const Inside rows(top, row.distance, row.count, s.out_height);
      for (int64_t pw = 0; pw < std::min(s.stride_width, s.in_width); ++pw) {
        const Residue column = residue_of_column(pw);
        correlate<T>({.y = dx + item * x_row + pw * channels,
                      .y_step = s.stride_width * channels,
                      .width = (s.in_width - pw + s.stride_width - 1) / s.stride_width,
                      .x = g + (n * s.out_height + top + rows.begin * row.distance) * g_row,
                      .x_row_step = row.distance * g_row,
                      .x_width = s.out_width,
                      .w = w + rows.begin * column.count * channels,
                      .rows = rows.end - rows.begin,
                      .taps = column.count,
                      .stride = 1,
                      .shift = column.shift,
                      .dilation = column.distance,
                      .channels = channels,
                      .bias = nullptr});
        w += row.count * column.count * channels;
      }
    }
  });
}

}  // namespace

void depthwise_forward(const ConvShape& s, Reals y, ConstReals x, const float* weight,
                       const float* bias, Activation activation, float* scratch) {
  visit_real(s.dtype, [&]<class T>(T) {
    forward(s, y.as<T>(), x.as<T>(), weight, bias, activation, scratch);
  });
}

void depthwise_backward_data(const ConvShape& s, Reals dx, ConstReals g, const float* weight,
                             float* scratch) {
  visit_real(s.dtype,
             [&]<class T>(T) { backward_data(s, dx.as<T>(), g.as<T>(), weight, scratch); });
}

}  // namespace graft::cpu::GRAFT_ISA
