// Views of a batch of 8-bit pictures: Pillow's two-pass resampling in fixed point, padding, flips,
// changes of colour and geometry, and normalisation by a table. The formulas are in kernels/image.h
// and kernels/augment.h.
//
// Layout: interleaved bytes, pictures of any sizes; NHWC result. A block makes one row of one
// picture, a thread a byte, pixel or number at a time, so that neighbours read and write side by
// side; the windows of a pass overlap in the first-level cache, as do the filters, which all rows
// or all columns of a picture share. The first launch has as many rows for each picture as the
// tallest needs; the others' blocks return at once. Where any picture is changed the views are made
// as bytes, and each step takes all of them from one copy to another: a launch makes the tables of
// changes by bytes (a block a channel, counting in shared memory), a second the pictures.
// Numerics: integers up to the table, and changes in f32 and double; this file is compiled without
// fused multiply-adds, so the bits are those of the CPU. Each element has one writer, and atomics
// only count: deterministic.
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/shared.cuh"
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
    const unsigned channel = i % channels;
    const uint8_t byte = image_byte(batch, view, blockIdx.x % batch.height, i / channels, channel);
    if constexpr (std::is_same_v<T, uint8_t>) {
      out[i] = byte;
    } else {
      out[i] = static_cast<T>(batch.levels[channel * 256 + byte]);
    }
  }
}

// A block a picture and channel, kThreads threads.
__global__ void tables_kernel(ImageBatch batch, int64_t step) {
  GRAFT_SHARED(int32_t, counts, [256]);
  const int64_t image = blockIdx.x / batch.channels, channel = blockIdx.x % batch.channels;
  const PictureChange change = batch.changes[image * batch.steps + step];
  if (!is_table(change.change)) return;
  for (unsigned v = threadIdx.x; v < 256; v += blockDim.x) counts[v] = 0;
  __syncthreads();
  const int64_t pixels = batch.height * batch.width;
  if (wants_histogram(change.change)) {
    const uint8_t* picture = views_before(batch, step) + image * view_bytes(batch);
    for (int64_t i = threadIdx.x; i < pixels; i += blockDim.x) {
      const uint8_t byte =
          table_byte(change.change, picture + i * batch.channels, batch.channels, channel);
      atomicAdd(&counts[byte], 1);
    }
  }
  __syncthreads();
  const TableRule rule = table_rule(change.change, counts, pixels);
  for (int v = static_cast<int>(threadIdx.x); v < 256; v += static_cast<int>(blockDim.x)) {
    int64_t below = 0;
    for (int darker = 0; darker < v; ++darker) below += counts[darker];
    batch.tables[int64_t{blockIdx.x} * 256 + v] = table_entry(change, rule, v, below);
  }
}

__global__ void change_kernel(ImageBatch batch, int64_t step) {
  const int64_t image = blockIdx.x / batch.height, row = blockIdx.x % batch.height;
  uint8_t* out = views_before(batch, step + 1) + int64_t{blockIdx.x} * batch.width * batch.channels;
  for (int64_t x = threadIdx.x; x < batch.width; x += blockDim.x) {
    image_changed(batch, step, image, row, x, out + x * batch.channels);
  }
}

template <class T>
__global__ void levels_kernel(T* y, const uint8_t* bytes, ImageBatch batch) {
  const auto channels = static_cast<unsigned>(batch.channels);
  const unsigned width = static_cast<unsigned>(batch.width) * channels;
  const int64_t first = int64_t{blockIdx.x} * width;
  for (unsigned i = threadIdx.x; i < width; i += blockDim.x) {
    y[first + i] = static_cast<T>(batch.levels[i % channels * 256 + bytes[first + i]]);
  }
}

}  // namespace

void render_images(const ImageBatch& batch, Reals y) {
  constexpr const char* kOp = "render_images";
  const Grid rows{batch.images * batch.height};
  launch(kOp, {batch.images * batch.most_between_rows}, 0, between_kernel, batch);
  if (batch.steps > 0) launch(kOp, rows, 0, render_kernel<uint8_t>, batch.even, batch);
  for (int64_t step = 0; step < batch.steps; ++step) {
    launch(kOp, {batch.images * batch.channels}, 0, tables_kernel, batch, step);
    launch(kOp, rows, 0, change_kernel, batch, step);
  }
  visit_real(y.dtype, [&](auto tag) {
    using T = decltype(tag);
    if (batch.steps > 0) {
      const uint8_t* last = views_before(batch, batch.steps);
      launch(kOp, rows, 0, levels_kernel<T>, y.as<T>(), last, batch);
    } else {
      launch(kOp, rows, 0, render_kernel<T>, y.as<T>(), batch);
    }
  });
}

}  // namespace graft::cuda
