// Rounding is Pillow's (kernels/augment.h), in plain SSE arithmetic without contraction, so that
// the bytes are the same on every machine. Checked against Pillow and torchvision by
// tests/data/make_transform_golden.py.
#include "engine/data/augment.h"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <numbers>

#include "kernels/error.h"

namespace graft {
namespace {

PictureChange blended(Change change, double factor) {
  return {.change = change, .factor = static_cast<float>(factor)};
}

// Output (x, y) takes the input at (a x + b y + c, d x + e y + f), pixel centres at 0.5.
struct Affine {
  double a, b, c, d, e, f;
};

PictureChange warped(const Affine& m) {
  const auto fixed = [](double v) { return static_cast<int64_t>(std::floor(v * 65536.0 + 0.5)); };
  return {.change = Change::warp,
          .column = fixed(m.c + m.a * 0.5 + m.b * 0.5),
          .column_by_x = fixed(m.a),
          .column_by_y = fixed(m.b),
          .row = fixed(m.f + m.d * 0.5 + m.e * 0.5),
          .row_by_x = fixed(m.d),
          .row_by_y = fixed(m.e)};
}

// Python's round(x, 15), which Pillow applies to a rotation's sine and cosine.
double round15(double x) {
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, x, std::chars_format::fixed, 15);
  double result = x;
  std::from_chars(digits, end.ptr, result);
  return result;
}

void check_magnitude(int magnitude) {
  GRAFT_CHECK(magnitude >= 0 && magnitude < kMagnitudes,
              "RandAugment: expected a magnitude of 0 to ", kMagnitudes - 1, ", got ", magnitude);
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

PictureChange brightness_change(double factor) { return blended(Change::brightness, factor); }
PictureChange contrast_change(double factor) { return blended(Change::contrast, factor); }
PictureChange saturation_change(double factor) { return blended(Change::saturation, factor); }
PictureChange sharpness_change(double factor) { return blended(Change::sharpness, factor); }

PictureChange hue_change(double factor) {
  GRAFT_CHECK(factor >= -0.5 && factor <= 0.5, "hue_change: expected -0.5 to 0.5, got ", factor);
  return {.change = Change::hue, .whole = static_cast<int>(factor * 255)};
}

PictureChange posterize_change(int bits) {
  GRAFT_CHECK(bits >= 1 && bits <= 8, "posterize_change: expected 1 to 8 bits, got ", bits);
  return {.change = Change::posterize, .whole = ~((1 << (8 - bits)) - 1)};
}

PictureChange solarize_change(double threshold) {
  return {.change = Change::solarize, .threshold = threshold};
}

PictureChange shear_x_change(double level) {
  return warped({1, std::tan(std::atan(level)), 0, 0, 1, 0});
}

PictureChange shear_y_change(double level) {
  return warped({1, 0, 0, std::tan(std::atan(level)), 1, 0});
}

PictureChange translate_change(int64_t right, int64_t down) {
  return warped({1, 0, -static_cast<double>(right), 0, 1, -static_cast<double>(down)});
}

PictureChange rotate_change(double degrees, int64_t width, int64_t height) {
  double turn = std::fmod(degrees, 360.0);
  if (turn < 0) turn += 360.0;
  if (turn == 0) return {};
  const double angle = -turn * (std::numbers::pi / 180.0);
  const double cosine = round15(std::cos(angle)), sine = round15(std::sin(angle));
  const double x = static_cast<double>(width) / 2, y = static_cast<double>(height) / 2;
  const double back = round15(-std::sin(angle));
  return warped({cosine, sine, cosine * -x + sine * -y + 0.0 + x, back, cosine,
                 back * -x + cosine * -y + 0.0 + y});
}

Image changed(const Image& image, const PictureChange& change) {
  const int64_t pixels = image.width * image.height, channels = image.channels;
  if (change.change == Change::none || pixels == 0) return image;
  std::array<uint8_t, 3 * 256> tables;
  if (is_table(change.change)) {
    for (int64_t c = 0; c < channels; ++c) {
      make_table(change, image.pixels.data(), pixels, channels, c, tables.data() + c * 256);
    }
  }
  Image result{image.width, image.height, channels, {}};
  result.pixels.resize(image.pixels.size());
  uint8_t* out = result.pixels.data();
  for (int64_t y = 0; y < image.height; ++y) {
    for (int64_t x = 0; x < image.width; ++x, out += channels) {
      change_pixel(change, image.pixels.data(), tables.data(), image.width, image.height, channels,
                   x, y, out);
    }
  }
  return result;
}

bool is_signed(RandOp op) { return op >= RandOp::shear_x && op <= RandOp::sharpness; }

PictureChange change_of(RandOp op, int magnitude, bool negative, int64_t width, int64_t height) {
  check_magnitude(magnitude);
  const auto level = [&](double last) {
    const double value = magnitude_of(0, last, magnitude);
    return negative && is_signed(op) ? -value : value;
  };
  const auto shift = [&](int64_t side) {
    return static_cast<int64_t>(level(150.0 / 331.0 * static_cast<double>(side)));
  };
  switch (op) {
    case RandOp::identity:
      break;
    case RandOp::shear_x:
      return shear_x_change(level(0.3));
    case RandOp::shear_y:
      return shear_y_change(level(0.3));
    case RandOp::translate_x:
      return translate_change(shift(width), 0);
    case RandOp::translate_y:
      return translate_change(0, shift(height));
    case RandOp::rotate:
      return rotate_change(level(30.0), width, height);
    case RandOp::brightness:
      return brightness_change(1.0 + level(0.9));
    case RandOp::color:
      return saturation_change(1.0 + level(0.9));
    case RandOp::contrast:
      return contrast_change(1.0 + level(0.9));
    case RandOp::sharpness:
      return sharpness_change(1.0 + level(0.9));
    case RandOp::posterize:
      return posterize_change(8 - static_cast<int>(std::lround(magnitude / 7.5)));
    case RandOp::solarize:
      return solarize_change(magnitude_of(255, 0, magnitude));
    case RandOp::autocontrast:
      return {.change = Change::autocontrast};
    case RandOp::equalize:
      return {.change = Change::equalize};
  }
  return {};
}

void check_augmentation(const Augmentation& augmentation) {
  const double strength[4] = {augmentation.brightness, augmentation.contrast,
                              augmentation.saturation, augmentation.hue};
  GRAFT_CHECK(
      std::all_of(strength, strength + 4, [](double s) { return s >= 0 && std::isfinite(s); }) &&
          augmentation.hue <= 0.5,
      "colour jitter: expected strengths of 0 or more, and at most 0.5 for the hue, got ",
      strength[0], ", ", strength[1], ", ", strength[2], " and ", strength[3]);
  constexpr int kMostOps = 64;
  GRAFT_CHECK(augmentation.randaugment_ops >= 0 && augmentation.randaugment_ops <= kMostOps,
              "RandAugment: expected 0 to ", kMostOps, " operations, got ",
              augmentation.randaugment_ops);
  if (augmentation.randaugment_ops > 0) check_magnitude(augmentation.randaugment_magnitude);
}

Flips draw_flips(const Augmentation& augmentation, RandomStream& random) {
  Flips flips;
  flips.horizontal = augmentation.horizontal_flip && random.uniform() < 0.5;
  flips.vertical = augmentation.vertical_flip && random.uniform() < 0.5;
  return flips;
}

std::vector<PictureChange> draw_changes(const Augmentation& augmentation, int64_t width,
                                        int64_t height, RandomStream& random) {
  std::vector<PictureChange> changes;
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
      changes.push_back(i == 0   ? brightness_change(factor[i])
                        : i == 1 ? contrast_change(factor[i])
                        : i == 2 ? saturation_change(factor[i])
                                 : hue_change(factor[i]));
    }
  }
  for (int i = 0; i < augmentation.randaugment_ops; ++i) {
    const auto op = static_cast<RandOp>(random.below(kRandOps));
    const bool negative = is_signed(op) && random.below(2) == 1;
    changes.push_back(change_of(op, augmentation.randaugment_magnitude, negative, width, height));
  }
  std::erase_if(changes, [](const PictureChange& one) { return one.change == Change::none; });
  return changes;
}

Image augment(Image view, const Augmentation& augmentation, RandomStream& random) {
  const Flips flips = draw_flips(augmentation, random);
  if (flips.horizontal) view = flip_horizontal(view);
  if (flips.vertical) view = flip_vertical(view);
  for (const PictureChange& change : draw_changes(augmentation, view.width, view.height, random)) {
    view = changed(view, change);
  }
  return view;
}

}  // namespace graft
