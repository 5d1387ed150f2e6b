// bf16 beside f32: the same op on the numbers that bf16 holds, computed in f32 and rounded once, in
// both directions. Rows of the op table in bf16 are in the tests of the ops' families.
#include <cmath>

#include "kernels/element.h"
#include "layers/models/zoo.h"
#include "tests/support/op_table.h"

using namespace graft;
using namespace graft::test;

namespace {

// Numbers that bf16 holds exactly, on the test's device.
Tensor held(const Shape& shape, uint64_t seed, float low = -2, float high = 2) {
  const Tensor x = uniform(shape, low, high, {seed, 0, 0});
  return cast(cast(x, Dtype::bf16), Dtype::f32).to(test_device());
}

std::vector<float> floats(const Tensor& x) { return cast(x, Dtype::f32).to_vector<float>(); }

// The largest difference, in units of the largest number.
double distance(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = floats(a), y = floats(b);
  REQUIRE(x.size() == y.size());
  double most = 0, size = 1e-30;
  for (size_t i = 0; i < x.size(); ++i) {
    most = std::max(most, std::fabs(static_cast<double>(x[i]) - y[i]));
    size = std::max(size, std::fabs(static_cast<double>(y[i])));
  }
  return most / size;
}

// op in both types: results and gradients agree to a rounding (2^-9 of each number, so of the
// largest one), and have the argument's type.
void same_row(const char* op, const Tensor& x, const std::function<Tensor(const Tensor&)>& call) {
  CAPTURE(op);
  Tensor wide = x.clone(), leaf = x.clone();
  wide.set_requires_grad();
  leaf.set_requires_grad();
  const Tensor expected = call(wide), got = call(cast(leaf, Dtype::bf16));
  CHECK(got.dtype() == Dtype::bf16);
  CHECK(distance(got, expected) <= 0x1p-8);
  const Tensor g = held(expected.shape(), 99);
  backward(expected, g);
  backward(got, cast(g, Dtype::bf16));
  CHECK(distance(leaf.grad(), wide.grad()) <= 0x1p-7);
}

}  // namespace

TEST_CASE("ops in bf16 are f32's, rounded") {
  const Tensor images = held({2, 7, 6, 8}, 1), rows = held({33, 40}, 2);
  const Tensor weight = held({40}, 3), bias = held({40}, 4), divisor = held({40}, 5, 1, 2);
  same_row("layer_norm", rows, [&](const Tensor& x) { return layer_norm(x, weight, bias); });
  same_row("group_norm", images,
           [&](const Tensor& x) { return group_norm(x, 4, Tensor(), Tensor()); });
  same_row("max_pool2d", images, [](const Tensor& x) { return max_pool2d(x, {3, 3, 2, 2}); });
  same_row("avg_pool2d", images, [](const Tensor& x) { return avg_pool2d(x, {3, 3, 2, 2}); });
  same_row("adaptive_avg_pool2d", images,
           [](const Tensor& x) { return adaptive_avg_pool2d(x, 1, 1); });
  same_row("sum", rows, [](const Tensor& x) { return sum(x, {0}); });
  same_row("mean", rows, [](const Tensor& x) { return mean(x, {1}); });
  same_row("dropout", rows, [](const Tensor& x) { return dropout(x, 0.3f, true, {7, 1, 2}); });
  same_row("drop_path", rows, [](const Tensor& x) { return drop_path(x, 0.3f, true, {7, 1, 2}); });
  same_row("slice", rows, [](const Tensor& x) { return slice(x, 1, 3, 9); });
  same_row("permute", images, [](const Tensor& x) { return permute(x, {0, 3, 1, 2}); });
  same_row("gelu", rows, [](const Tensor& x) { return gelu(x); });
  same_row("silu", rows, [](const Tensor& x) { return silu(x); });
  same_row("add", rows, [&](const Tensor& x) { return add(x, cast(weight, x.dtype())); });
  same_row("mul", rows, [&](const Tensor& x) { return mul(cast(weight, x.dtype()), x); });
  same_row("div", rows, [&](const Tensor& x) { return div(x, cast(divisor, x.dtype())); });
  // Pixels for many large tiles, and sums over them that are cut; the same in elements one by one.
  for (const int64_t channels : {8, 3}) {
    const Tensor filters = held({8, 3, 3, channels}, 6, -0.1f, 0.1f);
    Tensor wide = filters.clone(), narrow = filters.clone();
    const Conv2dOptions same{.padding = Padding::symmetric(1, 1)};
    for (Tensor* w : {&wide, &narrow}) w->set_requires_grad();
    same_row("conv2d", held({1, 111, 112, channels}, 7), [&](const Tensor& x) {
      return conv2d(x, x.dtype() == Dtype::bf16 ? narrow : wide, Tensor(), same);
    });
    CHECK(narrow.grad().dtype() == Dtype::f32);
    CHECK(distance(narrow.grad(), wide.grad()) <= 0x1p-7);
  }
  // Its parameters are f32, too, and their gradients f32 sums; the hidden values are rounded.
  for (const Gelu form : {Gelu::exact, Gelu::tanh}) {
    const std::vector<Tensor> parameters{held({24, 40}, 10, -0.2f, 0.2f), held({24}, 11),
                                         held({16, 24}, 12, -0.2f, 0.2f), held({16}, 13)};
    std::vector<Tensor> wide, narrow;
    for (const Tensor& parameter : parameters) {
      wide.push_back(parameter.clone().set_requires_grad());
      narrow.push_back(parameter.clone().set_requires_grad());
    }
    same_row("feed_forward", rows, [&](const Tensor& x) {
      const auto& p = x.dtype() == Dtype::bf16 ? narrow : wide;
      return feed_forward(x, p[0], p[1], p[2], p[3], form);
    });
    for (size_t i = 0; i < parameters.size(); ++i) {
      CHECK(narrow[i].grad().dtype() == Dtype::f32);
      CHECK(distance(narrow[i].grad(), wide[i].grad()) <= 0x1p-7);
    }
  }
  // Two gradients for one tensor.
  same_row("mul", rows, [](const Tensor& x) { return mul(x, x); });
}

TEST_CASE("batch_norm in bf16: activation and residual") {
  const Tensor x = held({70, 24}, 5), weight = held({24}, 7, 0.5f, 2);
  const Tensor bias = held({24}, 8), residual = held({70, 24}, 6);
  for (const bool training : {true, false}) {
    for (const Activation activation : {Activation::none, Activation::relu, Activation::relu6}) {
      for (const bool adds : {false, true}) {
        CAPTURE(training);
        CAPTURE(static_cast<int>(activation));
        CAPTURE(adds);
        std::vector<Tensor> results, gradients, means;
        for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
          Tensor leaf = x.clone(), own = weight.clone();
          leaf.set_requires_grad();
          own.set_requires_grad();
          Tensor mean = Tensor::zeros({24}, Dtype::f32, test_device());
          Tensor var = Tensor::full({24}, 1, test_device());
          BatchNormOptions options;
          options.training = training;
          options.activation = activation;
          const Tensor y = batch_norm(cast(leaf, dtype), own, bias, mean, var, options,
                                      adds ? cast(residual, dtype) : Tensor());
          CHECK(y.dtype() == dtype);
          results.push_back(y.detach());
          backward(y, cast(held({70, 24}, 9), dtype));
          CHECK(own.grad().dtype() == Dtype::f32);
          gradients.push_back(own.grad());
          means.push_back(mean);
        }
        CHECK(distance(results[1], results[0]) <= 0x1p-8);
        // Statistics and the gradients of parameters are not rounded. With a residual the mask is
        // made from the rounded result, which may reach a bound.
        CHECK(distance(means[1], means[0]) <= 1e-6);
        CHECK(distance(gradients[1], gradients[0]) <= (adds ? 0.05 : 1e-5));
      }
    }
  }
}

TEST_CASE("arguments of one op have one type, parameters are f32") {
  const Tensor x = cast(held({4, 6}, 1), Dtype::bf16), w = held({3, 6}, 2);
  op_error("add", "expected b to be bf16 as the first argument, got f32[4, 6]", [&] {
    add(x, held({4, 6}, 3));
  });
  op_error("linear", "expected an f32 weight", [&] { linear(x, cast(w, Dtype::bf16)); });
  op_error("batch_norm", "expected an f32 tensor as weight", [&] {
    Tensor mean = Tensor::zeros({6}, Dtype::f32, test_device()), var = mean.clone();
    batch_norm(x, cast(held({6}, 4), Dtype::bf16), Tensor(), mean, var, {});
  });
}

TEST_CASE("a network in bf16 follows its f32 self") {
  const Tensor images = held({2, 32, 32, 3}, 1);
  const Tensor target = Tensor::of<int64_t>({0, 2}).to(test_device());
  std::vector<Tensor> logits, gradients;
  for (const Dtype precision : {Dtype::f32, Dtype::bf16}) {
    const auto model = make_model("small_cnn", {.classes = 3}, {.seed = 1});
    model->to(test_device());
    model->set_precision(precision);
    const Tensor y = model->forward(images);
    CHECK(y.dtype() == Dtype::f32);
    logits.push_back(y.detach());
    backward(cross_entropy(y, target));
    for (const auto& parameter : model->named_parameters()) {
      REQUIRE(parameter.tensor->grad().defined());
      CHECK(parameter.tensor->grad().dtype() == Dtype::f32);
      if (parameter.name == model->head_name() + ".weight") {
        gradients.push_back(parameter.tensor->grad());
      }
    }
  }
  CHECK(distance(logits[1], logits[0]) < 0.03);
  CHECK(distance(logits[1], logits[0]) > 0);
  REQUIRE(gradients.size() == 2);
  CHECK(distance(gradients[1], gradients[0]) < 0.05);
}
