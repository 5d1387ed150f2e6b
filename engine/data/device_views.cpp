// One array: views, changes, filters, levels and pixels, each aligned as its elements want, so that
// a batch is one copy to the device.
#include "engine/data/device_views.h"

#include <algorithm>
#include <cstring>

#include "engine/data/resize_filter.h"
#include "engine/dispatch.h"
#include "engine/upload.h"
#include "kernels/error.h"

namespace graft {
namespace {

// Appends a filter in the layout of ImageView; gives its taps.
int32_t append(const ResizeFilter& filter, int64_t count, std::vector<int32_t>& words) {
  if (filter.ranges.empty()) {
    for (int64_t i = 0; i < count; ++i) {
      words.insert(words.end(), {static_cast<int32_t>(i), 1, 1 << kResizeBits});
    }
    return 1;
  }
  for (size_t i = 0; i < filter.ranges.size(); ++i) {
    const ResizeFilter::Range& range = filter.ranges[i];
    words.insert(words.end(),
                 {static_cast<int32_t>(range.first), static_cast<int32_t>(range.count)});
    const auto weights = filter.weights.begin() + static_cast<int64_t>(i) * filter.taps;
    words.insert(words.end(), weights, weights + filter.taps);
  }
  return static_cast<int32_t>(filter.taps);
}

size_t aligned(size_t bytes) { return (bytes + 15) / 16 * 16; }

}  // namespace

PackedView pack_view(const Image& image, const ViewGeometry& geometry, Interpolation interpolation,
                     std::vector<PictureChange> changes) {
  const ViewGeometry& g = geometry;
  GRAFT_CHECK(g.left >= 0 && g.top >= 0 && g.width >= 1 && g.height >= 1 &&
                  g.left + g.width <= image.width && g.top + g.height <= image.height,
              "pack_view: the box ", g.width, " x ", g.height, " at (", g.left, ", ", g.top,
              ") does not lie inside ", image.width, " x ", image.height);
  const ResizeFilter rows =
      resize_filter(g.height, g.to_height, g.window_top, g.window_height, interpolation);
  const ResizeFilter columns =
      resize_filter(g.width, g.to_width, g.window_left, g.window_width, interpolation);
  const int64_t used_rows = rows.end - rows.begin, used_columns = columns.end - columns.begin;
  PackedView packed;
  packed.changes = std::move(changes);
  ImageView& view = packed.view;
  view.row_taps = append(rows, g.window_height, packed.filters);
  view.columns = static_cast<int64_t>(packed.filters.size());
  view.column_taps = append(columns, g.window_width, packed.filters);
  view.height = static_cast<int32_t>(g.window_height);
  view.width = static_cast<int32_t>(g.window_width);
  view.top = static_cast<int32_t>(g.pad_top);
  view.left = static_cast<int32_t>(g.pad_left);
  view.rows_first = vertical_first(g.width, g.height, g.to_width, g.to_height);
  view.between_height = view.rows_first ? view.height : static_cast<int32_t>(used_rows);
  view.between_width = view.rows_first ? static_cast<int32_t>(used_columns) : view.width;
  view.flip_rows = g.flip_vertical;
  view.flip_columns = g.flip_horizontal;
  view.stride = used_columns * image.channels;
  packed.pixels.resize(static_cast<size_t>(used_rows * view.stride));
  for (int64_t y = 0; y < used_rows; ++y) {
    const int64_t row = g.top + rows.begin + y, column = g.left + columns.begin;
    std::memcpy(packed.pixels.data() + y * view.stride,
                image.pixels.data() + (row * image.width + column) * image.channels,
                static_cast<size_t>(view.stride));
  }
  return packed;
}

PackedBatch pack_batch(std::span<const PackedView> views, const Preprocessing& preprocessing,
                       int64_t channels, bool pinned) {
  size_t words = 0, pixels = 0, steps = 0;
  for (const PackedView& packed : views) {
    steps = std::max(steps, packed.changes.size());
    words += packed.filters.size();
    pixels += packed.pixels.size();
  }
  PackedBatch batch;
  batch.images.images = static_cast<int64_t>(views.size());
  batch.images.height = batch.images.width = preprocessing.crop;
  batch.images.channels = channels;
  batch.images.steps = static_cast<int64_t>(steps);
  batch.changes = aligned(views.size() * sizeof(ImageView));
  batch.filters = batch.changes + aligned(views.size() * steps * sizeof(PictureChange));
  batch.levels = batch.filters + aligned(words * sizeof(int32_t));
  const NormalisedLevels levels = normalised_levels(preprocessing, channels);
  batch.pixels = batch.levels + static_cast<size_t>(channels) * sizeof(levels[0]);
  const Shape shape{static_cast<int64_t>(batch.pixels + pixels)};
  batch.bytes = pinned ? pinned_tensor(shape, Dtype::u8) : Tensor(shape, Dtype::u8);

  uint8_t* out = batch.bytes.mutable_data<uint8_t>();
  std::memcpy(out + batch.levels, levels.data(), static_cast<size_t>(channels) * sizeof(levels[0]));
  size_t next_word = 0, next_pixel = 0;
  for (size_t i = 0; i < views.size(); ++i) {
    const PackedView& packed = views[i];
    ImageView view = packed.view;
    view.rows += static_cast<int64_t>(next_word);
    view.columns += static_cast<int64_t>(next_word);
    view.pixels = static_cast<int64_t>(next_pixel);
    view.between = static_cast<int64_t>(batch.between_bytes);
    batch.between_bytes += static_cast<size_t>(view.between_height) *
                           static_cast<size_t>(view.between_width) * static_cast<size_t>(channels);
    batch.images.most_between_rows =
        std::max<int64_t>(batch.images.most_between_rows, view.between_height);
    std::memcpy(out + i * sizeof view, &view, sizeof view);
    std::vector<PictureChange> changes = packed.changes;
    changes.resize(steps);  // with changes of nothing
    std::copy_n(reinterpret_cast<const uint8_t*>(changes.data()), steps * sizeof(PictureChange),
                out + batch.changes + i * steps * sizeof(PictureChange));
    const size_t filter_bytes = packed.filters.size() * sizeof(int32_t);
    std::memcpy(out + batch.filters + next_word * sizeof(int32_t), packed.filters.data(),
                filter_bytes);
    std::copy(packed.pixels.begin(), packed.pixels.end(), out + batch.pixels + next_pixel);
    next_word += packed.filters.size();
    next_pixel += packed.pixels.size();
  }
  return batch;
}

Tensor render(const PackedBatch& batch, const Tensor& bytes, Dtype dtype) {
  GRAFT_CHECK(bytes.defined() && bytes.dtype() == Dtype::u8 && bytes.numel() == batch.bytes.numel(),
              "render: expected the ", batch.bytes.numel(), " bytes of the batch, got ", bytes);
  GRAFT_CHECK(is_real(dtype), "render: makes f32 or bf16, not ", dtype);
  const Device device = bytes.device();
  ImageBatch images = batch.images;
  Tensor result({images.images, images.height, images.width, images.channels}, dtype, device);
  const int64_t copy = images.steps > 0 ? images.images * view_bytes(images) : 0;
  const int64_t tables = images.steps > 0 ? images.images * images.channels * 256 : 0;
  const auto between_bytes = static_cast<int64_t>(batch.between_bytes);
  Tensor working({between_bytes + 2 * copy + tables}, Dtype::u8, device);
  const auto* arrays = static_cast<const uint8_t*>(bytes.raw());
  images.views = reinterpret_cast<const ImageView*>(arrays);
  images.changes = reinterpret_cast<const PictureChange*>(arrays + batch.changes);
  images.filters = reinterpret_cast<const int32_t*>(arrays + batch.filters);
  images.levels = reinterpret_cast<const float*>(arrays + batch.levels);
  images.pixels = arrays + batch.pixels;
  images.between = static_cast<uint8_t*>(working.raw());
  images.even = images.between + between_bytes;
  images.odd = images.even + copy;
  images.tables = images.odd + copy;
  GRAFT_KERNEL(render_images, device)(images, result.mutable_reals());
  return result;
}

}  // namespace graft
