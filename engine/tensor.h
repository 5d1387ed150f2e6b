// Tensor: a value type over shared storage; contiguous, row-major, at most one autograd node.
// Images are NHWC and filters OHWI.
#pragma once

#include <cstdint>
#include <initializer_list>
#include <memory>
#include <span>
#include <vector>

#include "engine/storage.h"
#include "kernels/error.h"
#include "kernels/types.h"

namespace graft {

using Shape = std::vector<int64_t>;

int64_t numel_of(const Shape& shape);

struct Node;  // engine/autograd.h

template <class T>
constexpr Dtype dtype_of();
template <>
constexpr Dtype dtype_of<float>() {
  return Dtype::f32;
}
template <>
constexpr Dtype dtype_of<double>() {
  return Dtype::f64;
}
template <>
constexpr Dtype dtype_of<int64_t>() {
  return Dtype::i64;
}
template <>
constexpr Dtype dtype_of<int32_t>() {
  return Dtype::i32;
}
template <>
constexpr Dtype dtype_of<int16_t>() {
  return Dtype::i16;
}
template <>
constexpr Dtype dtype_of<int8_t>() {
  return Dtype::i8;
}
template <>
constexpr Dtype dtype_of<uint8_t>() {
  return Dtype::u8;
}

class Tensor {
 public:
  // An undefined tensor: no shape, no storage.
  Tensor() = default;
  // Uninitialised elements.
  explicit Tensor(Shape shape, Dtype dtype = Dtype::f32, Device device = kCpu);
  // A view of existing storage, `offset` in elements.
  Tensor(std::shared_ptr<Storage> storage, int64_t offset, Shape shape, Dtype dtype);

  static Tensor zeros(Shape shape, Dtype dtype = Dtype::f32, Device device = kCpu);
  static Tensor full(Shape shape, float value, Device device = kCpu);
  static Tensor scalar(float value) { return full({}, value); }
  template <class T>
  static Tensor of(const std::vector<T>& values, Shape shape);
  template <class T>
  static Tensor of(const std::vector<T>& values) {
    return of(values, {static_cast<int64_t>(values.size())});
  }

  bool defined() const { return storage_ != nullptr; }
  explicit operator bool() const = delete;  // ask defined() or item()

  const Shape& shape() const { return shape_; }
  int64_t rank() const { return static_cast<int64_t>(shape_.size()); }
  int64_t dim(int64_t axis) const;  // negative axes count from the end
  int64_t numel() const { return numel_; }
  Dtype dtype() const { return dtype_; }
  Device device() const { return storage_ ? storage_->device() : kCpu; }
  size_t bytes() const { return static_cast<size_t>(numel_) * size_of(dtype_); }
  const std::shared_ptr<Storage>& storage() const { return storage_; }
  int64_t offset() const { return offset_; }

  // Elements on the tensor's device. Throws when T is not the dtype.
  template <class T>
  const T* data() const {
    check_dtype(dtype_of<T>());
    return static_cast<const T*>(raw());
  }
  // For writing: counts as an in-place change.
  template <class T>
  T* mutable_data() {
    check_dtype(dtype_of<T>());
    storage_->bump_version();
    return static_cast<T*>(raw());
  }
  void* raw() const;
  // The same for kernels that take f32 and bf16; throws when the elements are neither. An undefined
  // tensor gives null.
  ConstReals reals() const;
  Reals mutable_reals();

  // The elements on the host.
  template <class T>
  std::vector<T> to_vector() const;
  // The only element of a one-element tensor, f32 or bf16.
  float item() const;

  // A copy on another device; the same tensor where it is there already. Not differentiable.
  Tensor to(Device device) const;
  // A copy with its own storage, outside the graph.
  Tensor clone() const;
  // Overwrites the elements with those of a tensor of the same shape and dtype; in place.
  void copy_from(const Tensor& source);
  void fill(float value);

  // --- autograd
  // The same values outside the graph; shares storage.
  Tensor detach() const;
  // Marks a leaf (a parameter); its gradient gathers in grad().
  Tensor& set_requires_grad(bool on = true);
  // True for leaves that want a gradient and for everything computed from one.
  bool requires_grad() const;
  bool is_leaf() const;
  // Gradient of a leaf; undefined before the first backward.
  Tensor grad() const;
  void set_grad(Tensor grad);
  void zero_grad() { set_grad(Tensor()); }
  const std::shared_ptr<Node>& node() const { return node_; }
  void set_node(std::shared_ptr<Node> node) { node_ = std::move(node); }

 private:
  void check_dtype(Dtype wanted) const;

  std::shared_ptr<Storage> storage_;
  int64_t offset_ = 0;
  Shape shape_;
  int64_t numel_ = 0;
  Dtype dtype_ = Dtype::f32;
  std::shared_ptr<Node> node_;
};

// Uninitialised tensor with the shape, dtype and device of another.
Tensor empty_like(const Tensor& other);
Tensor zeros_like(const Tensor& other);
// A view of the same elements with another shape, outside the graph (ops.h has the recorded form).
Tensor view_as(const Tensor& x, Shape shape);
// A view of `count` entries along dimension 0, outside the graph.
Tensor narrow(const Tensor& x, int64_t start, int64_t count);
// A short description for messages: f32[2, 3].
std::ostream& operator<<(std::ostream& out, const Tensor& tensor);

extern template Tensor Tensor::of<float>(const std::vector<float>&, Shape);
extern template Tensor Tensor::of<int64_t>(const std::vector<int64_t>&, Shape);
extern template Tensor Tensor::of<int32_t>(const std::vector<int32_t>&, Shape);
extern template Tensor Tensor::of<uint8_t>(const std::vector<uint8_t>&, Shape);
extern template Tensor Tensor::of<double>(const std::vector<double>&, Shape);

}  // namespace graft
