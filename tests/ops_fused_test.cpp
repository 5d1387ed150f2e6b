// Fused chains against their parts in double precision, with masks from Philox words taken one by
// one; and against the ops that they fuse.
#include <cmath>
#include <doctest/doctest.h>

#include "kernels/philox.h"
#include "tests/support/op_table.h"

namespace graft::test {
namespace {

constexpr RngKey kKey{42, 7, 3};

double kept(float probability, int64_t element) {
  const uint32_t word = philox_word(kKey, static_cast<uint64_t>(element));
  const bool stays =
      static_cast<double>(word >> 8) / 16777216.0 >= static_cast<double>(probability);
  return stays ? 1 / (1 - static_cast<double>(probability)) : 0;
}

Array biased(const Array& x, const Array* bias) {
  Array y = x;
  const auto c = static_cast<size_t>(x.shape.back());
  for (size_t i = 0; bias != nullptr && i < y.values.size(); ++i) {
    y.values[i] += bias->values[i % c];
  }
  return y;
}

void bias_gelu_dropout_row(const Shape& shape, float p, bool with_bias = true) {
  std::vector<Input> inputs{real(shape)};
  if (with_bias) inputs.push_back(real({shape.back()}).parameter());
  op_row(
      "bias_gelu_dropout", inputs,
      [=](const Tensors& in) {
        return bias_gelu_dropout(in[0], with_bias ? in[1] : Tensor(), p, true, kKey);
      },
      [=](const Arrays& in) {
        Array y = biased(in[0], with_bias ? &in[1] : nullptr);
        for (size_t i = 0; i < y.values.size(); ++i) {
          const double v = y.values[i];
          y.values[i] = v / 2 * std::erfc(-v / std::sqrt(2.0)) * kept(p, static_cast<int64_t>(i));
        }
        return y;
      },
      accumulating(std::max<int64_t>(16, numel_of(shape) / std::max<int64_t>(1, shape.back()))));
}

// Variances as differences of means, which double precision can afford.
Array normalised(const Array& x, const Array* weight, const Array* shift, double epsilon) {
  Array y = x;
  const int64_t c = x.shape.back();
  for (int64_t first = 0; first < x.size(); first += c) {
    double sum = 0, square = 0;
    for (int64_t j = 0; j < c; ++j) {
      const double v = x.values[static_cast<size_t>(first + j)];
      sum += v;
      square += v * v;
    }
    const double n = static_cast<double>(c), mean = sum / n;
    const double deviation = std::sqrt(square / n - mean * mean + epsilon);
    for (int64_t j = 0; j < c; ++j) {
      double& v = y.values[static_cast<size_t>(first + j)];
      v = (v - mean) / deviation;
      if (weight != nullptr) v *= weight->values[static_cast<size_t>(j)];
      if (shift != nullptr) v += shift->values[static_cast<size_t>(j)];
    }
  }
  return y;
}

void dropout_add_layer_norm_row(const Shape& shape, float p, float epsilon = 1e-5f) {
  const int64_t c = shape.back(), rows = numel_of(shape) / std::max<int64_t>(1, c);
  op_row(
      "dropout_add_layer_norm",
      {real(shape), real({c}).parameter(), real(shape), real({c}, 0.5, 2.5).parameter(),
       real({c}).parameter()},
      [=](const Tensors& in) {
        return dropout_add_layer_norm(in[0], in[1], in[2], in[3], in[4], p, true, kKey, epsilon);
      },
      [=](const Arrays& in) {
        Array sum = biased(in[0], &in[1]);
        for (size_t i = 0; i < sum.values.size(); ++i) {
          sum.values[i] = sum.values[i] * kept(p, static_cast<int64_t>(i)) + in[2].values[i];
        }
        return normalised(sum, &in[3], &in[4], static_cast<double>(epsilon));
      },
      accumulating(std::max<int64_t>({c, rows, 16})));
}

}  // namespace

TEST_CASE("bias_gelu_dropout") {
  // Packs of four, and rows that begin within one; more than a block of 64; more than one thread.
  for (float p : {0.0f, 0.3f, 0.5f}) {
    bias_gelu_dropout_row({3, 8}, p);
    bias_gelu_dropout_row({5, 7}, p);
    bias_gelu_dropout_row({2, 3, 65}, p);
  }
  bias_gelu_dropout_row({1, 1}, 0.5f);
  bias_gelu_dropout_row({200, 1}, 0.5f);
  bias_gelu_dropout_row({6}, 0.5f);
  bias_gelu_dropout_row({0, 4}, 0.5f);
  bias_gelu_dropout_row({3, 0}, 0.5f);
  bias_gelu_dropout_row({4, 12}, 0.25f, false);
  bias_gelu_dropout_row({130, 301}, 0.1f);
}

TEST_CASE("dropout_add_layer_norm") {
  for (float p : {0.0f, 0.3f, 0.5f}) {
    dropout_add_layer_norm_row({4, 8}, p, 0.1f);
    dropout_add_layer_norm_row({3, 5, 17}, p);
  }
  dropout_add_layer_norm_row({33}, 0.1f);
  dropout_add_layer_norm_row({7, 2}, 0.5f, 0.5f);
  dropout_add_layer_norm_row({0, 4}, 0.5f);
  dropout_add_layer_norm_row({3, 0}, 0.5f);
  dropout_add_layer_norm_row({300, 96}, 0.1f);
  // A warp's rows, a block's, and rows that are read again; in packs and one by one.
  for (int64_t c : {600, 1001, 1200, 2100, 8204}) dropout_add_layer_norm_row({2, c}, 0.2f);
}

TEST_CASE("a chain without bias, weight and shift is the ops that it fuses") {
  const auto random = [](uint64_t stream) {
    return uniform({9, 20}, -2, 2, {5, stream, 1}).to(test_device());
  };
  const Tensor x = random(1), residual = random(2);
  const auto close = [](const Tensor& a, const Tensor& b) {
    const std::vector<float> va = a.to_vector<float>(), vb = b.to_vector<float>();
    for (size_t i = 0; i < va.size(); ++i) {
      if (!(std::fabs(va[i] - vb[i]) <= 1e-5f)) return false;
    }
    return va.size() == vb.size();
  };
  for (const bool training : {true, false}) {
    const auto kept = dropout(x, 0.4f, training, kKey);
    CHECK(close(
        dropout_add_layer_norm(x, Tensor(), residual, Tensor(), Tensor(), 0.4f, training, kKey),
        layer_norm(add(kept, residual), Tensor(), Tensor())));
    CHECK(close(bias_gelu_dropout(x, Tensor(), 0.4f, training, kKey),
                dropout(gelu(x), 0.4f, training, kKey)));
  }
}

TEST_CASE("fused chains: errors") {
  const Tensor x = Tensor::zeros({2, 3});
  op_error("bias_gelu_dropout", "expected a probability in 0..1, got 1.5",
           [&] { bias_gelu_dropout(x, Tensor(), 1.5f, true, kKey); });
  op_error("bias_gelu_dropout", "expected bias of shape [3]",
           [&] { bias_gelu_dropout(x, Tensor::zeros({2}), 0.5f, true, kKey); });
  op_error("bias_gelu_dropout", "at least 1 dimension",
           [] { bias_gelu_dropout(Tensor::scalar(1), Tensor(), 0.5f, true, kKey); });
  op_error("dropout_add_layer_norm", "expected a residual like x", [&] {
    dropout_add_layer_norm(x, Tensor(), Tensor::zeros({3, 2}), Tensor(), Tensor(), 0.5f, true,
                           kKey);
  });
  op_error("dropout_add_layer_norm", "expected shift of shape [3]", [&] {
    dropout_add_layer_norm(x, Tensor(), x, Tensor(), Tensor::zeros({1}), 0.5f, true, kKey);
  });
  op_error("dropout_add_layer_norm", "expected residual to be an f32 or bf16 tensor", [&] {
    dropout_add_layer_norm(x, Tensor(), Tensor(), Tensor(), Tensor(), 0.5f, true, kKey);
  });
}

}  // namespace graft::test
