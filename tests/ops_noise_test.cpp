// Dropout and drop path: the mask against Philox words taken one by one, and its statistics.
#include <cmath>
#include <doctest/doctest.h>
#include <limits>
#include <omp.h>

#include "kernels/philox.h"
#include "tests/support/op_table.h"

namespace graft::test {
namespace {

constexpr RngKey kKey{42, 7, 3};

Array masked(const Array& x, double probability, RngKey key, int64_t width) {
  Array y = x;
  for (int64_t i = 0; i < x.size(); ++i) {
    const uint32_t word = philox_word(key, static_cast<uint64_t>(i / width));
    const bool kept = static_cast<double>(word >> 8) / 16777216.0 >= probability;
    y.values[static_cast<size_t>(i)] *= kept ? 1 / (1 - probability) : 0;
  }
  return y;
}

void dropout_row(const Shape& shape, float probability) {
  op_row(
      "dropout", {real(shape)},
      [=](const Tensors& in) { return dropout(in[0], probability, true, kKey); },
      [=](const Arrays& in) { return masked(in[0], probability, kKey, 1); });
}

void drop_path_row(const Shape& shape, float probability) {
  op_row(
      "drop_path", {real(shape)},
      [=](const Tensors& in) { return drop_path(in[0], probability, true, kKey); },
      [=](const Arrays& in) {
        return masked(in[0], probability, kKey, std::max<int64_t>(1, in[0].size() / shape[0]));
      });
}

}  // namespace

TEST_CASE("dropout and drop_path follow the key's words") {
  for (float p : {0.1f, 0.5f, 0.3f, 0.9999f}) {
    dropout_row({3, 7}, p);
    dropout_row({64}, p);
    drop_path_row({5, 2, 3}, p);
  }
  dropout_row({0}, 0.5f);
  dropout_row({}, 0.5f);
  dropout_row({40001}, 0.25f);
  drop_path_row({9}, 0.5f);
  drop_path_row({3, 0}, 0.5f);
  drop_path_row({50, 1000}, 0.5f);
}

TEST_CASE("dropout and drop_path do nothing in evaluation and at 0, and all at 1") {
  const auto same = [](const Arrays& in) { return in[0]; };
  const auto zero = [](const Arrays& in) { return Array(in[0].shape, 0.0); };
  op_row(
      "dropout", {real({70})}, [](const Tensors& in) { return dropout(in[0], 0.5f, false, kKey); },
      same, kExact);
  op_row(
      "dropout", {real({70})}, [](const Tensors& in) { return dropout(in[0], 0, true, kKey); },
      same, kExact);
  op_row(
      "dropout", {real({70})}, [](const Tensors& in) { return dropout(in[0], 1, true, kKey); },
      zero, kExact);
  op_row(
      "drop_path", {real({7, 3})},
      [](const Tensors& in) { return drop_path(in[0], 0.5f, false, kKey); }, same, kExact);
  op_row(
      "drop_path", {real({7, 3})},
      [](const Tensors& in) { return drop_path(in[0], 0, true, kKey); }, same, kExact);
  op_row(
      "drop_path", {real({7, 3})},
      [](const Tensors& in) { return drop_path(in[0], 1, true, kKey); }, zero, kExact);
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  op_row(
      "dropout", {given({kInfinity, -kInfinity, NAN})},
      [](const Tensors& in) { return dropout(in[0], 1, true, kKey); }, zero,
      Options(kExact).without_gradients());
}

TEST_CASE("dropout keeps the share it was asked to, and the mean") {
  constexpr int64_t kCount = 1 << 20;
  for (float p : {0.1f, 0.5f, 0.8f}) {
    const std::vector<float> y =
        dropout(Tensor::full({kCount}, 1.0f), p, true, kKey).to_vector<float>();
    double kept = 0, sum = 0;
    for (float v : y) {
      kept += v != 0 ? 1 : 0;
      sum += v;
    }
    // Four standard deviations.
    const double limit = 4 * std::sqrt(p * (1 - p) / kCount);
    CHECK(std::fabs(kept / kCount - (1 - p)) < limit);
    CHECK(std::fabs(sum / kCount - 1) < limit / (1 - p));
  }
}

TEST_CASE("dropout repeats the mask of its key in the backward pass, and only of its key") {
  Tensor x = Tensor::full({1000}, 1.0f);
  x.set_requires_grad();
  const Tensor y = dropout(x, 0.4f, true, kKey);
  backward(y, Tensor::full({1000}, 1.0f));
  CHECK(x.grad().to_vector<float>() == y.to_vector<float>());
  CHECK(dropout(x, 0.4f, true, kKey).to_vector<float>() == y.to_vector<float>());
  for (RngKey other : {RngKey{43, 7, 3}, RngKey{42, 8, 3}, RngKey{42, 7, 4},
                       RngKey{42, uint64_t{7} + (uint64_t{1} << 32), 3}}) {
    CHECK(dropout(x, 0.4f, true, other).to_vector<float>() != y.to_vector<float>());
  }
}

TEST_CASE("dropout and drop_path errors") {
  const Tensor x = Tensor::zeros({3});
  op_error("dropout", "expected a probability in 0..1, got 1.5",
           [&] { dropout(x, 1.5f, true, kKey); });
  op_error("dropout", "expected a probability in 0..1", [&] { dropout(x, NAN, false, kKey); });
  op_error("dropout", "to be an f32 or bf16 tensor, got an undefined tensor",
           [] { dropout(Tensor(), 0.5f, true, kKey); });
  op_error("drop_path", "expected a probability in 0..1, got -0.5",
           [&] { drop_path(x, -0.5f, true, kKey); });
  op_error("drop_path", "expected samples along dimension 0",
           [] { drop_path(Tensor::scalar(1), 0.5f, true, kKey); });
}

}  // namespace graft::test
