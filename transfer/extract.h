// The outputs of any layer for a collection of pictures, a batch at a time.
#pragma once

#include <functional>
#include <string>
#include <vector>

#include "transfer/features.h"

namespace graft {

// Over positions: none keeps them, avg and max leave one value a channel, cls takes the first of
// (n, positions, channels), a class token.
enum class Pooling : uint8_t { none, avg, max, cls };

// activations (n, ...), f32 or bf16, on any device -> f32 on the host. avg and max take images
// (n, h, w, c) and positions (n, p, c), and leave (n, c) as it is.
Tensor pooled(const Tensor& activations, Pooling pooling);

// Runs the network up to the layer ("": all stages, the head's inputs) over the pictures in the
// data set's order and calls visit(rows, batch) for each batch; when it returns false the rest is
// left out. Memory is that of a few batches. Returns the pictures that could not be read. Throws
// with near names when there is no such layer (tap.h).
std::vector<std::string> extract_layer(
    FeatureNetwork& network, const ImageDataset& data, const std::string& layer, Pooling pooling,
    const ExtractOptions& options,
    const std::function<bool(const Tensor& rows, const Batch& batch)>& visit);

}  // namespace graft
