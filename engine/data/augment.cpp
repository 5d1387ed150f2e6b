// Rounding is Pillow's: blends in f32 and cut towards zero, tables in double, geometry in 16.16
// fixed point. Plain SSE arithmetic without contraction, so that the bytes are the same on every
// machine. Checked against Pillow and torchvision by tests/data/make_transform_golden.py.
#include "engine/data/augment.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

#include "kernels/error.h"

namespace graft {
namespace {

uint8_t blend(int from, int to, float alpha) {
  const float value = static_cast<float>(from) + alpha * static_cast<float>(to - from);
  if (value <= 0.0f) return 0;
  if (value >= 255.0f) return 255;
  return static_cast<uint8_t>(value);
}

using Table = std::array<uint8_t, 256>;

// Maps every byte of one channel.
void map_channel(Image& image, int64_t channel, const Table& table) {
  const size_t step = static_cast<size_t>(image.channels);
  for (size_t i = static_cast<size_t>(channel); i < image.pixels.size(); i += step) {
    image.pixels[i] = table[image.pixels[i]];
  }
}

template <class F>
Image map_bytes(Image image, F f) {
  Table table;
  for (int v = 0; v < 256; ++v) table[static_cast<size_t>(v)] = f(v);
  for (uint8_t& p : image.pixels) p = table[p];
  return image;
}

std::array<int64_t, 256> histogram(const Image& image, int64_t channel) {
  std::array<int64_t, 256> counts{};
  const size_t step = static_cast<size_t>(image.channels);
  for (size_t i = static_cast<size_t>(channel); i < image.pixels.size(); i += step) {
    ++counts[image.pixels[i]];
  }
  return counts;
}

struct Hsv {
  uint8_t h, s, v;
};

// The mixture of float and double below is Pillow's own.
Hsv to_hsv(const uint8_t* rgb) {
  const int r = rgb[0], g = rgb[1], b = rgb[2];
  const int high = std::max({r, g, b}), low = std::min({r, g, b});
  if (high == low) return {0, 0, static_cast<uint8_t>(high)};
  const float range = static_cast<float>(high - low);
  const float saturation = range / static_cast<float>(high);
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
  const auto byte = [](float x) {
    return static_cast<uint8_t>(
        std::clamp(static_cast<int>(static_cast<double>(x) * 255.0), 0, 255));
  };
  return {byte(hue), byte(saturation), static_cast<uint8_t>(high)};
}

void from_hsv(Hsv hsv, uint8_t* rgb) {
  const uint8_t v = hsv.v;
  if (hsv.s == 0) {
    rgb[0] = rgb[1] = rgb[2] = v;
    return;
  }
  const double sector = hsv.h * 6.0 / 255.0;
  const int i = static_cast<int>(std::floor(sector));
  const float f = static_cast<float>(sector - static_cast<double>(i));
  const float fs = static_cast<float>(hsv.s / 255.0);
  const auto byte = [v](double share) {
    return static_cast<uint8_t>(std::clamp(static_cast<int>(std::round(v * share)), 0, 255));
  };
  const uint8_t p = byte(1.0 - static_cast<double>(fs));
  const uint8_t q = byte(1.0 - static_cast<double>(fs * f));
  const uint8_t t = byte(1.0 - static_cast<double>(fs) * (1.0 - static_cast<double>(f)));
  const uint8_t sectors[6][3] = {{v, t, p}, {q, v, p}, {p, v, t}, {p, q, v}, {t, p, v}, {v, p, q}};
  std::copy_n(sectors[i % 6], 3, rgb);
}

// Output (x, y) takes the input at (a x + b y + c, d x + e y + f), pixel centres at 0.5.
struct Affine {
  double a, b, c, d, e, f;
};

Image transform_nearest(const Image& image, const Affine& m) {
  const auto fixed = [](double v) { return static_cast<int64_t>(std::floor(v * 65536.0 + 0.5)); };
  const int64_t a = fixed(m.a), b = fixed(m.b), d = fixed(m.d), e = fixed(m.e);
  int64_t row_x = fixed(m.c + m.a * 0.5 + m.b * 0.5), row_y = fixed(m.f + m.d * 0.5 + m.e * 0.5);
  Image result{image.width, image.height, image.channels, {}};
  result.pixels.assign(image.pixels.size(), 0);
  uint8_t* out = result.pixels.data();
  for (int64_t y = 0; y < image.height; ++y, row_x += b, row_y += e) {
    int64_t xx = row_x, yy = row_y;
    for (int64_t x = 0; x < image.width; ++x, xx += a, yy += d, out += image.channels) {
      const int64_t from_x = xx >> 16, from_y = yy >> 16;
      if (from_x < 0 || from_x >= image.width || from_y < 0 || from_y >= image.height) continue;
      std::copy_n(image.pixels.data() + (from_y * image.width + from_x) * image.channels,
                  image.channels, out);
    }
  }
  return result;
}

// Python's round(x, 15), which Pillow applies to a rotation's sine and cosine.
double round15(double x) {
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, x, std::chars_format::fixed, 15);
  double result = x;
  std::from_chars(digits, end.ptr, result);
  return result;
}

// Entry `index` of torch.linspace(first, last, 31), in f32 as there: counted from the nearer end,
// with one rounding.
double magnitude_of(double first, double last, int index) {
  const float start = static_cast<float>(first), end = static_cast<float>(last);
  const float step = (end - start) / static_cast<float>(kMagnitudes - 1);
  return index < kMagnitudes / 2
             ? std::fma(step, static_cast<float>(index), start)
             : std::fma(-step, static_cast<float>(kMagnitudes - 1 - index), end);
}

}  // namespace

Image adjust_brightness(Image image, double factor) {
  const float alpha = static_cast<float>(factor);
  return map_bytes(std::move(image), [&](int v) { return blend(0, v, alpha); });
}

Image adjust_contrast(Image image, double factor) {
  const float alpha = static_cast<float>(factor);
  int64_t sum = 0;
  const int64_t count = image.width * image.height;
  if (count == 0) return image;
  for (int64_t i = 0; i < count; ++i) {
    const uint8_t* p = image.pixels.data() + i * image.channels;
    sum += image.channels == 3 ? luma(p) : *p;
  }
  const int mean = static_cast<int>(static_cast<double>(sum) / static_cast<double>(count) + 0.5);
  return map_bytes(std::move(image), [&](int v) { return blend(mean, v, alpha); });
}

Image adjust_saturation(Image image, double factor) {
  if (image.channels != 3) return image;
  const float alpha = static_cast<float>(factor);
  for (size_t i = 0; i + 2 < image.pixels.size(); i += 3) {
    uint8_t* p = image.pixels.data() + i;
    const int grey = luma(p);
    for (int c = 0; c < 3; ++c) p[c] = blend(grey, p[c], alpha);
  }
  return image;
}

Image adjust_sharpness(const Image& image, double factor) {
  const float alpha = static_cast<float>(factor);
  const int64_t w = image.width, h = image.height, c = image.channels, stride = w * c;
  // Pillow's SMOOTH kernel: ones around a five, over 13; the border is kept, and so is an image
  // smaller than the kernel.
  if (w < 3 || h < 3) return image;
  const float one = 1.0f / 13.0f, five = 5.0f / 13.0f;
  Image result = image;
  for (int64_t y = 1; y + 1 < h; ++y) {
    for (int64_t x = c; x < stride - c; ++x) {
      const uint8_t* p = image.pixels.data() + y * stride + x;
      const auto row = [c](const uint8_t* at, float side, float middle) {
        return static_cast<float>(at[-c]) * side + static_cast<float>(at[0]) * middle +
               static_cast<float>(at[c]) * side;
      };
      float sum = 0.5f;
      sum += row(p + stride, one, one);
      sum += row(p, one, five);
      sum += row(p - stride, one, one);
      const int smooth = static_cast<int>(std::clamp(sum, 0.0f, 255.0f));
      result.pixels[static_cast<size_t>(y * stride + x)] = blend(smooth, *p, alpha);
    }
  }
  return result;
}

Image adjust_hue(Image image, double factor) {
  GRAFT_CHECK(factor >= -0.5 && factor <= 0.5, "adjust_hue: expected -0.5 to 0.5, got ", factor);
  if (image.channels != 3) return image;
  const int turn = static_cast<int>(factor * 255);
  for (size_t i = 0; i + 2 < image.pixels.size(); i += 3) {
    Hsv hsv = to_hsv(image.pixels.data() + i);
    hsv.h = static_cast<uint8_t>(hsv.h + turn);
    from_hsv(hsv, image.pixels.data() + i);
  }
  return image;
}

Image posterize(Image image, int bits) {
  GRAFT_CHECK(bits >= 1 && bits <= 8, "posterize: expected 1 to 8 bits, got ", bits);
  const int mask = ~((1 << (8 - bits)) - 1);
  return map_bytes(std::move(image), [&](int v) { return static_cast<uint8_t>(v & mask); });
}

Image solarize(Image image, double threshold) {
  return map_bytes(std::move(image),
                   [&](int v) { return static_cast<uint8_t>(v < threshold ? v : 255 - v); });
}

Image autocontrast(Image image) {
  for (int64_t c = 0; c < image.channels; ++c) {
    const auto counts = histogram(image, c);
    const auto used = [](int64_t n) { return n != 0; };
    const auto low = std::find_if(counts.begin(), counts.end(), used) - counts.begin();
    const auto high = 255 - (std::find_if(counts.rbegin(), counts.rend(), used) - counts.rbegin());
    if (high <= low) continue;
    const double scale = 255.0 / static_cast<double>(high - low);
    const double offset = -static_cast<double>(low) * scale;
    Table table;
    for (int v = 0; v < 256; ++v) {
      table[static_cast<size_t>(v)] =
          static_cast<uint8_t>(std::clamp(static_cast<int>(v * scale + offset), 0, 255));
    }
    map_channel(image, c, table);
  }
  return image;
}

Image equalize(Image image) {
  for (int64_t c = 0; c < image.channels; ++c) {
    const auto counts = histogram(image, c);
    const auto used = [](int64_t n) { return n != 0; };
    if (std::count_if(counts.begin(), counts.end(), used) <= 1) continue;
    const int64_t last = *std::find_if(counts.rbegin(), counts.rend(), used);
    const int64_t step = (image.width * image.height - last) / 255;
    if (step == 0) continue;
    Table table;
    int64_t n = step / 2;
    for (size_t v = 0; v < 256; ++v) {
      table[v] = static_cast<uint8_t>(std::min<int64_t>(n / step, 255));
      n += counts[v];
    }
    map_channel(image, c, table);
  }
  return image;
}

Image shear_x(const Image& image, double level) {
  return transform_nearest(image, {1, std::tan(std::atan(level)), 0, 0, 1, 0});
}

Image shear_y(const Image& image, double level) {
  return transform_nearest(image, {1, 0, 0, std::tan(std::atan(level)), 1, 0});
}

Image translate(const Image& image, int64_t right, int64_t down) {
  return transform_nearest(image,
                           {1, 0, -static_cast<double>(right), 0, 1, -static_cast<double>(down)});
}

Image rotate(const Image& image, double degrees) {
  double turn = std::fmod(degrees, 360.0);
  if (turn < 0) turn += 360.0;
  if (turn == 0) return image;
  const double angle = -turn * (std::numbers::pi / 180.0);
  const double cosine = round15(std::cos(angle)), sine = round15(std::sin(angle));
  const double x = static_cast<double>(image.width) / 2, y = static_cast<double>(image.height) / 2;
  const double back = round15(-std::sin(angle));
  return transform_nearest(image, {cosine, sine, cosine * -x + sine * -y + 0.0 + x, back, cosine,
                                   back * -x + cosine * -y + 0.0 + y});
}

bool is_signed(RandOp op) { return op >= RandOp::shear_x && op <= RandOp::sharpness; }

Image apply(RandOp op, int magnitude, bool negative, Image image) {
  GRAFT_CHECK(magnitude >= 0 && magnitude < kMagnitudes,
              "RandAugment: expected a magnitude of 0 to ", kMagnitudes - 1, ", got ", magnitude);
  const auto level = [&](double last) {
    const double value = magnitude_of(0, last, magnitude);
    return negative && is_signed(op) ? -value : value;
  };
  const auto shift = [&](int64_t side) {
    return static_cast<int64_t>(level(150.0 / 331.0 * static_cast<double>(side)));
  };
  switch (op) {
    case RandOp::identity:
      return image;
    case RandOp::shear_x:
      return shear_x(image, level(0.3));
    case RandOp::shear_y:
      return shear_y(image, level(0.3));
    case RandOp::translate_x:
      return translate(image, shift(image.width), 0);
    case RandOp::translate_y:
      return translate(image, 0, shift(image.height));
    case RandOp::rotate:
      return rotate(image, level(30.0));
    case RandOp::brightness:
      return adjust_brightness(std::move(image), 1.0 + level(0.9));
    case RandOp::color:
      return adjust_saturation(std::move(image), 1.0 + level(0.9));
    case RandOp::contrast:
      return adjust_contrast(std::move(image), 1.0 + level(0.9));
    case RandOp::sharpness:
      return adjust_sharpness(image, 1.0 + level(0.9));
    case RandOp::posterize:
      return posterize(std::move(image), 8 - static_cast<int>(std::lround(magnitude / 7.5)));
    case RandOp::solarize:
      return solarize(std::move(image), magnitude_of(255, 0, magnitude));
    case RandOp::autocontrast:
      return autocontrast(std::move(image));
    case RandOp::equalize:
      return equalize(std::move(image));
  }
  return image;
}

Flips draw_flips(const Augmentation& augmentation, RandomStream& random) {
  Flips flips;
  flips.horizontal = augmentation.horizontal_flip && random.uniform() < 0.5;
  flips.vertical = augmentation.vertical_flip && random.uniform() < 0.5;
  return flips;
}

Image augment(Image view, const Augmentation& augmentation, RandomStream& random) {
  const Flips flips = draw_flips(augmentation, random);
  if (flips.horizontal) view = flip_horizontal(view);
  if (flips.vertical) view = flip_vertical(view);

  // torchvision draws the order and all four factors before it uses them.
  const double strength[4] = {augmentation.brightness, augmentation.contrast,
                              augmentation.saturation, augmentation.hue};
  if (std::any_of(strength, strength + 4, [](double s) { return s > 0; })) {
    int order[4] = {0, 1, 2, 3};
    for (int i = 3; i > 0; --i) std::swap(order[i], order[random.below(i + 1)]);
    double factor[4];
    for (int i = 0; i < 4; ++i) {
      factor[i] = i == 3 ? random.uniform(-strength[i], strength[i])
                         : random.uniform(std::max(0.0, 1 - strength[i]), 1 + strength[i]);
    }
    for (int i : order) {
      if (strength[i] <= 0) continue;
      if (i == 0) view = adjust_brightness(std::move(view), factor[i]);
      if (i == 1) view = adjust_contrast(std::move(view), factor[i]);
      if (i == 2) view = adjust_saturation(std::move(view), factor[i]);
      if (i == 3) view = adjust_hue(std::move(view), factor[i]);
    }
  }

  for (int i = 0; i < augmentation.randaugment_ops; ++i) {
    const auto op = static_cast<RandOp>(random.below(kRandOps));
    const bool negative = is_signed(op) && random.below(2) == 1;
    view = apply(op, augmentation.randaugment_magnitude, negative, std::move(view));
  }
  return view;
}

}  // namespace graft
