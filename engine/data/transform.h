// From an image to the numbers a model takes: the evaluation transform and the training
// augmentation, after torchvision.
#pragma once

#include <array>
#include <cstdint>
#include <string>

#include "engine/data/image.h"
#include "engine/rng.h"
#include "engine/tensor.h"

namespace graft {

// Where a centre crop starts when its margin (size - crop) / 2 is a half: torchvision goes to the
// even pixel, plain integer division down.
enum class CropOffset : uint8_t { nearest_even, floor };

// What a model's weights expect; travels with them.
struct Preprocessing {
  int64_t resize = 256;  // the shorter side; 0: the crop's size exactly, both sides
  int64_t crop = 224;    // square, from the centre
  CropOffset crop_offset = CropOffset::nearest_even;
  Interpolation interpolation = Interpolation::bilinear;
  std::array<float, 3> mean{0.485f, 0.456f, 0.406f};  // of pixels in [0, 1]
  std::array<float, 3> stddev{0.229f, 0.224f, 0.225f};
  friend bool operator==(const Preprocessing&, const Preprocessing&) = default;
};

// Where in a picture a view comes from: the box (left, top, width, height), resized to to_width x
// to_height; of that the window, which lands in a black crop x crop view at (pad_left, pad_top);
// and the flips of the view.
struct ViewGeometry {
  int64_t left = 0, top = 0, width = 0, height = 0;
  int64_t to_width = 0, to_height = 0;
  int64_t window_left = 0, window_top = 0, window_width = 0, window_height = 0;
  int64_t pad_left = 0, pad_top = 0;
  bool flip_horizontal = false, flip_vertical = false;
};
// Of eval_view().
ViewGeometry eval_geometry(int64_t width, int64_t height, const Preprocessing& preprocessing);

// Shorter side to `resize`, centre crop: still 8-bit, crop x crop.
Image eval_view(const Image& image, const Preprocessing& preprocessing);

struct Augmentation {
  bool random_resized_crop = false;
  double min_scale = 0.08, max_scale = 1.0;  // area
  double min_ratio = 3.0 / 4.0, max_ratio = 4.0 / 3.0;
  bool horizontal_flip = true;
  bool vertical_flip = false;
  double brightness = 0, contrast = 0, saturation = 0, hue = 0;  // colour jitter, as torchvision's
  int randaugment_ops = 0;        // number of RandAugment operations; 0 off
  int randaugment_magnitude = 9;  // 0..30
  friend bool operator==(const Augmentation&, const Augmentation&) = default;
};

// A random training view, crop x crop, drawn from `random`.
Image train_view(const Image& image, const Preprocessing& preprocessing,
                 const Augmentation& augmentation, RandomStream& random);

// Of train_view(), from the same draws; those of draw_changes() follow.
ViewGeometry train_geometry(int64_t width, int64_t height, const Preprocessing& preprocessing,
                            const Augmentation& augmentation, RandomStream& random);

// (v / 255 - mean) / stddev for each channel and each byte v.
using NormalisedLevels = std::array<std::array<float, 256>, 3>;
NormalisedLevels normalised_levels(const Preprocessing& preprocessing, int64_t channels);
// Writes (pixel / 255 - mean) / stddev as f32 into out (crop, crop, channels).
void normalise(const Image& image, const Preprocessing& preprocessing, float* out);

}  // namespace graft
