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
  const int64_t heads = q.shape[1], n = q.shape[2], d = q.shape[3], m = k.shape[2];
  const int64_t width = v.shape[3];
  if (scale == 0) scale = 1 / std::sqrt(static_cast<double>(d));
  Array out({q.shape[0], q.shape[1], n, width});
  const Array zero({q.shape[0], q.shape[1], n, m});
  const Array mask =
      in.size() > 3 ? zip(zero, in[3], [](double a, double b) { return a + b; }) : zero;
  for (int64_t b = 0; b < q.shape[0]; ++b) {
    for (int64_t h = 0; h < heads; ++h) {
      for (int64_t i = 0; i < n; ++i) {
        // Streaming: rescales what was gathered whenever a larger score appears.
        double largest = -std::numeric_limits<double>::infinity(), total = 0;
        std::vector<double> row(static_cast<size_t>(width), 0.0);
        for (int64_t j = 0; j < m; ++j) {
          double score = 0;
          const double* q_row = q.values.data() + d * ((b * heads + h) * n + i);
          const double* k_row = k.values.data() + d * ((b * heads + h) * m + j);
          const double* v_row = v.values.data() + width * ((b * heads + h) * m + j);
          for (int64_t c = 0; c < d; ++c) score += q_row[c] * k_row[c];
          score = score * scale + mask.at({b, h, i, j});
          if (std::isinf(score) && score < 0) continue;
          const double before = largest;
          largest = std::max(largest, score);
          const double shrink = total == 0 ? 0 : std::exp(before - largest);
          const double weight = std::exp(score - largest);
          total = total * shrink + weight;
          for (int64_t c = 0; c < width; ++c) {
            double& value = row[static_cast<size_t>(c)];
            value = value * shrink + weight * v_row[c];
          }
        }
        for (int64_t c = 0; c < width; ++c) {
          out.at({b, h, i, c}) = m == 0 ? 0 : row[static_cast<size_t>(c)] / total;
        }
      }
    }
  }
  return out;
}

// in: q, k, v (tokens, heads, d), offsets of queries, offsets of keys. One sequence and one head
// after the other through the reference above.
Array varlen_reference(const Arrays& in, double scale) {
  const int64_t heads = in[0].shape[1], width = in[2].shape[2];
  Array out({in[0].shape[0], heads, width});
  for (size_t s = 0; s + 1 < in[3].values.size(); ++s) {
    for (int64_t h = 0; h < heads; ++h) {
      Arrays one;
      for (size_t i = 0; i < 3; ++i) {
        const Array& offsets = in[i == 0 ? 3 : 4];
        const auto begin = static_cast<int64_t>(offsets.values[s]);
        const int64_t tokens = static_cast<int64_t>(offsets.values[s + 1]) - begin;
        one.emplace_back(Shape{1, 1, tokens, in[i].shape[2]});
        for (int64_t t = 0; t < tokens; ++t) {
          for (int64_t c = 0; c < in[i].shape[2]; ++c) {
            one.back().at({0, 0, t, c}) = in[i].at({begin + t, h, c});
          }
        }
      }
      if (one[1].shape[2] == 0) continue;
      const Array y = attention_reference(one, scale);
      const auto begin = static_cast<int64_t>(in[3].values[s]);
      for (int64_t t = 0; t < y.shape[2]; ++t) {
        for (int64_t c = 0; c < width; ++c) out.at({begin + t, h, c}) = y.at({0, 0, t, c});
      }
    }
  }
  return out;
}

void attention_row(std::vector<Input> inputs, float scale = 0) {
  const int64_t keys = inputs[1].shape[2];
  Options options = accumulating(keys * inputs[0].shape[3]);
  // Over so few keys the CPU takes oneDNN's products, see ops_matmul_test.cpp.
  if (keys <= 96) options = options.with_threads_mattering();
  op_row(
      "scaled_dot_product_attention", inputs,
      [=](const Tensors& in) {
        return scaled_dot_product_attention(in[0], in[1], in[2], in.size() > 3 ? in[3] : Tensor(),
                                            scale);
      },
      [=](const Arrays& in) { return attention_reference(in, scale); }, options);
}

// Sequences of these numbers of queries and keys.
void varlen_row(const std::vector<int64_t>& queries, const std::vector<int64_t>& keys,
                int64_t heads, int64_t depth, int64_t width, Dtype dtype = Dtype::i64,
                float scale = 0) {
  const auto offsets = [&](const std::vector<int64_t>& lengths) {
    std::vector<double> values{0};
    for (int64_t length : lengths) values.push_back(values.back() + static_cast<double>(length));
    return values;
  };
  const std::vector<double> q = offsets(queries), k = offsets(keys);
  const auto all_q = static_cast<int64_t>(q.back()), all_k = static_cast<int64_t>(k.back());
  const Shape shape{static_cast<int64_t>(q.size())};
  op_row(
      "scaled_dot_product_attention_varlen",
      {real({all_q, heads, depth}), real({all_k, heads, depth}), real({all_k, heads, width}),
       given(q, shape, dtype), given(k, shape, dtype)},
      [=](const Tensors& in) {
        return scaled_dot_product_attention_varlen(in[0], in[1], in[2], in[3], in[4], scale);
      },
      [=](const Arrays& in) { return varlen_reference(in, scale); }, accumulating(all_k * depth));
}

}  // namespace

TEST_CASE("scaled_dot_product_attention") {
  attention_row({real({1, 1, 1, 1}), real({1, 1, 1, 1}), real({1, 1, 1, 1})});
  attention_row({real({2, 3, 4, 5}), real({2, 3, 7, 5}), real({2, 3, 7, 6})});
  attention_row({real({2, 3, 4, 5}), real({2, 3, 7, 5}), real({2, 3, 7, 6})}, 0.75f);
  attention_row({real({0, 2, 3, 4}), real({0, 2, 3, 4}), real({0, 2, 3, 4})});
  attention_row({real({2, 2, 33, 16}), real({2, 2, 33, 16}), real({2, 2, 33, 16})});
  attention_row({real({2, 1, 3, 4}), real({2, 1, 0, 4}), real({2, 1, 0, 4})});
}

TEST_CASE("scaled_dot_product_attention over several tiles") {
  // Each padded row length of the kernels, more keys and queries than a tile, ends inside one.
  for (const int64_t depth : {32, 64, 70, 128, 132}) {
    attention_row({real({1, 1, 35, depth}), real({1, 1, 99, depth}), real({1, 1, 99, depth})});
  }
  attention_row({real({1, 2, 131, 8}), real({1, 2, 150, 8}), real({1, 2, 150, 36})});
  attention_row({real({1, 1, 5, 3}), real({1, 1, 7, 3}), real({1, 1, 7, 260})});
}

TEST_CASE("scaled_dot_product_attention of extreme scores") {
  // Sums of exponentials that only the maximum keeps in range, rising and falling along the keys.
  std::vector<double> rising, falling;
  for (int i = 0; i < 150; ++i) rising.push_back(8.0 * i), falling.push_back(-8.0 * i);
  for (const auto& keys : {rising, falling}) {
    op_row(
        "scaled_dot_product_attention",
        {given({1, -1, 0.5}, {1, 1, 3, 1}), given(keys, {1, 1, 150, 1}), real({1, 1, 150, 2})},
        [](const Tensors& in) { return scaled_dot_product_attention(in[0], in[1], in[2]); },
        [](const Arrays& in) { return attention_reference(in, 0); },
        Options(accumulating(150)).without_gradients());
  }
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
  // A whole tile of keys is hidden before the first one to be seen; a mask of every shape again,
  // over several tiles.
  std::vector<double> late(150, kHidden);
  late[149] = 0.5, late[70] = -0.5;
  const std::vector<Input> long_ones{real({1, 2, 67, 4}), real({1, 2, 150, 4}),
                                     real({1, 2, 150, 4})};
  hidden = long_ones;
  hidden.push_back(given(late).frozen());
  attention_row(hidden);
  for (const Shape& shape : {Shape{2, 67, 150}, Shape{67, 1}}) {
    hidden = long_ones;
    hidden.push_back(real(shape));
    attention_row(hidden);
  }
}

TEST_CASE("scaled_dot_product_attention without a visible key is NaN") {
  const float hidden = -std::numeric_limits<float>::infinity();
  const Device device = test_device();
  const Tensor q = Tensor::full({1, 1, 2, 3}, 1.0f).to(device);
  const Tensor mask = Tensor::of<float>({hidden, hidden, 0, hidden}, {2, 2}).to(device);
  const std::vector<float> y = scaled_dot_product_attention(q, q, q, mask).to_vector<float>();
  for (size_t i = 0; i < 3; ++i) CHECK(std::isnan(y[i]));
  for (size_t i = 3; i < 6; ++i) CHECK(y[i] == 1.0f);
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

TEST_CASE("scaled_dot_product_attention_varlen") {
  varlen_row({1}, {1}, 1, 1, 1);
  varlen_row({3, 1, 4}, {2, 5, 1}, 2, 5, 6);
  varlen_row({3, 1, 4}, {2, 5, 1}, 2, 8, 8, Dtype::i32, 0.75f);
  varlen_row({0, 2, 0}, {3, 0, 0}, 2, 4, 4);
  varlen_row({0, 0}, {0, 0}, 2, 4, 4);
  varlen_row({1, 67, 0, 130, 64}, {70, 1, 3, 64, 129}, 2, 12, 12);
}

TEST_CASE("scaled_dot_product_attention_varlen errors") {
  const Tensor q = Tensor::zeros({6, 2, 4}), offsets = Tensor::of<int64_t>({0, 2, 6});
  const auto call = [&](const Tensor& k, const Tensor& v, const Tensor& of_q, const Tensor& of_k) {
    scaled_dot_product_attention_varlen(q, k, v, of_q, of_k);
  };
  const auto error = [](const char* message, const std::function<void()>& wrong) {
    op_error("scaled_dot_product_attention_varlen", message, wrong);
  };
  error("expected f32 tensors of shape (tokens, heads, d), got f32[6, 8]", [&] {
    call(Tensor::zeros({6, 8}), q, offsets, offsets);
  });
  error("q and k differ", [&] { call(Tensor::zeros({6, 2, 3}), q, offsets, offsets); });
  error("k and v differ", [&] { call(q, Tensor::zeros({5, 2, 4}), offsets, offsets); });
  error("rows of at most 256", [&] { call(q, Tensor::zeros({6, 2, 257}), offsets, offsets); });
  error("query_offsets to be i64 or i32 of shape [sequences + 1], got f32[3]",
        [&] { call(q, q, Tensor::zeros({3}), offsets); });
  error("as many query_offsets as key_offsets", [&] {
    call(q, q, offsets, Tensor::of<int64_t>({0, 6}));
  });
  error("key_offsets to ascend from 0 to 6 tokens, got 0 to 5", [&] {
    call(q, q, offsets, Tensor::of<int64_t>({0, 2, 5}));
  });
  error("query_offsets to ascend", [&] { call(q, q, Tensor::of<int64_t>({0, 7, 6}), offsets); });
}

}  // namespace graft::test
