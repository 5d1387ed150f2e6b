// Self-attention and the blocks of transformers: values and gradients against double precision,
// sequences of different lengths, fused chains against plain ops, and the weights of others.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <functional>

#include "engine/autograd.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "layers/transformer.h"
#include "tests/support/hashed_weights.h"
#include "tests/support/test_device.h"

namespace graft {
namespace {

using test::test_device;
using Doubles = std::vector<double>;
using Values = std::map<std::string, Doubles>;  // parameters by name, and the input as "x"

Doubles doubles(const Tensor& tensor) {
  const std::vector<float> values = tensor.to(kCpu).to_vector<float>();
  return {values.begin(), values.end()};
}
Tensor hashed_tensor(const std::string& name, const Shape& shape) {
  const Doubles values = test::hashed(name, numel_of(shape));
  return Tensor::of(std::vector<float>(values.begin(), values.end()), shape).to(test_device());
}
double largest(const Doubles& values) {
  double most = 0;
  for (const double value : values) most = std::max(most, std::fabs(value));
  return most;
}
double largest_difference(const Doubles& a, const Doubles& b) {
  REQUIRE(a.size() == b.size());
  Doubles difference(a.size());
  for (size_t i = 0; i < a.size(); ++i) {
    difference[i] = std::isfinite(a[i]) ? a[i] - b[i] : INFINITY;
  }
  return largest(difference);
}
void throws_with(const std::string& part, const std::function<void()>& call) {
  CHECK_THROWS_WITH_AS(call(), doctest::Contains(part.c_str()), Error);
}

// --- the reference: rows of tokens, and which of them are a sequence

struct Span {
  size_t begin, end;
};
struct Setting {
  const char* name;
  Shape shape;                   // of x
  std::vector<int64_t> lengths;  // none: all tokens count
  size_t heads = 3;
  bool packed() const { return shape.size() == 2; }
  size_t width() const { return static_cast<size_t>(shape.back()); }
  std::vector<Span> spans() const {
    std::vector<Span> all;
    size_t begin = 0;
    for (size_t i = 0; i < (packed() ? lengths.size() : static_cast<size_t>(shape[0])); ++i) {
      const auto tokens = static_cast<size_t>(packed() ? lengths[i] : shape[1]);
      all.push_back({begin, begin + (lengths.empty() ? tokens : static_cast<size_t>(lengths[i]))});
      begin += tokens;
    }
    return all;
  }
  Sequences sequences() const {
    if (lengths.empty()) return {};
    return packed() ? Sequences::packed(lengths, test_device())
                    : Sequences::padded(lengths, shape[1], test_device());
  }
};

Doubles affine(const Values& at, const std::string& layer, const Doubles& x) {
  const Doubles &w = at.at(layer + ".weight"), &bias = at.at(layer + ".bias");
  const size_t out = bias.size(), in = w.size() / out;
  Doubles y;
  for (size_t row = 0; row < x.size() / in; ++row) {
    for (size_t o = 0; o < out; ++o) {
      double sum = bias[o];
      for (size_t i = 0; i < in; ++i) sum += w[o * in + i] * x[row * in + i];
      y.push_back(sum);
    }
  }
  return y;
}

// Each query by itself; exponentials without a maximum taken off, which doubles can afford.
Doubles attention(const Setting& s, const Values& at, const std::string& prefix, const Doubles& x) {
  const Doubles q = affine(at, prefix + "q_proj", x), k = affine(at, prefix + "k_proj", x),
                v = affine(at, prefix + "v_proj", x);
  const size_t width = s.width(), depth = width / s.heads;
  Doubles mixed(x.size());
  for (const Span& span : s.spans()) {
    for (size_t query = span.begin; query < span.end; ++query) {
      for (size_t column = 0; column < width; ++column) {
        const size_t first = column / depth * depth;
        double above = 0, below = 0;
        for (size_t key = span.begin; key < span.end; ++key) {
          double score = 0;
          for (size_t d = first; d < first + depth; ++d) {
            score += q[query * width + d] * k[key * width + d];
          }
          const double weight = std::exp(score / std::sqrt(static_cast<double>(depth)));
          above += weight * v[key * width + column];
          below += weight;
        }
        mixed[query * width + column] = above / below;
      }
    }
  }
  return affine(at, prefix + "out_proj", mixed);
}

constexpr double kEpsilon = 1e-3;

Doubles normalised(const Values& at, const std::string& layer, const Doubles& x) {
  const Doubles &weight = at.at(layer + ".weight"), &bias = at.at(layer + ".bias");
  const size_t width = weight.size();
  Doubles y = x;
  for (size_t row = 0; row < x.size(); row += width) {
    double sum = 0, squares = 0;
    for (size_t i = 0; i < width; ++i) {
      sum += x[row + i];
      squares += x[row + i] * x[row + i];
    }
    const double n = static_cast<double>(width), mean = sum / n;
    for (size_t i = 0; i < width; ++i) {
      y[row + i] =
          (x[row + i] - mean) / std::sqrt(squares / n - mean * mean + kEpsilon) * weight[i] +
          bias[i];
    }
  }
  return y;
}
Doubles sum_of(Doubles a, const Doubles& b) {
  for (size_t i = 0; i < a.size(); ++i) a[i] += b[i];
  return a;
}
Doubles block(const Setting& s, bool norm_first, const Values& at) {
  const auto attend = [&](const Doubles& x) { return attention(s, at, "self_attn.", x); };
  const auto mlp = [&](const Doubles& x) {
    Doubles hidden = affine(at, "linear1", x);
    for (double& h : hidden) h *= std::erfc(-h / std::sqrt(2.0)) / 2;
    return affine(at, "linear2", hidden);
  };
  const Doubles& x = at.at("x");
  if (norm_first) {
    const Doubles seen = sum_of(x, attend(normalised(at, "norm1", x)));
    return sum_of(seen, mlp(normalised(at, "norm2", seen)));
  }
  const Doubles seen = normalised(at, "norm1", sum_of(x, attend(x)));
  return normalised(at, "norm2", sum_of(seen, mlp(seen)));
}

// A layer against its reference: what comes out of the tokens that count, and the gradient of a
// loss of them in every `stride`-th element of the input and of each parameter.
template <class Layer>
void check_layer(const Setting& s, Layer& layer,
                 const std::function<Doubles(const Values&)>& reference, size_t stride = 1) {
  CAPTURE(s.name);
  test::fill_with_hashed_weights(layer, {});
  layer.to(test_device());
  Tensor x = mul(hashed_tensor("x", s.shape), 2).detach().set_requires_grad();
  const Tensor y = layer(x, s.sequences());
  REQUIRE(y.shape() == s.shape);

  Values at{{"x", doubles(x)}};
  std::map<std::string, Tensor> tensors{{"x", x}};
  for (const NamedTensor& entry : layer.named_parameters()) {
    at[entry.name] = doubles(*entry.tensor);
    tensors[entry.name] = *entry.tensor;
  }
  // Tokens that do not count have no weight in the loss.
  std::vector<float> w(static_cast<size_t>(x.numel()), 0.0f);
  const Doubles hashed = test::hashed("loss", x.numel());
  for (const Span& span : s.spans()) {
    for (size_t i = span.begin * s.width(); i < span.end * s.width(); ++i) {
      w[i] = static_cast<float>(hashed[i]);
    }
  }
  Doubles got = doubles(y), expected = reference(at);
  for (size_t i = 0; i < w.size(); ++i) {
    if (w[i] == 0) got[i] = expected[i] = 0;
  }
  CHECK(largest_difference(got, expected) < 2e-6 * largest(expected));

  backward(sum(mul(y, Tensor::of(w, s.shape).to(test_device()))));
  std::map<std::string, Doubles> numeric;
  double most = 0;
  for (auto& [name, values] : at) {
    for (size_t i = 0; i < values.size(); i += stride) {
      const double middle = values[i];
      values[i] = middle + 1e-4;
      const Doubles above = reference(at);
      values[i] = middle - 1e-4;
      const Doubles below = reference(at);
      values[i] = middle;
      double slope = 0;
      for (size_t j = 0; j < w.size(); ++j) slope += double{w[j]} * (above[j] - below[j]) / 2e-4;
      numeric[name].push_back(slope);
    }
    most = std::max(most, largest(numeric[name]));
  }
  for (const auto& [name, slopes] : numeric) {
    CAPTURE(name);
    const Doubles all = doubles(tensors.at(name).grad());
    Doubles ours;
    for (size_t i = 0; i < all.size(); i += stride) ours.push_back(all[i]);
    // That of the keys' bias is 0: it adds the same to all scores of a query.
    CHECK(largest(slopes) > (name.ends_with("k_proj.bias") ? -1 : 0.01) * most);
    CHECK(largest_difference(ours, slopes) < 3e-6 * std::max(largest(slopes), 0.1 * most));
  }
}

const std::vector<Setting>& settings() {
  static const std::vector<Setting> all{{"whole", {2, 5, 12}, {}},
                                        {"one head", {1, 4, 12}, {}, 1},
                                        {"padded", {3, 5, 12}, {5, 1, 3}},
                                        {"packed", {9, 12}, {4, 0, 1, 4}}};
  return all;
}

TEST_CASE("attention and its gradients are those of double precision") {
  const auto check = [](const Setting& s, size_t stride) {
    MultiheadAttention layer(s.shape.back(), static_cast<int64_t>(s.heads));
    check_layer(
        s, layer, [&](const Values& at) { return attention(s, at, "", at.at("x")); }, stride);
  };
  for (const Setting& s : settings()) check(s, 1);
  // More keys than the CPU gives to matrix products.
  check({"long", {1, 101, 8}, {}, 2}, 23);
  check({"long and padded", {2, 100, 8}, {98, 3}, 2}, 53);
}

TEST_CASE("a transformer's block and its gradients are those of double precision") {
  for (const bool norm_first : {true, false}) {
    CAPTURE(norm_first);
    for (const Setting& s : settings()) {
      TransformerBlock layer({.width = s.shape.back(),
                              .heads = static_cast<int64_t>(s.heads),
                              .hidden = 20,
                              .norm_first = norm_first,
                              .epsilon = static_cast<float>(kEpsilon)});
      check_layer(s, layer, [&](const Values& at) { return block(s, norm_first, at); });
    }
  }
}

// --- fused chains

// The block from plain ops, which draw their keys in the same order.
Tensor plain_block(Module& layer, bool norm_first, float p, const Tensor& x) {
  std::map<std::string, Module*> parts;
  for (const auto& [name, module] : layer.named_modules()) parts[name] = module;
  const bool training = layer.training();
  const auto drop = [&](const Tensor& y) { return dropout(y, p, training, next_key()); };
  const auto mlp = [&](const Tensor& y) {
    return (*parts["linear2"])(drop(gelu((*parts["linear1"])(y))));
  };
  const auto attend = [&](const Tensor& y) { return (*parts["self_attn"])(y); };
  const auto norm = [&](const char* name, const Tensor& y) { return (*parts[name])(y); };
  if (norm_first) {
    const Tensor seen = add(x, drop(attend(norm("norm1", x))));
    return add(seen, drop(mlp(norm("norm2", seen))));
  }
  const Tensor seen = norm("norm1", add(x, drop(attend(x))));
  return norm("norm2", add(seen, drop(mlp(seen))));
}

TEST_CASE("a block is the plain ops that its chains fuse, dropout included") {
  for (const bool norm_first : {true, false}) {
    CAPTURE(norm_first);
    TransformerBlock layer({.width = 12, .heads = 3, .hidden = 20, .norm_first = norm_first});
    test::fill_with_hashed_weights(layer, {});
    layer.to(test_device());
    layer.set_dropout(0.4f);
    for (const bool training : {true, false}) {
      CAPTURE(training);
      layer.train(training);
      const auto run = [&](bool plain) {
        begin_rng_step(3, 1);
        layer.zero_grad();
        Tensor x = hashed_tensor("x", {2, 5, 12}).set_requires_grad();
        const Tensor y = plain ? plain_block(layer, norm_first, 0.4f, x) : layer(x);
        backward(sum(mul(y, hashed_tensor("loss", {2, 5, 12}))));
        std::map<std::string, Doubles> all{{"y", doubles(y)}, {"x", doubles(x.grad())}};
        for (const NamedTensor& entry : layer.named_parameters()) {
          all[entry.name] = doubles(entry.tensor->grad());
        }
        return all;
      };
      const auto fused = run(false), plain = run(true);
      for (const auto& [name, values] : plain) {
        CAPTURE(name);
        CHECK(largest_difference(fused.at(name), values) < 3e-6 * std::max(1.0, largest(values)));
      }
    }
    begin_rng_step(3, 1);
    const Tensor x = hashed_tensor("x", {2, 5, 12});
    const Doubles still = doubles(layer(x));
    layer.train();
    const Doubles dropped = doubles(layer(x));
    CHECK(dropped != still);
    CHECK(doubles(layer(x)) != dropped);
    layer.set_dropout(0);
    CHECK(doubles(layer(x)) == still);
  }
}

TEST_CASE("the MLP is one op, or its parts where one of its layers is adapted") {
  TransformerBlock layer({.width = 12, .heads = 3, .hidden = 20});
  test::fill_with_hashed_weights(layer, {});
  layer.to(test_device());
  const auto run = [&] {
    layer.zero_grad();
    Tensor x = hashed_tensor("x", {2, 5, 12}).set_requires_grad();
    const int64_t before = recorded_nodes();
    const Tensor y = layer(x);
    const int64_t nodes = recorded_nodes() - before;
    backward(sum(mul(y, hashed_tensor("loss", {2, 5, 12}))));
    std::map<std::string, Doubles> all{{"y", doubles(y)}, {"x", doubles(x.grad())}};
    for (const NamedTensor& entry : layer.named_parameters()) {
      if (entry.role == AdapterRole::adapter || !entry.tensor->requires_grad()) continue;
      all[entry.name] = doubles(entry.tensor->grad());
    }
    return std::pair{nodes, all};
  };
  const auto whole = run();
  const auto agrees = [&](const std::map<std::string, Doubles>& parts) {
    for (const auto& [name, values] : parts) {
      CAPTURE(name);
      CHECK(largest_difference(whole.second.at(name), values) <
            3e-6 * std::max(1.0, largest(values)));
    }
  };
  for (const char* name : {"linear1", "linear2"}) {
    CAPTURE(name);
    const auto modules = layer.named_modules();
    const auto found = std::find_if(modules.begin(), modules.end(),
                                    [&](const auto& entry) { return entry.first == name; });
    auto& linear = dynamic_cast<AdaptedLayer&>(*found->second);
    linear.add_adapter(2, 1, 0, RngKey{7});  // adds nothing at first
    linear.to(test_device());
    const auto parts = run();
    CHECK(parts.first > whole.first + 2);
    agrees(parts.second);
    linear.drop_adapter();
    // A frozen layer stays in the op.
    linear.weight.set_requires_grad(false);
    linear.bias.set_requires_grad(false);
    const auto frozen = run();
    CHECK(frozen.first == whole.first);
    agrees(frozen.second);
    linear.weight.set_requires_grad();
    linear.bias.set_requires_grad();
  }
}

TEST_CASE("a block in bf16 is the block in f32, rounded") {
  for (const bool norm_first : {true, false}) {
    TransformerBlock layer({.width = 12, .heads = 3, .hidden = 20, .norm_first = norm_first});
    test::fill_with_hashed_weights(layer, {});
    layer.to(test_device());
    const Tensor x = cast(hashed_tensor("x", {2, 5, 12}), Dtype::bf16);
    const Tensor y = layer(x);
    CHECK(y.dtype() == Dtype::bf16);
    const Doubles wide = doubles(layer(cast(x, Dtype::f32)));
    const double error = largest_difference(doubles(cast(y, Dtype::f32)), wide);
    CHECK(error > 0);
    CHECK(error < 8 * 0x1p-9 * largest(wide));  // a rounding for each op on the way
  }
}

// --- weights

TEST_CASE("attention starts with PyTorch's distributions") {
  MultiheadAttention layer(48, 4, RngKey{5}), same(48, 4, RngKey{5}), other(48, 4, RngKey{6});
  const StateDict state = layer.state_dict(), again = same.state_dict();
  const StateDict another = other.state_dict();
  for (const auto& [name, tensor] : state) {
    CAPTURE(name);
    CHECK(doubles(tensor) == doubles(again.at(name)));
    if (name.ends_with("bias")) {
      CHECK(largest(doubles(tensor)) == 0);
      continue;
    }
    CHECK(doubles(tensor) != doubles(another.at(name)));
    const double bound = name == "out_proj.weight" ? 1 / std::sqrt(48.0) : std::sqrt(1.5 / 48.0);
    CHECK(largest(doubles(tensor)) <= bound * (1 + 1e-6));
    CHECK(largest(doubles(tensor)) > 0.99 * bound);  // of 2,304 draws
  }
  CHECK(doubles(state.at("q_proj.weight")) != doubles(state.at("k_proj.weight")));
  CHECK(doubles(state.at("k_proj.weight")) != doubles(state.at("v_proj.weight")));
}

TEST_CASE("weights of PyTorch, timm and BERT become those of our attention") {
  MultiheadAttention layer(12, 3, RngKey{5});
  test::fill_with_hashed_weights(layer, {});
  const StateDict ours = layer.state_dict();
  StateDict others;
  for (const std::string kind : {"weight", "bias"}) {
    const auto part = [&](const char* name) { return ours.at(name + ("." + kind)); };
    const Tensor packed = concat({part("q_proj"), part("k_proj"), part("v_proj")});
    others["torch.in_proj_" + kind] = others["timm.qkv." + kind] = packed;
    others["torch.out_proj." + kind] = others["timm.proj." + kind] =
        others["bert.output.dense." + kind] = part("out_proj");
    others["bert.self.query." + kind] = part("q_proj");
    others["bert.self.key." + kind] = part("k_proj");
    others["bert.self.value." + kind] = part("v_proj");
    // Not of an attention: timm's patches, BERT's MLP.
    others["patch_embed.proj." + kind] = others["output.dense." + kind] = part("out_proj");
    others["my_qkv." + kind] = part("out_proj");
  }
  const StateDict separated = separate_projections(others);
  CHECK(separated.size() == 3 * 8 + 6);
  for (const char* prefix : {"torch.", "timm.", "bert."}) {
    StateDict one;
    for (const auto& [name, tensor] : separated) {
      if (name.starts_with(prefix)) one[name.substr(std::string(prefix).size())] = tensor;
    }
    MultiheadAttention loaded(12, 3);
    loaded.load_strict(one, prefix);
    for (const auto& [name, tensor] : loaded.state_dict()) {
      CAPTURE(prefix + name);
      CHECK(doubles(tensor) == doubles(ours.at(name)));
    }
  }
  for (const char* name : {"patch_embed.proj.bias", "output.dense.weight", "my_qkv.weight"}) {
    CHECK(separated.contains(name));
  }
  throws_with("a.qkv.weight: expected the rows of queries, keys and values", [] {
    separate_projections({{"a.qkv.weight", Tensor::zeros({8, 4})}});
  });
}

TEST_CASE("what attention cannot take is refused with a remedy") {
  throws_with("a width of 10 does not divide into 3 heads; 2 or 5 would do",
              [] { MultiheadAttention(10, 3); });
  throws_with("does not divide into 8 heads; 4 would do", [] { MultiheadAttention(4, 8); });
  throws_with("at least 1 head, got 0", [] { MultiheadAttention(4, 0); });
  throws_with("Linear: expected positive sizes",
              [] { TransformerBlock({.width = 8, .heads = 2}); });
  throws_with("dropout in [0, 1), got 1",
              [] { TransformerBlock({.width = 8, .heads = 2, .hidden = 4, .dropout = 1}); });
  MultiheadAttention layer(12, 3, RngKey{1});
  const Tensor x = Tensor::zeros({2, 5, 12}), rows = Tensor::zeros({5, 12});
  throws_with("(batch, tokens, 12)", [&] { layer(rows); });
  throws_with("give their offsets", [&] { layer(rows); });
  throws_with("(batch, tokens, 12)", [&] { layer(Tensor::zeros({2, 5, 8})); });
  throws_with("(batch, tokens, 12)", [&] { layer(Tensor()); });
  const Sequences packed = Sequences::packed({2, 3}, kCpu);
  throws_with("packed sequences (tokens, 12)", [&] { layer(x, packed); });
  throws_with("ascend from 0 to 5", [&] { layer(rows, Sequences::packed({2, 4}, kCpu)); });
  throws_with("give one of the two", [&] { layer(rows, {Tensor::zeros({1}), packed.offsets}); });
  throws_with("lengths from 1 to 5", [] { Sequences::padded({3, 0}, 5, kCpu); });
  throws_with("lengths from 1 to 5", [] { Sequences::padded({6}, 5, kCpu); });
  throws_with("use packed()", [] { Sequences::padded({0}, 5, kCpu); });
  throws_with("lengths from 0, got -1", [] { Sequences::packed({-1}, kCpu); });
}

}  // namespace
}  // namespace graft
