// Pooling over NHWC images: the largest value or the mean of each window, and their derivatives.
//   max: dx[i] = sum of g over the windows whose choice is pixel i (the first largest value row by
//        row; a NaN beats what came before it)
//   avg: dx[i] = sum of g / pixels over the windows that hold pixel i
//
// A thread makes one pixel of 4 channels (16 bytes a load) where the channels are a multiple of 4
// and the arrays aligned to 16 bytes, else of one channel. Windows overlap in the first-level
// cache. The derivatives collect: each pixel of dx visits the windows that cover it, so nothing is
// cleared first and nothing is added by two threads. For max a first pass notes the choice of each
// window, a byte each, instead of scanning it again for each of its pixels.
//
// Numerics: f32; means add up each window row, then the rows, then multiply once; derivatives add
// up the windows row by row. Each element has one writer, so results are deterministic.
#include <limits>
#include <type_traits>

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr int kWide = kPackWidth<float>;

struct Range {
  int64_t begin, end;
};
// What links one axis of the image with the same axis of the result.
struct StridedAxis {
  int64_t in, out, kernel, stride, pad;

  // Pixels of window o, clipped to the image.
  __device__ Range window(int64_t o) const {
    const int64_t first = o * stride - pad, last = first + kernel;
    return {first > 0 ? first : 0, last < in ? last : in};
  }
  // Windows that hold pixel i.
  __device__ Range windows_of(int64_t i) const {
    const int64_t below = i + pad - kernel + 1, last = divide(i + pad, stride).whole + 1;
    return {below > 0 ? divide(below + stride - 1, stride).whole : 0, last < out ? last : out};
  }
};
struct AdaptiveAxis {
  int64_t in, out;

  __device__ Range window(int64_t o) const {
    return {divide(o * in, out).whole, divide((o + 1) * in + out - 1, out).whole};
  }
  // Pixel i is in window o when o in < (i + 1) out and i out < (o + 1) in: the same rule with the
  // sides exchanged.
  __device__ Range windows_of(int64_t i) const { return AdaptiveAxis{out, in}.window(i); }
};

template <class Axis>
struct Pooling {
  int64_t batch, channels;
  Axis rows, columns;
  // Pixels that a mean is taken over; 0: those of the window that are inside the image.
  int64_t pixels = 0;
};
using Strided = Pooling<StridedAxis>;
using Adaptive = Pooling<AdaptiveAxis>;

// Where the work item of one thread lies in an array (batch, height, width, channels / W) of packs.
struct Place {
  int64_t image, row, column, channel;
};
template <int W>
__device__ Place place_of(int64_t item, int64_t height, int64_t width, int64_t channels) {
  const Quotient pixel = divide(item, channels / W);
  const Quotient row = divide(pixel.whole, width), image = divide(row.whole, height);
  return {image.whole, image.rest, row.rest, pixel.rest * W};
}
// body(item, place) for all items, grid-stride.
template <int W, class Body>
__device__ void for_places(int64_t batch, int64_t height, int64_t width, int64_t channels,
                           const Body& body) {
  const int64_t items = batch * height * width * (channels / W);
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < items; i += step) {
    body(i, place_of<W>(i, height, width, channels));
  }
}

// use(column, pack) for the pixels of one row of a window, four of them under way at a time.
template <int W, class T, class Use>
__device__ void for_row(const T* row, int64_t channels, const Range& columns, const Use& use) {
  constexpr int kAhead = 4;
  for (int64_t next = columns.begin; next < columns.end; next += kAhead) {
    Pack<T, W> packs[kAhead] = {};
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (next + i < columns.end) packs[i] = load<W>(row + (next + i) * channels);
    }
#pragma unroll
    for (int i = 0; i < kAhead; ++i) {
      if (next + i < columns.end) use(next + i, packs[i]);
    }
  }
}

// The largest values of one window; choices[w]: where channel w has it, counted along the rows of
// the whole window.
template <class Choice, int W, class T>
__device__ void scan(const Strided& s, const Place& at, const T* x, Pack<T, W>& largest,
                     Pack<Choice, W>& choices) {
  const Range rows = s.rows.window(at.row), columns = s.columns.window(at.column);
  const int64_t top = at.row * s.rows.stride - s.rows.pad;
  const int64_t left = at.column * s.columns.stride - s.columns.pad;
  bool first = true;
  for (int64_t ih = rows.begin; ih < rows.end; ++ih) {
    const T* row = x + (at.image * s.rows.in + ih) * s.columns.in * s.channels + at.channel;
    for_row<W>(row, s.channels, columns, [&](int64_t iw, const Pack<T, W>& values) {
      const auto place = static_cast<Choice>((ih - top) * s.columns.kernel + iw - left);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        const float value = static_cast<float>(values.v[w]);
        if (first || value > static_cast<float>(largest.v[w]) || value != value) {
          largest.v[w] = values.v[w];
          choices.v[w] = place;
        }
      }
      first = false;
    });
  }
}

template <class T, int W>
__global__ void max_kernel(Strided s, T* y, const T* x) {
  for_places<W>(s.batch, s.rows.out, s.columns.out, s.channels, [&](int64_t item, const Place& at) {
    Pack<T, W> largest{};
    Pack<int, W> choices{};
    scan(s, at, x, largest, choices);
    store(y + item * W, largest);
  });
}
template <class T, class Choice, int W>
__global__ void choice_kernel(Strided s, Choice* chosen, const T* x) {
  for_places<W>(s.batch, s.rows.out, s.columns.out, s.channels, [&](int64_t item, const Place& at) {
    Pack<T, W> largest{};
    Pack<Choice, W> choices{};
    scan(s, at, x, largest, choices);
    store(chosen + item * W, choices);
  });
}

// body(window's row, window's column, offset of its element) for the windows that hold a pixel, row
// by row.
template <class Axis, class Body>
__device__ void for_windows(const Pooling<Axis>& s, const Place& at, const Body& body) {
  const Range rows = s.rows.windows_of(at.row), columns = s.columns.windows_of(at.column);
  for (int64_t oh = rows.begin; oh < rows.end; ++oh) {
    for (int64_t ow = columns.begin; ow < columns.end; ++ow) {
      const int64_t window = (at.image * s.rows.out + oh) * s.columns.out + ow;
      body(oh, ow, window * s.channels + at.channel);
    }
  }
}

template <class T, class Choice, int W>
__global__ void max_grad_kernel(Strided s, T* dx, const Choice* chosen, const T* g) {
  for_places<W>(s.batch, s.rows.in, s.columns.in, s.channels, [&](int64_t item, const Place& at) {
    float sum[W] = {};
    for_windows(s, at, [&](int64_t oh, int64_t ow, int64_t offset) {
      const Pack<Choice, W> choices = load<W>(chosen + offset);
      const Pack<T, W> gradients = load<W>(g + offset);
      const int64_t row = at.row + s.rows.pad - oh * s.rows.stride;
      const int64_t column = at.column + s.columns.pad - ow * s.columns.stride;
      const auto here = static_cast<Choice>(row * s.columns.kernel + column);
#pragma unroll
      for (int w = 0; w < W; ++w) {
        if (choices.v[w] == here) sum[w] += static_cast<float>(gradients.v[w]);
      }
    });
    Pack<T, W> result;
#pragma unroll
    for (int w = 0; w < W; ++w) result.v[w] = static_cast<T>(sum[w]);
    store(dx + item * W, result);
  });
}

template <class Axis>
__device__ float scale_of(const Pooling<Axis>& s, const Range& rows, const Range& columns) {
  const int64_t inside = (rows.end - rows.begin) * (columns.end - columns.begin);
  return 1.0f / static_cast<float>(s.pixels != 0 ? s.pixels : inside);
}

template <class T, class Axis, int W>
__global__ void mean_kernel(Pooling<Axis> s, T* y, const T* x) {
  for_places<W>(s.batch, s.rows.out, s.columns.out, s.channels, [&](int64_t item, const Place& at) {
    const Range rows = s.rows.window(at.row), columns = s.columns.window(at.column);
    float sum[W] = {};
    for (int64_t ih = rows.begin; ih < rows.end; ++ih) {
      const T* from = x + (at.image * s.rows.in + ih) * s.columns.in * s.channels + at.channel;
      float row[W] = {};
      for_row<W>(from, s.channels, columns, [&](int64_t, const Pack<T, W>& values) {
#pragma unroll
        for (int w = 0; w < W; ++w) row[w] += static_cast<float>(values.v[w]);
      });
#pragma unroll
      for (int w = 0; w < W; ++w) sum[w] += row[w];
    }
    const float scale = scale_of(s, rows, columns);
    Pack<T, W> result;
#pragma unroll
    for (int w = 0; w < W; ++w) result.v[w] = static_cast<T>(sum[w] * scale);
    store(y + item * W, result);
  });
}

template <class T, class Axis, int W>
__global__ void mean_grad_kernel(Pooling<Axis> s, T* dx, const T* g) {
  for_places<W>(s.batch, s.rows.in, s.columns.in, s.channels, [&](int64_t item, const Place& at) {
    float sum[W] = {};
    for_windows(s, at, [&](int64_t oh, int64_t ow, int64_t offset) {
      const Pack<T, W> gradients = load<W>(g + offset);
      const float scale = scale_of(s, s.rows.window(oh), s.columns.window(ow));
#pragma unroll
      for (int w = 0; w < W; ++w) sum[w] += static_cast<float>(gradients.v[w]) * scale;
    });
    Pack<T, W> result;
#pragma unroll
    for (int w = 0; w < W; ++w) result.v[w] = static_cast<T>(sum[w]);
    store(dx + item * W, result);
  });
}

Strided strided(const PoolShape& s) {
  return {s.batch,
          s.channels,
          {s.in_height, s.out_height, s.kernel_height, s.stride_height, s.pad_top},
          {s.in_width, s.out_width, s.kernel_width, s.stride_width, s.pad_left},
          s.count_include_pad ? s.kernel_height * s.kernel_width : 0};
}
Adaptive adaptive(const PoolShape& s) {
  return {s.batch, s.channels, {s.in_height, s.out_height}, {s.in_width, s.out_width}};
}
int64_t inputs(const PoolShape& s) { return s.batch * s.in_height * s.in_width * s.channels; }
int64_t outputs(const PoolShape& s) { return s.batch * s.out_height * s.out_width * s.channels; }

// run(constant W): how many channels a thread takes.
template <class Run>
void with_width(const PoolShape& s, std::initializer_list<const void*> arrays, const Run& run) {
  if (s.channels % kWide == 0 && aligned(arrays)) {
    run(std::integral_constant<int, kWide>{});
  } else {
    run(std::integral_constant<int, 1>{});
  }
}

template <class Axis>
void mean(const char* op, const PoolShape& s, const Pooling<Axis>& pooling, float* y,
          const float* x) {
  with_width(s, {y, x}, [&](auto width) {
    launch(op, grid_for(outputs(s) / width), 0, mean_kernel<float, Axis, width>, pooling, y, x);
  });
}
template <class Axis>
void mean_grad(const char* op, const PoolShape& s, const Pooling<Axis>& pooling, float* dx,
               const float* g) {
  with_width(s, {dx, g}, [&](auto width) {
    launch(op, grid_for(inputs(s) / width), 0, mean_grad_kernel<float, Axis, width>, pooling, dx,
           g);
  });
}

template <class Choice>
void max_grad(const PoolShape& s, float* dx, const float* x, const float* g) {
  constexpr const char* kOp = "max_pool_grad";
  auto* chosen =
      static_cast<Choice*>(scratch(kOp, sizeof(Choice) * static_cast<size_t>(outputs(s))));
  with_width(s, {dx, x, g}, [&](auto width) {
    launch(kOp, grid_for(outputs(s) / width), 0, choice_kernel<float, Choice, width>, strided(s),
           chosen, x);
    launch(kOp, grid_for(inputs(s) / width), 0, max_grad_kernel<float, Choice, width>, strided(s),
           dx, chosen, g);
  });
}

}  // namespace

void max_pool(const PoolShape& s, float* y, const float* x) {
  with_width(s, {y, x}, [&](auto width) {
    launch("max_pool", grid_for(outputs(s) / width), 0, max_kernel<float, width>, strided(s), y, x);
  });
}
void max_pool_grad(const PoolShape& s, float* dx, const float* x, const float* g) {
  if (s.kernel_height * s.kernel_width <= 256) {
    max_grad<uint8_t>(s, dx, x, g);
  } else {
    max_grad<int32_t>(s, dx, x, g);
  }
}
void avg_pool(const PoolShape& s, float* y, const float* x) {
  mean("avg_pool", s, strided(s), y, x);
}
void avg_pool_grad(const PoolShape& s, float* dx, const float* g) {
  mean_grad("avg_pool_grad", s, strided(s), dx, g);
}
void adaptive_avg_pool(const PoolShape& s, float* y, const float* x) {
  mean("adaptive_avg_pool", s, adaptive(s), y, x);
}
void adaptive_avg_pool_grad(const PoolShape& s, float* dx, const float* g) {
  mean_grad("adaptive_avg_pool_grad", s, adaptive(s), dx, g);
}

}  // namespace graft::cuda
