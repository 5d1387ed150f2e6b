// Views of a batch of 8-bit pictures: Pillow's two-pass resampling in fixed point, padding, flips
// and normalisation by a table. The formulas are in kernels/image.h.
//
// Layout: interleaved bytes, pictures of any sizes; NHWC result. Numerics: integers up to the
// table, so the bits are those of engine/data/resize.cpp, and of the GPU. bf16 rounds the table's
// number once. Threads share the rows of all pictures.
#include "kernels/cpu/parallel.h"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {

void render_images(const ImageBatch& batch, Reals y) {
  const int64_t channels = batch.channels;
  constexpr int64_t kTaps = 8;  // about, of a byte
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
  visit_real(y.dtype, [&](auto tag) {
    using T = decltype(tag);
    parallel_for(batch.images * batch.height, kTaps * batch.width * channels,
                 [&](int64_t begin, int64_t end) {
                   T* out = y.as<T>() + begin * batch.width * channels;
                   for (int64_t i = begin; i < end; ++i) {
                     const ImageView& view = batch.views[i / batch.height];
                     for (int64_t x = 0; x < batch.width; ++x) {
                       for (int64_t c = 0; c < channels; ++c) {
                         *out++ = static_cast<T>(image_value(batch, view, i % batch.height, x, c));
                       }
                     }
                   }
                 });
  });
}

}  // namespace graft::cpu::GRAFT_ISA
