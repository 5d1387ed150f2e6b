// The op table's numbers: plain arrays, inputs, and the comparison of two arrays.
#include <algorithm>
#include <cmath>
#include <limits>

#include "engine/rng.h"
#include "kernels/error.h"
#include "tests/support/op_table.h"

namespace graft::test {

Array::Array(Shape shape_, double fill, Dtype dtype_)
    : shape(std::move(shape_)), values(static_cast<size_t>(numel_of(shape)), fill), dtype(dtype_) {}
Array::Array(Shape shape_, std::vector<double> values_, Dtype dtype_)
    : shape(std::move(shape_)), values(std::move(values_)), dtype(dtype_) {
  GRAFT_CHECK(static_cast<int64_t>(values.size()) == numel_of(shape), "Array: shape ", shape,
              " wants ", numel_of(shape), " values, got ", values.size());
}

size_t Array::flat(const Shape& index) const {
  GRAFT_CHECK(index.size() == shape.size(), "Array: index ", index, " into a shape of ", shape);
  int64_t element = 0;
  for (size_t d = 0; d < shape.size(); ++d) {
    GRAFT_CHECK(index[d] >= 0 && index[d] < shape[d], "Array: index ", index,
                " is outside a shape of ", shape);
    element = element * shape[d] + index[d];
  }
  return static_cast<size_t>(element);
}

Shape unravel(int64_t element, const Shape& shape) {
  Shape index(shape.size());
  for (size_t d = shape.size(); d-- > 0;) {
    index[d] = element % shape[d];
    element /= shape[d];
  }
  return index;
}

Array map(const Array& x, const std::function<double(double)>& f) {
  Array y = x;
  for (double& value : y.values) value = f(value);
  return y;
}

Array zip(const Array& a, const Array& b, const std::function<double(double, double)>& f) {
  const size_t rank = std::max(a.shape.size(), b.shape.size());
  const auto size_at = [&](const Array& x, size_t d) {
    const size_t missing = rank - x.shape.size();
    return d < missing ? int64_t{1} : x.shape[d - missing];
  };
  Shape shape(rank);
  for (size_t d = 0; d < rank; ++d) {
    shape[d] = size_at(a, d) == 1 ? size_at(b, d) : size_at(a, d);
  }
  const auto pick = [&](const Array& x, int64_t element) {
    int64_t at = 0, stride = 1;
    for (size_t d = rank; d-- > 0;) {
      at += element % shape[d] % size_at(x, d) * stride;
      element /= shape[d];
      stride *= size_at(x, d);
    }
    return x.values[static_cast<size_t>(at)];
  };
  Array out(shape);
  for (int64_t i = 0; i < out.size(); ++i) {
    out.values[static_cast<size_t>(i)] = f(pick(a, i), pick(b, i));
  }
  return out;
}

Input Input::away_from(std::vector<double> points, double distance) const {
  Input moved = *this;
  moved.kinks = std::move(points);
  moved.margin = distance;
  return moved;
}
Input Input::parameter() const {
  Input copy = *this;
  copy.is_parameter = true;
  return copy;
}
Input Input::frozen() const {
  Input copy = *this;
  copy.differentiable = false;
  return copy;
}
Input real(Shape shape, double low, double high) {
  Input input;
  input.shape = std::move(shape);
  input.low = low;
  input.high = high;
  return input;
}
Input index(Shape shape, int64_t below) {
  Input input = real(std::move(shape), 0, static_cast<double>(below));
  input.dtype = Dtype::i64;
  return input;
}
Input given(std::vector<double> values, Shape shape, Dtype dtype) {
  Input input = real(std::move(shape));
  input.values = std::move(values);
  input.dtype = dtype;
  return input;
}
Input given(std::vector<double> values) {
  const auto size = static_cast<int64_t>(values.size());
  return given(std::move(values), {size});
}
Input distinct(Shape shape) {
  const int64_t n = numel_of(shape);
  std::vector<double> values;
  for (int64_t place : permutation(n, {7, 0, 0})) {
    values.push_back(
        static_cast<double>(static_cast<float>(0.01 * static_cast<double>(place - n / 2))));
  }
  return given(std::move(values), std::move(shape));
}

Array to_array(const Tensor& tensor) {
  Array array(tensor.shape(), 0.0, tensor.dtype());
  const auto read = [&]<class T>(T) {
    const std::vector<T> values = tensor.to_vector<T>();
    std::transform(values.begin(), values.end(), array.values.begin(),
                   [](T value) { return static_cast<double>(value); });
  };
  switch (tensor.dtype()) {
    case Dtype::f32:
      read(float{});
      break;
    case Dtype::bf16:
      array.values = to_array(cast(tensor, Dtype::f32)).values;
      break;
    case Dtype::f64:
      read(double{});
      break;
    case Dtype::i64:
      read(int64_t{});
      break;
    case Dtype::i32:
      read(int32_t{});
      break;
    case Dtype::u8:
      read(uint8_t{});
      break;
    default:
      fail("op_table: cannot read a tensor of ", tensor.dtype());
  }
  return array;
}

std::string compare(const Array& ours, const Array& reference, double rtol, double atol) {
  if (ours.shape != reference.shape) {
    return text("shape ", ours.shape, ", the reference has ", reference.shape);
  }
  if (ours.dtype != reference.dtype) {
    return text("type ", ours.dtype, ", the reference has ", reference.dtype);
  }
  // Rounds to the next float, or to infinity.
  constexpr double kLargest = 0x1.ffffffp+127;
  for (size_t i = 0; i < ours.values.size(); ++i) {
    const double a = ours.values[i];
    double b = reference.values[i];
    if (reference.dtype == Dtype::f32 && std::fabs(b) >= kLargest) {
      b = std::copysign(std::numeric_limits<double>::infinity(), b);
    }
    if (a == b || (std::isnan(a) && std::isnan(b))) continue;
    if (std::isfinite(a) && std::isfinite(b) && std::fabs(a - b) <= atol + rtol * std::fabs(b)) {
      continue;
    }
    std::ostringstream line;
    line.precision(9);
    line << "element " << unravel(static_cast<int64_t>(i), ours.shape) << " is " << a
         << ", the reference has " << b;
    return line.str();
  }
  return "";
}

}  // namespace graft::test
