// The op table: the one way an op is tested.
//
// A row is one call of an op together with a reference in double precision. Running it proves that
//   - every element of the result agrees with the reference (which must use another algorithm);
//   - our f32 gradient agrees with the reference's own numeric gradient, under a loss of random
//     weights, so that symmetric mistakes do not cancel; also when only one input wants a gradient;
//   - the result has the right shape and type, no element is left unwritten (fresh memory is filled
//     with NaN), nothing is written past an end (guard bytes) and no input is changed;
//   - results and gradients are the same bits on every run and with any number of threads;
//   - without recording the values are the same and no node is recorded;
//   - when memory runs out inside the op, the message names it;
//   - the same with bf16 inputs (but for those marked parameter()): the result has that type and is
//     off by its own rounding only, because sums are f32.
//
// Adding a row to the op_table (tests/ops_<family>_test.cpp):
//
//   TEST_CASE("relu") {
//     op_row("relu", {real({3, 5}).away_from({0})},
//            [](const Tensors& in) { return relu(in[0]); },
//            [](const Arrays& in) { return map(in[0], [](double x) { return std::max(x, 0.0); });
//            }, kPointwise);
//     op_error("relu", "expected an f32 tensor", [] { relu(Tensor()); });
//   }
//
// Every op has rows for: an empty tensor, one element, odd sizes, more than one thread's share
// (> 2 * 16384 elements of work), broadcasting where it exists, extreme values (Options::gradients
// off), and its errors. op_table_meta_test.cpp fails when an op of engine/ops.h has no op_row or no
// op_error; a local function may wrap them if its name holds "row" or "error" and its first
// argument is the op's name.
#pragma once

#include <cstdint>
#include <doctest/doctest.h>
#include <functional>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "engine/tensor.h"
#include "tests/support/test_device.h"

namespace graft::test {

// A plain array of numbers, all as double (indices are small enough to be exact).
struct Array {
  Shape shape;
  std::vector<double> values;
  Dtype dtype = Dtype::f32;  // what the op's result must have

  explicit Array(Shape shape_ = {}, double fill = 0, Dtype dtype_ = Dtype::f32);
  Array(Shape shape_, std::vector<double> values_, Dtype dtype_ = Dtype::f32);
  int64_t size() const { return static_cast<int64_t>(values.size()); }
  double& at(const Shape& index) { return values[flat(index)]; }
  double at(const Shape& index) const { return values[flat(index)]; }
  size_t flat(const Shape& index) const;
};
// The index of flat element `element` in a shape.
Shape unravel(int64_t element, const Shape& shape);
Array map(const Array& x, const std::function<double(double)>& f);
// f over two arrays with NumPy broadcasting.
Array zip(const Array& a, const Array& b, const std::function<double(double, double)>& f);

using Tensors = std::vector<Tensor>;
using Arrays = std::vector<Array>;
using Call = std::function<Tensor(const Tensors&)>;
using Reference = std::function<Array(const Arrays&)>;

// One input of a row. Random inputs are made from the row's seed.
struct Input {
  Shape shape;
  Dtype dtype = Dtype::f32;
  double low = -2, high = 2;
  std::vector<double> values;  // when not empty: these instead of random ones
  std::vector<double> kinks;   // random values stay `margin` away from these
  double margin = 0.05;
  bool differentiable = true;
  bool is_parameter = false;

  Input away_from(std::vector<double> points, double distance = 0.05) const;
  // Not differentiated (a target, a mask).
  Input frozen() const;
  // Stays f32 where the other inputs are bf16.
  Input parameter() const;
};
Input real(Shape shape, double low = -2, double high = 2);  // uniform
Input index(Shape shape, int64_t below);                    // i64, uniform in 0..below-1
Input given(std::vector<double> values, Shape shape, Dtype dtype = Dtype::f32);
Input given(std::vector<double> values);  // rank 1
// A shuffled grid: all values differ by at least 0.01, so that a maximum is unique.
Input distinct(Shape shape);

// Per element: |ours - reference| <= atol + rtol |reference|.
struct Tolerance {
  double rtol = 2e-6, atol = 2e-7;
  double grad_rtol = 1e-5, grad_atol = 2e-6;
};
inline constexpr Tolerance kExact{0, 0, 1e-6, 1e-6};  // moves numbers, computes none
inline constexpr Tolerance kPointwise{};
// Sums of `length` products of numbers around 1: rounding grows like a random walk.
Tolerance accumulating(int64_t length);

struct Options {
  Tolerance tolerance;
  bool gradients = true;           // off for extreme values and for ops without derivative
  bool thread_independent = true;  // off only where a library splits its reduction by threads
  bool bf16 = true;                // off for ops that take f32 only, or say nothing more in bf16
  uint64_t seed = 1;
  Options() = default;
  Options(const Tolerance& tolerance_) : tolerance(tolerance_) {}  // NOLINT: meant to convert
  Options without_gradients() const;
  Options with_seed(uint64_t seed_) const;
  Options with_threads_mattering() const;
  Options without_bf16() const;
};

// Runs a row and returns what is wrong with it, one line each; empty when the op is right.
std::vector<std::string> run_row(const std::string& op, const std::vector<Input>& inputs,
                                 const Call& call, const Reference& reference,
                                 const Options& options = {});
// The same as a doctest assertion.
void op_row(const std::string& op, const std::vector<Input>& inputs, const Call& call,
            const Reference& reference, const Options& options = {});
// The call must throw Error with a message that starts with the op's name and contains `message`.
void op_error(const std::string& op, const std::string& message, const std::function<void()>& call);

// Reads any tensor of a type with to_vector() as doubles.
Array to_array(const Tensor& tensor);
// What differs between a result and its reference ("" when nothing does).
std::string compare(const Array& ours, const Array& reference, double rtol, double atol);

}  // namespace graft::test
