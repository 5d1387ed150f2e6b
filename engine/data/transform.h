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

// Writes (pixel / 255 - mean) / stddev as f32 into out (crop, crop, channels).
void normalise(const Image& image, const Preprocessing& preprocessing, float* out);

}  // namespace graft
