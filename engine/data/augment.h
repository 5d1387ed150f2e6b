// Random changes of colour and geometry for training. Each operation gives the bytes of Pillow 13
// and torchvision 0.29 (PIL backend) for the same arguments; only the drawing of the arguments is
// ours. 8-bit images of one or three channels in and out, of the same size.
#pragma once

#include <cstdint>

#include "engine/data/image.h"
#include "engine/data/transform.h"
#include "engine/rng.h"

namespace graft {

// Pillow's ImageEnhance: a blend with a degenerate picture, factor 1 keeps the image. The
// degenerate ones are black, the mean grey, the grey version and the picture smoothed by a 3 x 3
// kernel.
Image adjust_brightness(Image image, double factor);
Image adjust_contrast(Image image, double factor);
Image adjust_saturation(Image image, double factor);  // no change to one channel
Image adjust_sharpness(const Image& image, double factor);
// Turns the hue by `factor` of the circle, -0.5 .. 0.5, through Pillow's 8-bit HSV.
Image adjust_hue(Image image, double factor);  // no change to one channel

Image posterize(Image image, int bits);         // keeps the high bits, 1..8
Image solarize(Image image, double threshold);  // inverts pixels >= threshold
Image autocontrast(Image image);                // stretches each channel to 0..255
Image equalize(Image image);                    // flattens each channel's histogram

// Nearest neighbour, black outside. Shears about the upper left corner by tan = level, as
// RandAugment's; whole-pixel shifts; rotation about the centre, degrees counter-clockwise.
Image shear_x(const Image& image, double level);
Image shear_y(const Image& image, double level);
Image translate(const Image& image, int64_t right, int64_t down);
Image rotate(const Image& image, double degrees);

// torchvision's RandAugment operations, in its order.
enum class RandOp : uint8_t {
  identity,
  shear_x,
  shear_y,
  translate_x,
  translate_y,
  rotate,
  brightness,
  color,
  contrast,
  sharpness,
  posterize,
  solarize,
  autocontrast,
  equalize
};
inline constexpr int kRandOps = 14;
inline constexpr int kMagnitudes = 31;
bool is_signed(RandOp op);
// Applies an operation at a magnitude 0..30; `negative` turns the sign of the signed ones.
Image apply(RandOp op, int magnitude, bool negative, Image image);

struct Flips {
  bool horizontal = false, vertical = false;
};
// The first draws of augment().
Flips draw_flips(const Augmentation& augmentation, RandomStream& random);
// Flips, colour jitter in random order, then RandAugment: what train_view does after the crop.
Image augment(Image view, const Augmentation& augmentation, RandomStream& random);

}  // namespace graft
