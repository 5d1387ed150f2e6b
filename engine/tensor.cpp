#include "engine/tensor.h"

#include <cstring>
#include <ostream>

#include "engine/autograd.h"
#include "engine/dispatch.h"
#include "engine/ops.h"
#include "kernels/device.h"

namespace graft {
namespace {

void copy_bytes(void* target, Device target_device, const void* source, Device source_device,
                size_t bytes) {
  if (bytes == 0) return;
  if (target_device.is_cpu() && source_device.is_cpu()) {
    std::memcpy(target, source, bytes);
  } else {
    cuda::copy(target, target_device, source, source_device, bytes);
  }
}

}  // namespace

int64_t numel_of(const Shape& shape) {
  int64_t count = 1;
  for (int64_t size : shape) {
    GRAFT_CHECK(size >= 0, "shape ", shape, ": sizes cannot be negative");
    GRAFT_CHECK(!__builtin_mul_overflow(count, size, &count), "shape ", shape,
                ": too many elements");
  }
  return count;
}

Tensor::Tensor(Shape shape, Dtype dtype, Device device)
    : shape_(std::move(shape)), numel_(numel_of(shape_)), dtype_(dtype) {
  size_t bytes = 0;
  GRAFT_CHECK(!__builtin_mul_overflow(static_cast<size_t>(numel_), size_of(dtype), &bytes),
              "shape ", shape_, ": too many elements");
  storage_ = std::make_shared<Storage>(bytes, device);
}

Tensor::Tensor(std::shared_ptr<Storage> storage, int64_t offset, Shape shape, Dtype dtype)
    : storage_(std::move(storage)),
      offset_(offset),
      shape_(std::move(shape)),
      numel_(numel_of(shape_)),
      dtype_(dtype) {
  const size_t end = static_cast<size_t>(offset_ + numel_) * size_of(dtype_);
  GRAFT_CHECK(offset_ >= 0 && end <= storage_->bytes(), "tensor ", shape_, " at element ", offset_,
              " does not fit into a storage of ", storage_->bytes(), " bytes");
}

Tensor Tensor::zeros(Shape shape, Dtype dtype, Device device) {
  Tensor result(std::move(shape), dtype, device);
  if (result.bytes() == 0) return result;
  if (device.is_cpu()) {
    std::memset(result.raw(), 0, result.bytes());
  } else {
    cuda::fill_bytes(result.raw(), 0, result.bytes(), device.index);
  }
  return result;
}

Tensor Tensor::full(Shape shape, float value, Device device) {
  Tensor result(std::move(shape), Dtype::f32, device);
  result.fill(value);
  return result;
}

template <class T>
Tensor Tensor::of(const std::vector<T>& values, Shape shape) {
  Tensor result(std::move(shape), dtype_of<T>());
  GRAFT_CHECK(result.numel() == static_cast<int64_t>(values.size()), "Tensor::of: shape ",
              result.shape(), " wants ", result.numel(), " values, got ", values.size());
  copy_bytes(result.raw(), kCpu, values.data(), kCpu, result.bytes());
  return result;
}

int64_t Tensor::dim(int64_t axis) const {
  const int64_t index = axis < 0 ? axis + rank() : axis;
  GRAFT_CHECK(index >= 0 && index < rank(), "dim: axis ", axis, " is outside a shape of ", shape_);
  return shape_[static_cast<size_t>(index)];
}

void* Tensor::raw() const {
  GRAFT_CHECK(defined(), "tensor: used before it was given a value");
  return static_cast<char*>(storage_->data()) + static_cast<size_t>(offset_) * size_of(dtype_);
}

ConstReals Tensor::reals() const {
  if (!defined()) return {};
  GRAFT_CHECK(is_real(dtype_), "tensor: expected f32 or bf16 elements, this one has ", *this);
  return {raw(), dtype_};
}

Reals Tensor::mutable_reals() {
  if (!defined()) return {};
  const ConstReals elements = reals();
  storage_->bump_version();
  return {const_cast<void*>(elements.data), elements.dtype};
}

void Tensor::check_dtype(Dtype wanted) const {
  GRAFT_CHECK(defined(), "tensor: used before it was given a value");
  GRAFT_CHECK(dtype_ == wanted, "tensor: expected ", wanted, " elements, this one has ", *this);
}

template <class T>
std::vector<T> Tensor::to_vector() const {
  check_dtype(dtype_of<T>());
  std::vector<T> values(static_cast<size_t>(numel_));
  copy_bytes(values.data(), kCpu, raw(), device(), bytes());
  return values;
}

float Tensor::item() const {
  GRAFT_CHECK(numel_ == 1 && defined(), "item: expected one element, got ", *this);
  return dtype_ == Dtype::f32 ? to_vector<float>()[0] : cast(*this, Dtype::f32).item();
}

Tensor Tensor::to(Device target) const {
  if (target == device()) return *this;
  Tensor result(shape_, dtype_, target);
  copy_bytes(result.raw(), target, raw(), device(), bytes());
  return result;
}

Tensor Tensor::clone() const {
  Tensor result(shape_, dtype_, device());
  copy_bytes(result.raw(), device(), raw(), device(), bytes());
  return result;
}

void Tensor::copy_from(const Tensor& source) {
  GRAFT_CHECK(source.defined() && shape_ == source.shape_ && dtype_ == source.dtype_,
              "copy_from: expected ", *this, ", got ", source);
  storage_->bump_version();
  copy_bytes(raw(), device(), source.raw(), source.device(), bytes());
}

void Tensor::fill(float value) {
  check_dtype(Dtype::f32);
  storage_->bump_version();
  GRAFT_KERNEL(fill, device())(static_cast<float*>(raw()), value, numel_);
}

Tensor Tensor::detach() const {
  Tensor result = *this;
  result.node_ = nullptr;
  return result;
}

Tensor& Tensor::set_requires_grad(bool on) {
  GRAFT_CHECK(is_leaf(), "set_requires_grad: this tensor is the result of ", node_->name,
              "; only leaves can be marked (use detach() to cut the graph)");
  if (on && node_ == nullptr) {
    GRAFT_CHECK(dtype_ == Dtype::f32, "set_requires_grad: expected f32, got ", *this);
    node_ = std::make_shared<Node>();
    node_->leaf = true;
  } else if (!on) {
    node_ = nullptr;
  }
  return *this;
}

bool Tensor::requires_grad() const { return node_ != nullptr; }
bool Tensor::is_leaf() const { return node_ == nullptr || node_->leaf; }
Tensor Tensor::grad() const { return node_ != nullptr ? node_->grad : Tensor(); }

void Tensor::set_grad(Tensor grad) {
  if (node_ == nullptr) {
    GRAFT_CHECK(!grad.defined(), "set_grad: this tensor wants no gradient");
    return;
  }
  GRAFT_CHECK(!grad.defined() || grad.shape() == shape_, "set_grad: expected shape ", shape_,
              ", got ", grad.shape());
  node_->grad = std::move(grad);
}

Tensor empty_like(const Tensor& other) {
  return Tensor(other.shape(), other.dtype(), other.device());
}
Tensor zeros_like(const Tensor& other) {
  return Tensor::zeros(other.shape(), other.dtype(), other.device());
}

Tensor view_as(const Tensor& x, Shape shape) {
  GRAFT_CHECK(x.defined() && numel_of(shape) == x.numel(), "view: ", x, " cannot take the shape ",
              shape);
  return Tensor(x.storage(), x.offset(), std::move(shape), x.dtype());
}

Tensor narrow(const Tensor& x, int64_t start, int64_t count) {
  GRAFT_CHECK(
      x.rank() > 0 && start >= 0 && count >= 0 && start <= x.dim(0) && count <= x.dim(0) - start,
      "narrow: rows ", start, " to ", start, " + ", count, " are outside ", x);
  Shape shape = x.shape();
  shape[0] = count;
  const int64_t row = x.dim(0) == 0 ? 0 : x.numel() / x.dim(0);
  return Tensor(x.storage(), x.offset() + start * row, std::move(shape), x.dtype());
}

std::ostream& operator<<(std::ostream& out, const Tensor& tensor) {
  if (!tensor.defined()) return out << "an undefined tensor";
  return out << tensor.dtype() << tensor.shape();
}

template Tensor Tensor::of<float>(const std::vector<float>&, Shape);
template Tensor Tensor::of<double>(const std::vector<double>&, Shape);
template Tensor Tensor::of<int64_t>(const std::vector<int64_t>&, Shape);
template Tensor Tensor::of<int32_t>(const std::vector<int32_t>&, Shape);
template Tensor Tensor::of<uint8_t>(const std::vector<uint8_t>&, Shape);
template std::vector<float> Tensor::to_vector() const;
template std::vector<double> Tensor::to_vector() const;
template std::vector<int64_t> Tensor::to_vector() const;
template std::vector<int32_t> Tensor::to_vector() const;
template std::vector<uint8_t> Tensor::to_vector() const;

}  // namespace graft
