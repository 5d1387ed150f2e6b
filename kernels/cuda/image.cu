// Views of a batch of 8-bit pictures: Pillow's two-pass resampling in fixed point, padding, flips
// and normalisation by a table. The formulas are in kernels/image.h.
//
// Layout: interleaved bytes, pictures of any sizes; NHWC result. A block makes one row of one
// picture, a thread a byte (or number) at a time, so that neighbours read and write side by side;
// the windows of a pass overlap in the first-level cache, as do the filters, which all rows or all
// columns of a picture share. The first launch has as many rows for each picture as the tallest
// needs; the others' blocks return at once. Numerics: integers up to the table, so the bits are
// those of the CPU. Each element has one writer: deterministic.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

__global__ void between_kernel(ImageBatch batch) {
  const ImageView view = batch.views[blockIdx.x / batch.most_between_rows];
  const int64_t row = blockIdx.x % batch.most_between_rows;
  if (row >= view.between_height) return;
  const auto channels = static_cast<unsigned>(batch.channels);
  const unsigned width = static_cast<unsigned>(view.between_width) * channels;
  uint8_t* out = batch.between + view.between + row * width;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    out[i] = image_between(batch, view, row, i / channels, i % channels);
  }
}

template <class T>
__global__ void render_kernel(T* y, ImageBatch batch) {
  const ImageView view = batch.views[blockIdx.x / batch.height];
  const auto channels = static_cast<unsigned>(batch.channels);
  const unsigned width = static_cast<unsigned>(batch.width) * channels;
  T* out = y + int64_t{blockIdx.x} * width;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    out[i] = static_cast<T>(
        image_value(batch, view, blockIdx.x % batch.height, i / channels, i % channels));
  }
}

}  // namespace

void render_images(const ImageBatch& batch, Reals y) {
  constexpr const char* kOp = "render_images";
  launch(kOp, {batch.images * batch.most_between_rows}, 0, between_kernel, batch);
  visit_real(y.dtype, [&](auto tag) {
    using T = decltype(tag);
    launch(kOp, {batch.images * batch.height}, 0, render_kernel<T>, y.as<T>(), batch);
  });
}

}  // namespace graft::cuda
