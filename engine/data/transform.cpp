// The geometry of torchvision's Resize, CenterCrop and RandomResizedCrop on PIL images.
#include "engine/data/transform.h"

#include <algorithm>
#include <cmath>
#include <cstring>

#include "engine/data/augment.h"
#include "kernels/error.h"

namespace graft {
namespace {

void check(const Preprocessing& preprocessing) {
  GRAFT_CHECK(preprocessing.crop >= 1 && preprocessing.resize >= 0,
              "preprocessing: expected a crop of at least 1 and a resize of at least 0, got crop ",
              preprocessing.crop, " and resize ", preprocessing.resize);
}

// Python's round(): halves go to the even neighbour.
int64_t round_even(double x) { return static_cast<int64_t>(std::nearbyint(x)); }

// One axis of CenterCrop: the window of the picture and where it lands in the crop. torchvision
// pads a short side with zeros, the smaller half before, and then crops.
struct Span {
  int64_t from, count, to;
};
Span centre(int64_t size, int64_t crop, CropOffset offset) {
  if (size < crop) return {0, size, (crop - size) / 2};
  if (offset == CropOffset::floor) return {(size - crop) / 2, crop, 0};
  return {round_even(static_cast<double>(size - crop) / 2.0), crop, 0};
}

struct Box {
  int64_t left, top, width, height;
};

// Inception's crop: a random area and aspect ratio, ten tries, else the largest central crop.
Box random_box(int64_t image_width, int64_t image_height, const Augmentation& augmentation,
               RandomStream& random) {
  const double area = static_cast<double>(image_width) * static_cast<double>(image_height);
  const double low = std::log(augmentation.min_ratio), high = std::log(augmentation.max_ratio);
  for (int attempt = 0; attempt < 10; ++attempt) {
    const double target = area * random.uniform(augmentation.min_scale, augmentation.max_scale);
    const double ratio = std::exp(random.uniform(low, high));
    const int64_t width = round_even(std::sqrt(target * ratio));
    const int64_t height = round_even(std::sqrt(target / ratio));
    if (width < 1 || width > image_width || height < 1 || height > image_height) continue;
    const int64_t top = random.below(image_height - height + 1);
    const int64_t left = random.below(image_width - width + 1);
    return {left, top, width, height};
  }
  int64_t width = image_width, height = image_height;
  const double ratio = static_cast<double>(width) / static_cast<double>(height);
  if (ratio < augmentation.min_ratio) {
    height = round_even(static_cast<double>(width) / augmentation.min_ratio);
  } else if (ratio > augmentation.max_ratio) {
    width = round_even(static_cast<double>(height) * augmentation.max_ratio);
  }
  // Rounding can ask for a pixel more than there is when the ratios are extreme.
  width = std::clamp<int64_t>(width, 1, image_width);
  height = std::clamp<int64_t>(height, 1, image_height);
  return {(image_width - width) / 2, (image_height - height) / 2, width, height};
}

// The view but for its flips.
Image view_of(const Image& image, const ViewGeometry& g, const Preprocessing& preprocessing) {
  const bool whole = g.width == image.width && g.height == image.height;
  Image window = resize_window(whole ? image : crop(image, g.left, g.top, g.width, g.height),
                               g.to_width, g.to_height, preprocessing.interpolation, g.window_left,
                               g.window_top, g.window_width, g.window_height);
  const int64_t size = preprocessing.crop;
  if (g.window_width == size && g.window_height == size) return window;
  Image padded{size, size, image.channels, {}};
  padded.pixels.assign(static_cast<size_t>(size * size * image.channels), 0);
  const int64_t row_bytes = g.window_width * image.channels;
  for (int64_t row = 0; row < g.window_height; ++row) {
    const int64_t to = ((g.pad_top + row) * size + g.pad_left) * image.channels;
    std::memcpy(padded.pixels.data() + to, window.pixels.data() + row * row_bytes,
                static_cast<size_t>(row_bytes));
  }
  return padded;
}

ViewGeometry random_geometry(int64_t width, int64_t height, const Preprocessing& preprocessing,
                             const Augmentation& augmentation, RandomStream& random) {
  check(preprocessing);
  if (!augmentation.random_resized_crop) return eval_geometry(width, height, preprocessing);
  GRAFT_CHECK(width >= 1 && height >= 1, "train_view: the image is empty");
  const Box box = random_box(width, height, augmentation, random);
  const int64_t size = preprocessing.crop;
  return {box.left, box.top, box.width, box.height, size, size, 0, 0, size, size};
}

}  // namespace

ViewGeometry eval_geometry(int64_t width, int64_t height, const Preprocessing& preprocessing) {
  check(preprocessing);
  GRAFT_CHECK(width >= 1 && height >= 1, "eval_view: the image is empty");
  const int64_t crop_size = preprocessing.crop;
  if (preprocessing.resize == 0) {
    return {0, 0, width, height, crop_size, crop_size, 0, 0, crop_size, crop_size};
  }
  // The longer side is cut to an integer, as int(size * long / short) does.
  const int64_t shorter = std::min(width, height), longer = std::max(width, height);
  const int64_t long_side = preprocessing.resize * longer / shorter;
  const bool portrait = width <= height;
  const int64_t to_width = portrait ? preprocessing.resize : long_side;
  const int64_t to_height = portrait ? long_side : preprocessing.resize;
  const Span x = centre(to_width, crop_size, preprocessing.crop_offset);
  const Span y = centre(to_height, crop_size, preprocessing.crop_offset);
  return {0, 0, width, height, to_width, to_height, x.from, y.from, x.count, y.count, x.to, y.to};
}

Image eval_view(const Image& image, const Preprocessing& preprocessing) {
  return view_of(image, eval_geometry(image.width, image.height, preprocessing), preprocessing);
}

Image train_view(const Image& image, const Preprocessing& preprocessing,
                 const Augmentation& augmentation, RandomStream& random) {
  const ViewGeometry geometry =
      random_geometry(image.width, image.height, preprocessing, augmentation, random);
  return augment(view_of(image, geometry, preprocessing), augmentation, random);
}

ViewGeometry train_geometry(int64_t width, int64_t height, const Preprocessing& preprocessing,
                            const Augmentation& augmentation, RandomStream& random) {
  ViewGeometry geometry = random_geometry(width, height, preprocessing, augmentation, random);
  const Flips flips = draw_flips(augmentation, random);
  geometry.flip_horizontal = flips.horizontal;
  geometry.flip_vertical = flips.vertical;
  return geometry;
}

Image flip_horizontal(const Image& image) {
  Image result{image.width, image.height, image.channels, {}};
  result.pixels.resize(image.pixels.size());
  const int64_t c = image.channels, stride = image.width * c;
  for (int64_t y = 0; y < image.height; ++y) {
    const uint8_t* in = image.pixels.data() + (y + 1) * stride;
    uint8_t* out = result.pixels.data() + y * stride;
    for (int64_t x = 0; x < image.width; ++x, out += c) {
      in -= c;
      for (int64_t k = 0; k < c; ++k) out[k] = in[k];
    }
  }
  return result;
}

Image flip_vertical(const Image& image) {
  Image result{image.width, image.height, image.channels, {}};
  result.pixels.resize(image.pixels.size());
  const int64_t stride = image.width * image.channels;
  for (int64_t y = 0; y < image.height; ++y) {
    std::copy_n(image.pixels.data() + (image.height - 1 - y) * stride, stride,
                result.pixels.data() + y * stride);
  }
  return result;
}

NormalisedLevels normalised_levels(const Preprocessing& preprocessing, int64_t channels) {
  // Computed in double, so that a mean of 127/255 and a deviation of 128/255 give (p - 127) / 128.
  NormalisedLevels table{};
  for (size_t c = 0; c < static_cast<size_t>(channels); ++c) {
    const double mean = preprocessing.mean[c], stddev = preprocessing.stddev[c];
    GRAFT_CHECK(stddev > 0, "normalise: expected a positive deviation, got ", stddev,
                " for channel ", c);
    for (size_t v = 0; v < 256; ++v) {
      table[c][v] = static_cast<float>((static_cast<double>(v) / 255.0 - mean) / stddev);
    }
  }
  return table;
}

void normalise(const Image& image, const Preprocessing& preprocessing, float* out) {
  GRAFT_CHECK(image.channels >= 1 && image.channels <= 3,
              "normalise: expected 1 to 3 channels, got ", image.channels);
  const NormalisedLevels table = normalised_levels(preprocessing, image.channels);
  const uint8_t* in = image.pixels.data();
  const int64_t pixels = image.width * image.height;
  if (image.channels == 3) {
    for (int64_t i = 0; i < pixels; ++i, in += 3, out += 3) {
      out[0] = table[0][in[0]];
      out[1] = table[1][in[1]];
      out[2] = table[2][in[2]];
    }
  } else {
    for (int64_t i = 0; i < pixels * image.channels; ++i) {
      out[i] = table[static_cast<size_t>(i % image.channels)][in[i]];
    }
  }
}

}  // namespace graft
