// Views of a batch of 8-bit pictures: Pillow's two-pass resampling in fixed point, padding, flips,
// changes of colour and geometry, and normalisation by a table. The formulas are in kernels/image.h
// and kernels/augment.h.
//
// Layout: interleaved bytes, pictures of any sizes; NHWC result. Numerics: integers up to the
// table, and changes in f32 and double without fused multiply-adds, so the bits are those of
// engine/data, and of the GPU. bf16 rounds the table's number once. Threads share the rows of all
// pictures, and of changes the pictures.
#include "kernels/cpu/parallel.h"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kTaps = 8;  // about, of a byte

// Calls row(image, row) for every row of every view.
template <class Row>
void each_row(const ImageBatch& batch, const Row& row) {
  parallel_for(batch.images * batch.height, kTaps * batch.width * batch.channels,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) row(i / batch.height, i % batch.height);
               });
}

void make_tables(const ImageBatch& batch, int64_t step) {
  const int64_t channels = batch.channels, pixels = batch.height * batch.width;
  parallel_for(batch.images * channels, pixels, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const PictureChange& change = batch.changes[i / channels * batch.steps + step];
      if (!is_table(change.change)) continue;
      const uint8_t* picture = views_before(batch, step) + i / channels * view_bytes(batch);
      make_table(change, picture, pixels, channels, i % channels, batch.tables + i * 256);
    }
  });
}

}  // namespace

void render_images(const ImageBatch& batch, Reals y) {
  const int64_t channels = batch.channels;
  parallel_for(batch.images * batch.most_between_rows, kTaps * batch.width * channels,
               [&](int64_t begin, int64_t end) {
                 for (int64_t i = begin; i < end; ++i) {
                   const ImageView& view = batch.views[i / batch.most_between_rows];
                   const int64_t row = i % batch.most_between_rows;
                   if (row >= view.between_height) continue;
                   uint8_t* out =
                       batch.between + view.between + row * view.between_width * channels;
                   for (int64_t x = 0; x < view.between_width; ++x) {
                     for (int64_t c = 0; c < channels; ++c) {
                       *out++ = image_between(batch, view, row, x, c);
                     }
                   }
                 }
               });
  const auto byte = [&](int64_t image, int64_t row, int64_t x, int64_t c) {
    return image_byte(batch, batch.views[image], row, x, c);
  };
  const int64_t row_bytes = batch.width * channels;
  if (batch.steps > 0) {
    each_row(batch, [&](int64_t image, int64_t row) {
      uint8_t* out = batch.even + (image * batch.height + row) * row_bytes;
      for (int64_t x = 0; x < batch.width; ++x) {
        for (int64_t c = 0; c < channels; ++c) *out++ = byte(image, row, x, c);
      }
    });
  }
  for (int64_t step = 0; step < batch.steps; ++step) {
    make_tables(batch, step);
    each_row(batch, [&](int64_t image, int64_t row) {
      uint8_t* out = views_before(batch, step + 1) + (image * batch.height + row) * row_bytes;
      for (int64_t x = 0; x < batch.width; ++x) {
        image_changed(batch, step, image, row, x, out + x * channels);
      }
    });
  }
  const uint8_t* last = views_before(batch, batch.steps);
  visit_real(y.dtype, [&](auto tag) {
    using T = decltype(tag);
    each_row(batch, [&](int64_t image, int64_t row) {
      const int64_t first = (image * batch.height + row) * row_bytes;
      for (int64_t x = 0; x < batch.width; ++x) {
        for (int64_t c = 0; c < channels; ++c) {
          const int64_t at = first + x * channels + c;
          const uint8_t value = batch.steps > 0 ? last[at] : byte(image, row, x, c);
          y.as<T>()[at] = static_cast<T>(batch.levels[c * 256 + value]);
        }
      }
    });
  });
}

}  // namespace graft::cpu::GRAFT_ISA
