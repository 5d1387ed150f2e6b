// Images: decoding with limits, orientation, and Pillow's resampling to the bit.
#pragma once

#include <cstdint>
#include <filesystem>
#include <span>
#include <string>
#include <vector>

namespace graft {

// 8-bit pixels, rows top to bottom, channels interleaved.
struct Image {
  int64_t width = 0, height = 0, channels = 0;  // 1 or 3 channels
  std::vector<uint8_t> pixels;                  // height * width * channels
};

struct DecodeLimits {
  int64_t max_pixels = 89'478'485;  // Pillow's warning limit
  int64_t max_bytes = int64_t{512} << 20;
};

// Decodes a JPEG or PNG (told apart by content) to `channels` (1 or 3). EXIF orientation is applied
// (torchvision's ImageFolder does not), alpha dropped and not composited, palettes expanded, 16-bit
// samples cut to their high byte (Pillow's convert("RGB") clips them to white instead), CMYK turned
// into RGB, the first frame taken of an animated PNG, grey copied to three channels or colour
// weighted to one as Pillow's convert("L") does. Throws Error "name: reason; what to do": not an
// image, truncated, too large, damaged.
Image decode_image(std::span<const uint8_t> bytes, int64_t channels, const std::string& name,
                   const DecodeLimits& limits = {});
Image load_image(const std::filesystem::path& path, int64_t channels,
                 const DecodeLimits& limits = {});

enum class Interpolation : uint8_t { bilinear, bicubic };
// Bit-exact with Pillow's Image.resize(..., BILINEAR / BICUBIC) of a whole 8-bit image.
Image resize(const Image& image, int64_t width, int64_t height, Interpolation interpolation);
// The window (left, top, window_width, window_height) of that result, without computing the rest.
Image resize_window(const Image& image, int64_t width, int64_t height, Interpolation interpolation,
                    int64_t left, int64_t top, int64_t window_width, int64_t window_height);
// The part (left, top, width, height) of the image, which must lie inside it.
Image crop(const Image& image, int64_t left, int64_t top, int64_t width, int64_t height);
Image flip_horizontal(const Image& image);
Image flip_vertical(const Image& image);

}  // namespace graft
