// A small network over vectors instead of images: hidden layers, then a linear head. Toys and bags
// of words run through the same trainer as pictures.
#pragma once

#include <memory>
#include <vector>

#include "layers/models/zoo.h"

namespace graft {

// Takes (n, inputs) f32. Stages and modules "fc1", "fc2" ..., one a hidden layer; the head is "fc".
enum class HiddenUnits : uint8_t { relu, sigmoid };
std::unique_ptr<ImageModel> make_vector_network(int64_t inputs, const std::vector<int64_t>& hidden,
                                                int64_t classes, RngKey key,
                                                HiddenUnits units = HiddenUnits::relu);

}  // namespace graft
