// The views of a batch made where the model computes: pictures travel as they were decoded, and the
// device resizes, pads, flips, changes colours and normalises. The same bits as eval_view() or
// train_view() and normalise() give on the CPU.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "engine/data/image.h"
#include "engine/data/transform.h"
#include "engine/tensor.h"
#include "kernels/image.h"

namespace graft {

// What of a picture is needed to make a view of it: pixels, and the weights that resize them.
struct PackedView {
  ImageView view;
  std::vector<int32_t> filters;  // of the rows, then of the columns
  std::vector<uint8_t> pixels;
  std::vector<PictureChange> changes;  // of the view, in turn
};
// `geometry` is of this picture, `changes` of its view. Any thread.
PackedView pack_view(const Image& image, const ViewGeometry& geometry, Interpolation interpolation,
                     std::vector<PictureChange> changes = {});

// Packed views as one array of bytes, which is what travels.
struct PackedBatch {
  Tensor bytes;       // u8, on the CPU
  ImageBatch images;  // its sizes; where its arrays begin is below
  size_t changes = 0, filters = 0, levels = 0, pixels = 0, between_bytes = 0;
};
// Views of pictures with `channels` channels, crop x crop. With `pinned` the bytes are a
// pinned_tensor().
PackedBatch pack_batch(std::span<const PackedView> views, const Preprocessing& preprocessing,
                       int64_t channels, bool pinned);
// The batch (views, crop, crop, channels), f32 or bf16, on the device of `bytes`, which are the
// batch's own or a copy of them. Not differentiable.
Tensor render(const PackedBatch& batch, const Tensor& bytes, Dtype dtype = Dtype::f32);

}  // namespace graft
