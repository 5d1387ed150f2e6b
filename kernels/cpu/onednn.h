// oneDNN's engine, streams, errors and caches, in one place for convolution and matrix products.
#pragma once

#include <array>
#include <functional>
#include <oneapi/dnnl/dnnl.hpp>
#include <optional>

#include "kernels/error.h"
#include "kernels/plan.h"

namespace graft::cpu::onednn {

using Memory = dnnl::memory;
using Layout = dnnl::memory::desc;

const dnnl::engine& engine();
// One stream a thread.
dnnl::stream& stream();
// A description without memory is undefined behaviour to execute with; null pointers are not.
Memory wrap(const Layout& layout, const void* data);

// Runs body; a library error becomes an Error that names the op and the shapes.
template <class Body, class... Context>
auto checked(const char* op, const Body& body, const Context&... context) {
  try {
    return body();
  } catch (const dnnl::error& error) {
    fail(op, ": oneDNN failed with status ", static_cast<int>(error.status), " (", error.message,
         ")", context...);
  }
}

// Everything needed to execute one planned operation. Which members are set depends on the
// operation.
struct Operation {
  dnnl::primitive primitive;
  Layout source, weight, target, bias, scratch;
  // Backward-weights: the library's layout of the result, and the way back to ours. `reorder` is
  // empty when they are the same. The intermediate lies behind the scratchpad.
  Layout plain_weight;
  dnnl::primitive reorder;
  size_t intermediate_offset = 0;
  bool as_product = false;  // a 1x1 backward-data that runs as a matrix product
  MatmulShape shape{};      // of a product
  // Where bf16 arrays are computed with in f32: where behind the scratchpad their f32 copies lie.
  std::optional<size_t> source_copy, weight_copy, target_copy;
};

// Whether this machine has instructions for products of bf16 (AVX512-BF16 or AMX). Without, they
// are products of f32 copies, and results are rounded as theirs are.
bool has_bf16();
// The element type that arrays of a type are computed with.
Memory::data_type computed_as(Dtype dtype);

// Plans an f32 copy of an array.
std::optional<size_t> copy_of(const Layout& layout, size_t& scratch_bytes);
// An array as the operation reads it.
const void* widened(const Layout& layout, const void* data, const std::optional<size_t>& copy,
                    void* scratch);
// Where the operation writes an array, and what puts it in its place.
void* wide_target(void* data, const std::optional<size_t>& copy, void* scratch);
void narrow(void* data, const Layout& layout, const std::optional<size_t>& copy, void* scratch);

// A key holds everything that the making of an operation depends on.
using Key = std::array<int64_t, 24>;
LibraryPlan cached(Key key, const std::function<LibraryPlan()>& make);

inline const Operation& operation(const LibraryPlan& plan) {
  return *static_cast<const Operation*>(plan.primitive.get());
}

// The number of the pair (plain layout, packed layout): 0 when they are equal.
int packing_of(const Layout& plain, const Layout& packed);

// The plan of an operation that reads `plain` weights in operation.weight's layout. The copies that
// are named get a place.
struct Copies {
  bool source = false, weight = false, target = false;
};
LibraryPlan plan_of(Operation operation, const Layout& plain, const Copies& copies);
// A product of row-major matrices: operation.source is a, .weight is b, .target the result.
Operation product(const MatmulShape& shape, Layout& plain_b);
Copies copies_of(const MatmulShape& shape);

inline dnnl::primitive_attr user_scratchpad() {
  dnnl::primitive_attr attributes;
  attributes.set_scratchpad_mode(dnnl::scratchpad_mode::user);
  return attributes;
}

}  // namespace graft::cpu::onednn
