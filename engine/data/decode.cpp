// Decoding by stb_image, behind checks of our own: size limits from the header before a pixel is
// allocated, and a walk over the file's structure (file_structure.h). The formats are cut down to
// JPEG and PNG, which leaves out the loaders with stb's open security reports.
#include <algorithm>
#include <cerrno>
#include <climits>
#include <cstdio>
#include <cstring>
#include <memory>
#include <system_error>

#include "engine/data/file_structure.h"
#include "engine/data/image.h"
#include "kernels/augment.h"
#include "kernels/error.h"

#define STB_IMAGE_IMPLEMENTATION
#define STB_IMAGE_STATIC
#define STBI_ONLY_JPEG
#define STBI_ONLY_PNG
#define STBI_NO_STDIO
#define STBI_NO_HDR
#define STBI_NO_LINEAR
#define STBI_MAX_DIMENSIONS 16384
#define STBI_ASSERT(x)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wall"
#pragma GCC diagnostic ignored "-Wextra"
#pragma GCC diagnostic ignored "-Wshadow"
#pragma GCC diagnostic ignored "-Wunused-function"
#pragma GCC diagnostic ignored "-Wunused-but-set-variable"
#pragma GCC diagnostic ignored "-Wsign-compare"
#include <stb/stb_image.h>
#pragma GCC diagnostic pop

namespace graft {
namespace {

struct FreePixels {
  void operator()(stbi_uc* pixels) const { stbi_image_free(pixels); }
};
using Pixels = std::unique_ptr<stbi_uc, FreePixels>;

// Writes one decoded row (1 grey, 2 grey + alpha, 3 colour, 4 colour + alpha) as 1 or 3 channels.
void convert_row(const uint8_t* in, int from, int64_t width, int64_t to, uint8_t* out) {
  const bool colour = from >= 3;
  if (from == to) {
    std::memcpy(out, in, static_cast<size_t>(width * to));
  } else if (to == 1) {
    for (int64_t x = 0; x < width; ++x, in += from) out[x] = colour ? luma(in) : in[0];
  } else {
    for (int64_t x = 0; x < width; ++x, in += from, out += 3) {
      out[0] = in[0];
      out[1] = in[colour ? 1 : 0];
      out[2] = in[colour ? 2 : 0];
    }
  }
}

// Undoes EXIF orientation 2..8: the stored picture becomes the upright one. 5..8 swap the sides.
Image upright(const Image& stored, int orientation) {
  const int64_t w = stored.width, h = stored.height, c = stored.channels;
  const bool swap = orientation >= 5;
  Image result{swap ? h : w, swap ? w : h, c, {}};
  result.pixels.resize(stored.pixels.size());
  // Whether the upright x (y) runs against the stored axis that it follows.
  const bool x_back = orientation == 2 || orientation == 3 || orientation == 6 || orientation == 7;
  const bool y_back = orientation == 3 || orientation == 4 || orientation == 7 || orientation == 8;
  uint8_t* out = result.pixels.data();
  for (int64_t y = 0; y < result.height; ++y) {
    const int64_t along_y = y_back ? result.height - 1 - y : y;
    for (int64_t x = 0; x < result.width; ++x, out += c) {
      const int64_t along_x = x_back ? result.width - 1 - x : x;
      const int64_t from = swap ? along_x * w + along_y : along_y * w + along_x;
      std::copy_n(stored.pixels.data() + from * c, c, out);
    }
  }
  return result;
}

}  // namespace

Image decode_image(std::span<const uint8_t> bytes, int64_t channels, const std::string& name,
                   const DecodeLimits& limits) {
  GRAFT_CHECK(channels == 1 || channels == 3, "decode_image: expected 1 or 3 channels, got ",
              channels);
  GRAFT_CHECK(!bytes.empty(), name, ": the file is empty; delete it or fetch it again");
  GRAFT_CHECK(static_cast<int64_t>(bytes.size()) <= std::min<int64_t>(limits.max_bytes, INT_MAX),
              name, ": ", bytes.size(), " bytes, the limit is ", limits.max_bytes,
              "; scale the image down");
  const SniffedKind kind = sniff(bytes);
  GRAFT_CHECK(kind.kind != FileKind::other, name, ": not a JPEG or PNG image",
              kind.name.empty() ? "" : " but " + kind.name, "; ",
              kind.remedy.empty() ? "remove it from the data" : kind.remedy);
  const FileStructure structure = kind.kind == FileKind::jpeg ? walk_jpeg(bytes) : walk_png(bytes);
  GRAFT_CHECK(structure.fault.empty(), name, ": ", structure.fault,
              "; fetch the file again or remove it");

  GRAFT_CHECK(structure.width >= 1 && structure.height >= 1, name, ": damaged ", kind.name,
              " header, the picture is ", structure.width, " x ", structure.height,
              "; fetch the file again or remove it");
  GRAFT_CHECK(structure.width <= STBI_MAX_DIMENSIONS && structure.height <= STBI_MAX_DIMENSIONS &&
                  structure.width * structure.height <= limits.max_pixels,
              name, ": ", structure.width, " x ", structure.height, " pixels, the limit is ",
              limits.max_pixels, " in all and ", STBI_MAX_DIMENSIONS,
              " a side; scale the image down");
  if (kind.kind == FileKind::png) {
    const std::string fault = inflate_fault(bytes);
    GRAFT_CHECK(fault.empty(), name, ": ", fault, "; fetch the file again or remove it");
  }

  int width = 0, height = 0, found = 0;
  const Pixels pixels(stbi_load_from_memory(bytes.data(), static_cast<int>(bytes.size()), &width,
                                            &height, &found, 0));
  const char* reason = stbi_failure_reason();
  GRAFT_CHECK(pixels != nullptr, name, ": damaged or unusual ", kind.name, " data (",
              reason == nullptr ? "unknown reason" : reason,
              "); fetch it again or save it again as baseline JPEG or PNG");
  GRAFT_CHECK(width == structure.width && height == structure.height, name, ": damaged ", kind.name,
              " data, decoded to ", width, " x ", height, " instead of ", structure.width, " x ",
              structure.height);
  Image image{width, height, channels, {}};
  image.pixels.resize(static_cast<size_t>(image.width * image.height * channels));
  for (int64_t y = 0; y < height; ++y) {
    convert_row(pixels.get() + y * width * found, found, width, channels,
                image.pixels.data() + y * width * channels);
  }
  return structure.orientation == 1 ? image : upright(image, structure.orientation);
}

Image load_image(const std::filesystem::path& path, int64_t channels, const DecodeLimits& limits) {
  const std::string name = path.string();
  std::error_code error;
  const auto status = std::filesystem::status(path, error);
  GRAFT_CHECK(std::filesystem::exists(status), name, ": no such file; check the path");
  GRAFT_CHECK(!std::filesystem::is_directory(status), name,
              ": a folder where an image file was expected");
  std::unique_ptr<std::FILE, int (*)(std::FILE*)> file(std::fopen(path.c_str(), "rb"),
                                                       &std::fclose);
  GRAFT_CHECK(file != nullptr, name, ": cannot be opened (", std::generic_category().message(errno),
              "); check its permissions");
  // Read up to one byte past the limit instead of trusting the size on disk, which may change.
  std::vector<uint8_t> bytes;
  const size_t chunk = size_t{1} << 18;
  for (size_t used = 0;;) {
    bytes.resize(used + chunk);
    const size_t got = std::fread(bytes.data() + used, 1, chunk, file.get());
    used += got;
    if (got < chunk) {
      GRAFT_CHECK(!std::ferror(file.get()), name, ": cannot be read (",
                  std::generic_category().message(errno), "); check the disk");
      bytes.resize(used);
      break;
    }
    if (static_cast<int64_t>(used) > limits.max_bytes) break;
  }
  return decode_image(bytes, channels, name, limits);
}

}  // namespace graft
