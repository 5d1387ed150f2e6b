// Random changes of colour and geometry for training. Each gives the bytes of Pillow 13
// and torchvision 0.29 (PIL backend) for the same arguments; only the drawing of the arguments is
// ours. 8-bit images of one or three channels in and out, of the same size.
#pragma once

#include <cstdint>
#include <vector>

#include "engine/data/image.h"
#include "engine/data/transform.h"
#include "engine/rng.h"
#include "kernels/augment.h"

namespace graft {

// Pillow's ImageEnhance: a blend with a degenerate picture, factor 1 keeps the image. The
// degenerate ones are black, the mean grey, the grey version and the picture smoothed by a 3 x 3
// kernel. Saturation and hue leave one channel as it is.
PictureChange brightness_change(double factor);
PictureChange contrast_change(double factor);
PictureChange saturation_change(double factor);
PictureChange sharpness_change(double factor);
// Turns the hue by `factor` of the circle, -0.5 .. 0.5, through Pillow's 8-bit HSV.
PictureChange hue_change(double factor);

PictureChange posterize_change(int bits);         // keeps the high bits, 1..8
PictureChange solarize_change(double threshold);  // inverts pixels >= threshold
// Change::autocontrast stretches each channel to 0..255, Change::equalize flattens its histogram.

// Nearest neighbour, black outside. Shears about the upper left corner by tan = level, as
// RandAugment's; whole-pixel shifts; rotation about the centre, degrees counter-clockwise.
PictureChange shear_x_change(double level);
PictureChange shear_y_change(double level);
PictureChange translate_change(int64_t right, int64_t down);
PictureChange rotate_change(double degrees, int64_t width, int64_t height);

Image changed(const Image& image, const PictureChange& change);

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
// An operation at a magnitude 0..30, for a picture of this size; `negative` turns the sign of the
// signed ones.
PictureChange change_of(RandOp op, int magnitude, bool negative, int64_t width, int64_t height);

// Throws unless it can be drawn from: strengths of colour jitter finite and 0 or more, the hue's at
// most 0.5; RandAugment at most 64 times, with a magnitude of 0 to 30.
void check_augmentation(const Augmentation& augmentation);

struct Flips {
  bool horizontal = false, vertical = false;
};
// The first draws of augment().
Flips draw_flips(const Augmentation& augmentation, RandomStream& random);
// The draws behind them: colour jitter in random order, then RandAugment, of a view of this size.
std::vector<PictureChange> draw_changes(const Augmentation& augmentation, int64_t width,
                                        int64_t height, RandomStream& random);
// Flips and changes: what train_view does after the crop.
Image augment(Image view, const Augmentation& augmentation, RandomStream& random);

}  // namespace graft
