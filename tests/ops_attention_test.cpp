// Attention against a reference that works query by query.
#include <cmath>
#include <doctest/doctest.h>
#include <limits>

#include "tests/support/op_table.h"

namespace graft::test {
namespace {

// in: q, k, v and perhaps a mask.
Array attention_reference(const Arrays& in, double scale) {
  const Array &q = in[0], &k = in[1], &v = in[2];
  const int64_t n = q.shape[2], d = q.shape[3], m = k.shape[2], width = v.shape[3];
  if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(d));
  Array out({q.shape[0], q.shape[1], n, width});
  const Array zero({q.shape[0], q.shape[1], n, m});
  const Array mask =
      in.size() > 3 ? zip(zero, in[3], [](double a, double b) { return a + b; }) : zero;
  for (int64_t b = 0; b < q.shape[0]; ++b) {
    for (int64_t h = 0; h < q.shape[1]; ++h) {
      for (int64_t i = 0; i < n; ++i) {
        // Streaming: rescales what was gathered whenever a larger score appears.
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        std::vector<double> row(static_cast<size_t>(width), 0.0);
        for (int64_t j = 0; j < m; ++j) {
          double score = 0;
          for (int64_t c = 0; c < d; ++c) score += q.at({b, h, i, c}) * k.at({b, h, j, c});
          score = score * scale + mask.at({b, h, i, j});
          if (std::isinf(score) && score < 0) continue;
          const double before = largest;
          largest = std::max(largest, score);
          const double shrink = total == 0 ? 0 : std::exp(before - largest);
          const double weight = std::exp(score - largest);
          total = total * shrink + weight;
          for (int64_t c = 0; c < width; ++c) {
            double& value = row[static_cast<size_t>(c)];
            value = value * shrink + weight * v.at({b, h, j, c});
          }
        }
        for (int64_t c = 0; c < width; ++c) {
          out.at({b, h, i, c}) = row[static_cast<size_t>(c)] / total;
        }
      }
    }
  }
  return out;
}

void attention_row(std::vector<Input> inputs, float scale = 0) {
  const int64_t length = inputs[1].shape[2] * inputs[0].shape[3];
  op_row(
      "scaled_dot_product_attention", inputs,
      [=](const Tensors& in) {
        return scaled_dot_product_attention(in[0], in[1], in[2], in.size() > 3 ? in[3] : Tensor(),
                                            scale);
      },
      [=](const Arrays& in) { return attention_reference(in, scale); }, accumulating(length));
}

}  // namespace

TEST_CASE("scaled_dot_product_attention") {
  attention_row({real({1, 1, 1, 1}), real({1, 1, 1, 1}), real({1, 1, 1, 1})});
  attention_row({real({2, 3, 4, 5}), real({2, 3, 7, 5}), real({2, 3, 7, 6})});
  attention_row({real({2, 3, 4, 5}), real({2, 3, 7, 5}), real({2, 3, 7, 6})}, 0.75f);
  attention_row({real({0, 2, 3, 4}), real({0, 2, 3, 4}), real({0, 2, 3, 4})});
  attention_row({real({2, 2, 33, 16}), real({2, 2, 33, 16}), real({2, 2, 33, 16})});
}

TEST_CASE("scaled_dot_product_attention with a mask") {
  const std::vector<Input> inputs{real({2, 3, 4, 5}), real({2, 3, 6, 5}), real({2, 3, 6, 5})};
  for (const Shape& shape : {Shape{2, 3, 4, 6}, Shape{2, 1, 1, 6}, Shape{4, 6}, Shape{1}}) {
    std::vector<Input> with_mask = inputs;
    with_mask.push_back(real(shape));
    attention_row(with_mask);
  }
  // Keys 4 and 5 are hidden.
  constexpr double kHidden = -std::numeric_limits<double>::infinity();
  std::vector<Input> hidden = inputs;
  hidden.push_back(given({0, 0, 0, 0, kHidden, kHidden}).frozen());
  attention_row(hidden);
}

TEST_CASE("scaled_dot_product_attention errors") {
  const Tensor q = Tensor::zeros({2, 3, 4, 5}), k = Tensor::zeros({2, 3, 6, 5});
  op_error("scaled_dot_product_attention",
           "expected f32 tensors of shape (b, heads, n, d), got f32[4, 5]", [&] {
             scaled_dot_product_attention(Tensor::zeros({4, 5}), k, k);
           });
  op_error("scaled_dot_product_attention", "q and k differ", [&] {
    scaled_dot_product_attention(Tensor::zeros({2, 3, 4, 4}), k, k);
  });
  op_error("scaled_dot_product_attention", "k and v differ", [&] {
    scaled_dot_product_attention(q, k, Tensor::zeros({2, 3, 7, 5}));
  });
  op_error("scaled_dot_product_attention",
           "expected an f32 mask that broadcasts to [2, 3, 4, 6], got f32[5, 6]", [&] {
             scaled_dot_product_attention(q, k, k, Tensor::zeros({5, 6}));
           });
}

}  // namespace graft::test
