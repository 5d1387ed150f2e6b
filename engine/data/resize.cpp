// Pillow's 8-bit resampling, to the bit.
// Formula: with scale = in / out, f = max(scale, 1) and centre = (x + 0.5) * scale, output x
// gathers the
//   inputs of [int(centre - r f + 0.5), int(centre + r f + 0.5)) with weights kernel((i - centre +
//   0.5) / f), r = 1 for bilinear and 2 for bicubic (a = -0.5). Weights are normalised in double,
//   then rounded half away from zero to 22-bit fixed point. Rows first into 8 bits, then columns
//   into 8 bits, each as clip((sum + 2^21) >> 22).
// Source: the behaviour of Pillow's Image.resize, checked against it on 2,000 random sizes with
// both
//   filters (tests/data/make_resize_golden.py).
// Layout: interleaved u8 rows without padding. Numerics: int32 sums; |weights| sum to less than 2,
// so
//   255 * 2^22 * 2 stays inside 32 bits. Deterministic: integers only.
#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/data/resize_filter.h"
#include "kernels/error.h"

namespace graft {
namespace {

constexpr int32_t kHalf = 1 << (kResizeBits - 1);

double bilinear(double x) {
  x = std::abs(x);
  return x < 1.0 ? 1.0 - x : 0.0;
}

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1.0) return ((a + 2.0) * x - (a + 3.0)) * x * x + 1;
  if (x < 2.0) return (((x - 5) * x + 8) * x - 4) * a;
  return 0.0;
}

}  // namespace

ResizeFilter resize_filter(int64_t in, int64_t out, int64_t start, int64_t count,
                           Interpolation interpolation) {
  if (in == out) return {{}, {}, 0, start, start + count};
  const bool cubic = interpolation == Interpolation::bicubic;
  const double scale = static_cast<double>(in) / static_cast<double>(out);
  const double stretch = std::max(scale, 1.0);
  const double support = (cubic ? 2.0 : 1.0) * stretch;
  ResizeFilter filter;
  filter.taps = 2 * static_cast<int64_t>(std::ceil(support)) + 1;
  filter.ranges.resize(static_cast<size_t>(count));
  filter.weights.assign(static_cast<size_t>(count * filter.taps), 0);
  std::vector<double> exact(static_cast<size_t>(filter.taps));
  for (int64_t i = 0; i < count; ++i) {
    const double centre = (static_cast<double>(start + i) + 0.5) * scale;
    const int64_t first = std::max<int64_t>(0, static_cast<int64_t>(centre - support + 0.5));
    const int64_t last = std::min(in, static_cast<int64_t>(centre + support + 0.5));
    double sum = 0;
    for (int64_t k = first; k < last; ++k) {
      // Pillow multiplies by the reciprocal; a division would round differently.
      const double x = (static_cast<double>(k) - centre + 0.5) * (1.0 / stretch);
      const double weight = cubic ? bicubic(x) : bilinear(x);
      exact[static_cast<size_t>(k - first)] = weight;
      sum += weight;
    }
    int32_t* weights = filter.weights.data() + i * filter.taps;
    for (int64_t k = 0; k < last - first; ++k) {
      double weight = exact[static_cast<size_t>(k)];
      if (sum != 0.0) weight /= sum;
      weight *= 1 << kResizeBits;
      weights[k] = static_cast<int32_t>(weight < 0 ? weight - 0.5 : weight + 0.5);
    }
    filter.ranges[static_cast<size_t>(i)] = {first, last - first};
  }
  filter.begin = filter.ranges.front().first;
  filter.end = filter.ranges.back().first + filter.ranges.back().count;
  for (ResizeFilter::Range& range : filter.ranges) range.first -= filter.begin;
  return filter;
}

bool vertical_first(int64_t width, int64_t height, int64_t to_width, int64_t to_height) {
  return to_height < height && 2 * (width - to_width) < height - to_height;
}

namespace {

inline uint8_t clip(int32_t sum) {
  return static_cast<uint8_t>(std::clamp(sum >> kResizeBits, 0, 255));
}

template <int C>
void horizontal_row(const uint8_t* in, const ResizeFilter& filter, uint8_t* out) {
  const int32_t* weights = filter.weights.data();
  for (const ResizeFilter::Range& range : filter.ranges) {
    int32_t sum[C];
    for (int c = 0; c < C; ++c) sum[c] = kHalf;
    const uint8_t* pixel = in + range.first * C;
    for (int64_t k = 0; k < range.count; ++k, pixel += C) {
      for (int c = 0; c < C; ++c) sum[c] += pixel[c] * weights[k];
    }
    for (int c = 0; c < C; ++c) out[c] = clip(sum[c]);
    out += C;
    weights += filter.taps;
  }
}

struct View {
  const uint8_t* pixels;
  int64_t stride;  // bytes from row to row
};

void horizontal_pass(View in, int64_t rows, const ResizeFilter& filter, int64_t channels,
                     uint8_t* out) {
  const int64_t row_bytes = static_cast<int64_t>(filter.ranges.size()) * channels;
  for (int64_t y = 0; y < rows; ++y, in.pixels += in.stride, out += row_bytes) {
    if (channels == 3) {
      horizontal_row<3>(in.pixels, filter, out);
    } else {
      horizontal_row<1>(in.pixels, filter, out);
    }
  }
}

// One output row of `width` bytes from `count` input rows. Inlined into one function per
// instruction set; integers only, so both give the same bytes.
[[gnu::always_inline]] inline void vertical_row(View view, int64_t width, const int32_t* weights,
                                                int64_t count, int32_t* __restrict sums,
                                                uint8_t* __restrict out) {
  std::fill_n(sums, width, kHalf);
  for (int64_t k = 0; k < count; ++k) {
    const uint8_t* __restrict in = view.pixels + k * view.stride;
    const int32_t weight = weights[k];
    for (int64_t x = 0; x < width; ++x) sums[x] += in[x] * weight;
  }
  for (int64_t x = 0; x < width; ++x) out[x] = clip(sums[x]);
}

void vertical_row_plain(View in, int64_t width, const int32_t* weights, int64_t count,
                        int32_t* sums, uint8_t* out) {
  vertical_row(in, width, weights, count, sums, out);
}
[[gnu::target("avx2")]] void vertical_row_avx2(View in, int64_t width, const int32_t* weights,
                                               int64_t count, int32_t* sums, uint8_t* out) {
  vertical_row(in, width, weights, count, sums, out);
}

void vertical_pass(View in, int64_t row_bytes, const ResizeFilter& filter, uint8_t* out) {
  std::vector<int32_t> sums(static_cast<size_t>(row_bytes));
  const auto row = __builtin_cpu_supports("avx2") ? vertical_row_avx2 : vertical_row_plain;
  const int32_t* weights = filter.weights.data();
  for (const ResizeFilter::Range& range : filter.ranges) {
    row({in.pixels + range.first * in.stride, in.stride}, row_bytes, weights, range.count,
        sums.data(), out);
    weights += filter.taps;
    out += row_bytes;
  }
}

}  // namespace

Image resize_window(const Image& image, int64_t width, int64_t height, Interpolation interpolation,
                    int64_t left, int64_t top, int64_t window_width, int64_t window_height) {
  GRAFT_CHECK(width >= 1 && height >= 1, "resize: expected a positive size, got ", width, " x ",
              height);
  GRAFT_CHECK(image.width >= 1 && image.height >= 1, "resize: the image is empty (", image.width,
              " x ", image.height, ")");
  GRAFT_CHECK(image.channels == 1 || image.channels == 3, "resize: expected 1 or 3 channels, got ",
              image.channels);
  GRAFT_CHECK(left >= 0 && top >= 0 && window_width >= 1 && window_height >= 1 &&
                  left + window_width <= width && top + window_height <= height,
              "resize: window ", window_width, " x ", window_height, " at (", left, ", ", top,
              ") does not lie inside ", width, " x ", height);
  const bool scale_x = width != image.width, scale_y = height != image.height;
  if (!scale_x && !scale_y) return crop(image, left, top, window_width, window_height);

  const int64_t c = image.channels, row_bytes = window_width * c;
  const ResizeFilter columns = resize_filter(image.width, width, left, window_width, interpolation);
  const ResizeFilter rows = resize_filter(image.height, height, top, window_height, interpolation);
  const View in{image.pixels.data() + (rows.begin * image.width + columns.begin) * c,
                image.width * c};
  Image result{window_width, window_height, c, {}};
  result.pixels.resize(static_cast<size_t>(window_height * row_bytes));
  uint8_t* out = result.pixels.data();
  if (!scale_y) {
    horizontal_pass(in, window_height, columns, c, out);
  } else if (!scale_x) {
    vertical_pass(in, row_bytes, rows, out);
  } else if (vertical_first(image.width, image.height, width, height)) {
    const int64_t flat_bytes = (columns.end - columns.begin) * c;
    std::vector<uint8_t> flat(static_cast<size_t>(window_height * flat_bytes));
    vertical_pass(in, flat_bytes, rows, flat.data());
    horizontal_pass({flat.data(), flat_bytes}, window_height, columns, c, out);
  } else {
    const int64_t used_rows = rows.end - rows.begin;
    std::vector<uint8_t> narrow(static_cast<size_t>(used_rows * row_bytes));
    horizontal_pass(in, used_rows, columns, c, narrow.data());
    vertical_pass({narrow.data(), row_bytes}, row_bytes, rows, out);
  }
  return result;
}

Image resize(const Image& image, int64_t width, int64_t height, Interpolation interpolation) {
  if (width == image.width && height == image.height) return image;
  return resize_window(image, width, height, interpolation, 0, 0, width, height);
}

Image crop(const Image& image, int64_t left, int64_t top, int64_t width, int64_t height) {
  GRAFT_CHECK(left >= 0 && top >= 0 && width >= 1 && height >= 1 && left + width <= image.width &&
                  top + height <= image.height,
              "crop: window ", width, " x ", height, " at (", left, ", ", top,
              ") does not lie inside ", image.width, " x ", image.height);
  Image result{width, height, image.channels, {}};
  result.pixels.resize(static_cast<size_t>(width * height * image.channels));
  const int64_t row_bytes = width * image.channels;
  for (int64_t y = 0; y < height; ++y) {
    std::memcpy(result.pixels.data() + y * row_bytes,
                image.pixels.data() + ((top + y) * image.width + left) * image.channels,
                static_cast<size_t>(row_bytes));
  }
  return result;
}

}  // namespace graft
