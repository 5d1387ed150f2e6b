// The readers behind read_weights, over bytes that are already there: a mapping, or a buffer of a
// test that wants every access beyond the end to be noticed.
#pragma once

#include "engine/io/file.h"
#include "engine/io/weights.h"

namespace graft {

WeightFile parse_weights(const FileBytes& file);
WeightFile parse_safetensors(const FileBytes& file);
WeightFile parse_torch(const FileBytes& file);

// A tensor over bytes of a file: a view when they are aligned for the dtype, otherwise a copy.
// `data` must hold as many bytes as shape and dtype say.
Tensor tensor_over(uint8_t* data, const std::shared_ptr<void>& owner, Shape shape, Dtype dtype);

// Product of the sizes times bytes of an element; false when it does not fit.
bool checked_bytes(const Shape& shape, uint64_t item_bytes, uint64_t* bytes);

}  // namespace graft
