// Changes of colour and geometry of an 8-bit picture, a pixel at a time: for the CPU and CUDA
// alike. Their bytes are Pillow's: blends in f32 and cut towards zero, tables in double, geometry
// in 16.16 fixed point. Whoever includes this compiles without fused multiply-adds.
#pragma once

#include <cmath>
#include <cstdint>

#include "kernels/isa.h"

namespace graft {

enum class Change : int32_t {
  none,
  // A byte by itself. The last three by what the picture holds.
  brightness,
  posterize,
  solarize,
  contrast,
  autocontrast,
  equalize,
  // A pixel by itself; nothing where there is one channel.
  saturation,
  hue,
  // Pixels by others.
  sharpness,
  warp,
};

// One change of one picture.
struct PictureChange {
  Change change = Change::none;
  float factor = 1;      // of a blend with a picture that is black, grey, smooth ...; 1 keeps it
  int32_t whole = 0;     // bits that posterize keeps, as a mask; of 255, by how much a hue turns
  double threshold = 0;  // of solarize
  // Pixel (x, y) is the one at (column + x column_by_x + y column_by_y, row + ...) in 16.16, black
  // where that is outside.
  int64_t column = 0, column_by_x = 0, column_by_y = 0;
  int64_t row = 0, row_by_x = 0, row_by_y = 0;
};

inline namespace GRAFT_ISA_NAMESPACE {

GRAFT_HD inline bool is_table(Change change) {
  return change >= Change::brightness && change <= Change::equalize;
}
GRAFT_HD inline bool wants_histogram(Change change) {
  return change >= Change::contrast && change <= Change::equalize;
}

// One colour pixel as grey: ITU-R 601 luma in 16-bit fixed point, as Pillow's convert("L").
GRAFT_HD inline uint8_t luma(const uint8_t* rgb) {
  return static_cast<uint8_t>((rgb[0] * 19595 + rgb[1] * 38470 + rgb[2] * 7471 + 0x8000) >> 16);
}

GRAFT_HD inline uint8_t blend(int from, int to, float factor) {
  const float value = static_cast<float>(from) + factor * static_cast<float>(to - from);
  if (value <= 0.0f) return 0;
  if (value >= 255.0f) return 255;
  return static_cast<uint8_t>(value);
}

// The byte that a value cut to an integer is, at least 0 and at most 255.
GRAFT_HD inline uint8_t byte_of(double value) {
  const int whole = static_cast<int>(value);
  return static_cast<uint8_t>(whole < 0 ? 0 : whole > 255 ? 255 : whole);
}

// ---- tables

// What a change of bytes takes from a histogram: of the greys of the picture for contrast, of the
// channel for the others. `counts` may be null for changes that want none.
struct TableRule {
  bool keeps = false;  // nothing changes
  int mean = 0;
  double scale = 1, offset = 0;
  int64_t step = 1;
};
GRAFT_HD inline TableRule table_rule(Change change, const int32_t* counts, int64_t pixels) {
  TableRule rule;
  if (!wants_histogram(change)) return rule;
  int64_t sum = 0, last = 0;
  int low = 256, high = -1;
  for (int v = 0; v < 256; ++v) {
    sum += int64_t{counts[v]} * v;
    if (counts[v] == 0) continue;
    if (low > v) low = v;
    high = v;
    last = counts[v];
  }
  rule.mean = static_cast<int>(static_cast<double>(sum) / static_cast<double>(pixels) + 0.5);
  rule.keeps = change != Change::contrast && high <= low;
  if (change == Change::autocontrast && !rule.keeps) {
    rule.scale = 255.0 / static_cast<double>(high - low);
    rule.offset = -static_cast<double>(low) * rule.scale;
  }
  if (change == Change::equalize && !rule.keeps) {
    rule.step = (pixels - last) / 255;
    rule.keeps = rule.step == 0;
  }
  return rule;
}

// The byte of a pixel that is counted for channel `channel`.
GRAFT_HD inline uint8_t table_byte(Change change, const uint8_t* pixel, int64_t channels,
                                   int64_t channel) {
  return change == Change::contrast && channels == 3 ? luma(pixel) : pixel[channel];
}

// What becomes of byte v; `below`: how many pixels are darker.
GRAFT_HD inline uint8_t table_entry(const PictureChange& change, const TableRule& rule, int v,
                                    int64_t below) {
  if (rule.keeps) return static_cast<uint8_t>(v);
  switch (change.change) {
    case Change::brightness:
      return blend(0, v, change.factor);
    case Change::posterize:
      return static_cast<uint8_t>(v & change.whole);
    case Change::solarize:
      return static_cast<uint8_t>(v < change.threshold ? v : 255 - v);
    case Change::contrast:
      return blend(rule.mean, v, change.factor);
    case Change::autocontrast:
      return byte_of(v * rule.scale + rule.offset);
    case Change::equalize: {
      const int64_t flat = (rule.step / 2 + below) / rule.step;
      return static_cast<uint8_t>(flat > 255 ? 255 : flat);
    }
    default:
      return static_cast<uint8_t>(v);
  }
}

// The whole table of one channel, by one thread of the host.
inline void make_table(const PictureChange& change, const uint8_t* picture, int64_t pixels,
                       int64_t channels, int64_t channel, uint8_t* table) {
  int32_t counts[256] = {};
  if (wants_histogram(change.change)) {
    for (int64_t i = 0; i < pixels; ++i) {
      ++counts[table_byte(change.change, picture + i * channels, channels, channel)];
    }
  }
  const TableRule rule = table_rule(change.change, counts, pixels);
  int64_t below = 0;
  for (int v = 0; v < 256; ++v) {
    table[v] = table_entry(change, rule, v, below);
    below += counts[v];
  }
}

// ---- pixels

GRAFT_HD inline void change_saturation(const uint8_t* in, uint8_t* out, float factor) {
  const int grey = luma(in);
  for (int c = 0; c < 3; ++c) out[c] = blend(grey, in[c], factor);
}

// Turns the hue through Pillow's 8-bit HSV, with its mixture of float and double.
GRAFT_HD inline void change_hue(const uint8_t* in, uint8_t* out, int turn) {
  const int r = in[0], g = in[1], b = in[2];
  const int high = r > g ? (r > b ? r : b) : (g > b ? g : b);
  const int low = r < g ? (r < b ? r : b) : (g < b ? g : b);
  if (high == low) {
    out[0] = out[1] = out[2] = static_cast<uint8_t>(high);
    return;
  }
  const float range = static_cast<float>(high - low);
  const uint8_t s = byte_of(static_cast<double>(range / static_cast<float>(high)) * 255.0);
  const float rc = static_cast<float>(high - r) / range;
  const float gc = static_cast<float>(high - g) / range;
  const float bc = static_cast<float>(high - b) / range;
  float hue;
  if (r == high) {
    hue = bc - gc;
  } else if (g == high) {
    hue = static_cast<float>(2.0 + static_cast<double>(rc) - static_cast<double>(bc));
  } else {
    hue = static_cast<float>(4.0 + static_cast<double>(gc) - static_cast<double>(rc));
  }
  hue = static_cast<float>(std::fmod(static_cast<double>(hue) / 6.0 + 1.0, 1.0));
  const auto h = static_cast<uint8_t>(byte_of(static_cast<double>(hue) * 255.0) + turn);
  const auto v = static_cast<uint8_t>(high);
  if (s == 0) {
    out[0] = out[1] = out[2] = v;
    return;
  }
  const double sector = h * 6.0 / 255.0;
  const int i = static_cast<int>(std::floor(sector));
  const float f = static_cast<float>(sector - static_cast<double>(i));
  const float fs = static_cast<float>(s / 255.0);
  const uint8_t p = byte_of(std::round(v * (1.0 - static_cast<double>(fs))));
  const uint8_t q = byte_of(std::round(v * (1.0 - static_cast<double>(fs * f))));
  const uint8_t t =
      byte_of(std::round(v * (1.0 - static_cast<double>(fs) * (1.0 - static_cast<double>(f)))));
  // Sectors 0 to 6 (6 is 0 again): v t p, q v p, p v t, p q v, t p v, v p q.
  const int at = i % 6;
  out[0] = at == 0 || at == 5 ? v : at == 1 ? q : at == 4 ? t : p;
  out[1] = at == 1 || at == 2 ? v : at == 0 ? t : at == 3 ? q : p;
  out[2] = at == 3 || at == 4 ? v : at == 2 ? t : at == 5 ? q : p;
}

// A byte blended with Pillow's SMOOTH kernel over it: ones around a five, over 13. The border keeps
// its bytes, and so does a picture smaller than the kernel. `at` is the byte; its neighbours are
// `channels` and `stride` bytes away.
GRAFT_HD inline uint8_t change_sharpness(const uint8_t* at, int64_t channels, int64_t stride,
                                         float factor) {
  const float one = 1.0f / 13.0f, five = 5.0f / 13.0f;
  float sum = 0.5f;
  for (int row = 1; row >= -1; --row) {
    const uint8_t* middle = at + row * stride;
    sum += static_cast<float>(middle[-channels]) * one +
           static_cast<float>(middle[0]) * (row == 0 ? five : one) +
           static_cast<float>(middle[channels]) * one;
  }
  sum = sum < 0.0f ? 0.0f : sum > 255.0f ? 255.0f : sum;
  return blend(static_cast<int>(sum), *at, factor);
}

// Pixel (x, y) of a changed picture. tables: (channels, 256), of a change that has them.
GRAFT_HD inline void change_pixel(const PictureChange& change, const uint8_t* picture,
                                  const uint8_t* tables, int64_t width, int64_t height,
                                  int64_t channels, int64_t x, int64_t y, uint8_t* out) {
  const int64_t stride = width * channels;
  const uint8_t* in = picture + y * stride + x * channels;
  const bool colours = channels == 3;
  if (colours && change.change == Change::saturation) {
    change_saturation(in, out, change.factor);
    return;
  }
  if (colours && change.change == Change::hue) {
    change_hue(in, out, change.whole);
    return;
  }
  if (change.change == Change::warp) {
    const int64_t column = (change.column + x * change.column_by_x + y * change.column_by_y) >> 16;
    const int64_t row = (change.row + x * change.row_by_x + y * change.row_by_y) >> 16;
    const bool inside = column >= 0 && column < width && row >= 0 && row < height;
    in = picture + row * stride + column * channels;
    for (int64_t c = 0; c < channels; ++c) out[c] = inside ? in[c] : uint8_t{0};
    return;
  }
  const bool border = x == 0 || y == 0 || x + 1 >= width || y + 1 >= height;
  const bool sharpens = change.change == Change::sharpness && !border;
  const bool maps = is_table(change.change);
  for (int64_t c = 0; c < channels; ++c) {
    out[c] = sharpens ? change_sharpness(in + c, channels, stride, change.factor)
             : maps   ? tables[c * 256 + in[c]]
                      : in[c];
  }
}

}  // namespace GRAFT_ISA_NAMESPACE
}  // namespace graft
