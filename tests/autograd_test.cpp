// The tape: accumulation, reuse, errors, depth, memory.
#include "engine/autograd.h"

#include <cmath>
#include <doctest/doctest.h>
#include <string>
#include <vector>

#include "engine/ops.h"

using namespace graft;

namespace {

Tensor leaf(const std::vector<float>& values) { return Tensor::of(values).set_requires_grad(); }
std::vector<float> grad_of(const Tensor& x) { return x.grad().to_vector<float>(); }

template <class Call>
std::string error_of(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

using Floats = std::vector<float>;

}  // namespace

TEST_CASE("a diamond adds up the gradients of both ways") {
  Tensor x = leaf({1, 2, 3});
  const Tensor a = mul(x, 2.0f), b = mul(x, x);
  backward(sum(mul(a, b)));  // 2 x^3
  CHECK(grad_of(x) == Floats{6, 24, 54});
}

TEST_CASE("a node waits for all of its users, whatever the order of recording") {
  Tensor x = leaf({2});
  const Tensor a = mul(x, 3.0f);
  const Tensor late = mul(a, a);
  const Tensor later = mul(late, a);                // a^3
  backward(sum(add(add(a, later), mul(a, 5.0f))));  // a + a^3 + 5 a, a = 3 x
  CHECK(grad_of(x) == Floats{3 * (6 + 3 * 36)});
}

TEST_CASE("one tensor as several inputs of an op") {
  Tensor x = leaf({1, -2});
  backward(sum(add(x, x)));
  CHECK(grad_of(x) == Floats{2, 2});
  x.zero_grad();
  backward(sum(concat({x, x, x})));
  CHECK(grad_of(x) == Floats{3, 3});
  x.zero_grad();
  backward(sum(sub(x, x)));
  CHECK(grad_of(x) == Floats{0, 0});
}

TEST_CASE("gradients of two backward passes add up") {
  Tensor x = leaf({1, 2});
  backward(sum(mul(x, x)));
  const Tensor first = x.grad();
  backward(sum(mul(x, x)));
  CHECK(grad_of(x) == Floats{4, 8});
  CHECK(first.to_vector<float>() == Floats{2, 4});  // what was handed out does not change
}

TEST_CASE("leaves do not share a gradient") {
  Tensor a = leaf({1}), b = leaf({2});
  backward(add(a, b));
  CHECK(a.grad().storage() != b.grad().storage());
  Tensor seed = Tensor::of<float>({7});
  Tensor c = leaf({1});
  backward(c, seed);
  CHECK(c.grad().storage() != seed.storage());
  CHECK(grad_of(c) == Floats{7});
}

TEST_CASE("an explicit gradient weights the output") {
  Tensor x = leaf({1, 2, 3});
  backward(mul(x, x), Tensor::of<float>({1, 10, 100}));
  CHECK(grad_of(x) == Floats{2, 40, 600});
}

TEST_CASE("nothing is recorded when nothing wants a gradient") {
  const Tensor frozen = Tensor::of<float>({1, 2});
  Tensor x = leaf({3, 4});
  const int64_t before = recorded_nodes();
  const Tensor y = exp(add(mul(frozen, frozen), 1.0f));
  CHECK(!y.requires_grad());
  {
    NoGrad no_grad;
    CHECK(!grad_enabled());
    const Tensor z = exp(mul(x, x));
    CHECK(!z.requires_grad());
    { NoGrad inner; }
    CHECK(!grad_enabled());
  }
  CHECK(grad_enabled());
  CHECK(recorded_nodes() == before);
  backward(sum(mul(x, y)));
  CHECK(recorded_nodes() == before + 2);
  CHECK(!frozen.grad().defined());
}

TEST_CASE("detach cuts the graph") {
  Tensor x = leaf({3});
  const Tensor y = mul(x, x);
  backward(mul(y.detach(), x));
  CHECK(grad_of(x) == Floats{9});
  CHECK(y.detach().storage() == y.storage());
}

TEST_CASE("what is not kept is freed, what is kept is freed with the graph") {
  release_cached_memory();
  const size_t before = memory_stats().in_use;
  {
    Tensor x = Tensor::zeros({1 << 16}).set_requires_grad();
    const size_t block = memory_stats().in_use - before;
    Tensor y = relu(x);
    for (int i = 0; i < 3; ++i) y = add(neg(y), 1.0f);   // derivatives that read nothing
    CHECK(memory_stats().in_use - before == 3 * block);  // x, relu's result, the last
    y = Tensor();
    CHECK(memory_stats().in_use - before == block);
  }
  CHECK(memory_stats().in_use == before);
}

TEST_CASE("changing a saved tensor in place is an error that names the op") {
  Tensor x = leaf({1, 2});
  const Tensor y = exp(x);
  const Tensor loss = sum(mul(y, y));
  Tensor alias = y.detach();
  alias.fill(0);
  const std::string message = error_of([&] { backward(loss); });
  CHECK(contains(message, "mul: a tensor saved for the backward pass was changed in place"));
  CHECK(contains(message, "clone()"));
  // A change of what nobody saved is fine.
  Tensor a = leaf({1, 2});
  Tensor b = mul(a, 3.0f);
  const Tensor total = sum(b);
  Tensor other = b.detach();
  other.fill(0);
  backward(total);
  CHECK(grad_of(a) == Floats{3, 3});
}

TEST_CASE("a second backward through the same graph is an error that names the op") {
  Tensor x = leaf({1, 2});
  const Tensor loss = sum(mul(x, x));
  backward(loss);
  CHECK(contains(error_of([&] { backward(loss); }), "sum: backward ran through this op before"));
  CHECK(grad_of(x) == Floats{2, 4});
}

TEST_CASE("misuse is named") {
  Tensor x = leaf({1, 2});
  CHECK(contains(error_of([&] { backward(mul(x, x)); }),
                 "backward: expected one element (a loss), got f32[2]"));
  CHECK(contains(error_of([&] { backward(Tensor::scalar(1)); }),
                 "backward: nothing here wants a gradient"));
  CHECK(contains(error_of([&] { backward(mul(x, x), Tensor::zeros({3})); }),
                 "backward: expected a gradient of f32[2], got f32[3]"));
  Tensor y = mul(x, x);
  CHECK(contains(error_of([&] { y.set_requires_grad(); }),
                 "set_requires_grad: this tensor is the result of mul"));
  CHECK(contains(error_of([&] { Tensor::of<int64_t>({1}).set_requires_grad(); }),
                 "set_requires_grad: expected f32, got i64[1]"));
  CHECK(contains(error_of([&] { x.set_grad(Tensor::zeros({3})); }),
                 "set_grad: expected shape [2], got [3]"));
  const Tensor wrong_count =
      record("odd", {x}, x.detach(), [](const Tensor&, const Needs&) { return Grads{}; });
  CHECK(contains(error_of([&] { backward(sum(wrong_count)); }),
                 "odd: its backward returned 0 gradients for 1 inputs"));
  const Tensor wrong_shape = record("odd", {x}, x.detach(), [](const Tensor&, const Needs&) {
    return Grads{Tensor::zeros({3})};
  });
  CHECK(contains(error_of([&] { backward(sum(wrong_shape)); }),
                 "odd: its backward returned a gradient of f32[3] for input 0 of f32[2]"));
}

TEST_CASE("an input without gradient receives none") {
  Tensor x = leaf({1, 2});
  const Tensor y = record("stops", {x}, x.detach(), [](const Tensor&, const Needs& needs) {
    CHECK(needs == Needs{true});
    return Grads{Tensor()};
  });
  backward(sum(add(y, mul(x, 2.0f))));
  CHECK(grad_of(x) == Floats{2, 2});
}

TEST_CASE("a graph far deeper than the call stack runs and is freed") {
  constexpr int kDepth = 300000;
  Tensor x = leaf({1});
  {
    Tensor y = x;
    for (int i = 0; i < kDepth; ++i) y = add(y, 1.0f);
    backward(y);
    CHECK(grad_of(x) == Floats{1});
  }
  {
    Tensor y = x;
    for (int i = 0; i < kDepth; ++i) y = add(y, 1.0f);  // freed without running
  }
  {
    Tensor y = x;
    for (int i = 0; i < 1000; ++i) y = add(y, y);  // 2^1000 ways, one visit each
    NoGrad no_grad;
  }
  CHECK(x.node().use_count() == 1);
}

TEST_CASE("running out of memory anywhere leaves everything usable") {
  const auto step = [](Tensor& x, Tensor& w) {
    const Tensor h = relu(mul(x, w));
    backward(mean(mul(concat({h, exp(slice(h, 0, 0, 2))}), 3.0f)));
  };
  Tensor x = leaf({1, -2, 3, 4}), w = leaf({0.5f, 1, -1, 2});
  step(x, w);
  const Floats wanted_x = grad_of(x), wanted_w = grad_of(w);
  const size_t in_use = memory_stats().in_use;
  int failures = 0;
  for (int64_t nth = 1;; ++nth) {
    x.zero_grad();
    w.zero_grad();
    fail_allocation(nth);
    const std::string message = error_of([&] { step(x, w); });
    fail_allocation(0);
    if (message == "no error") break;
    ++failures;
    REQUIRE(contains(message, "out of memory on cpu"));
    REQUIRE(grad_enabled());
    REQUIRE(memory_stats().in_use <= in_use);
    REQUIRE(nth < 1000);
  }
  CHECK(failures > 10);
  CHECK(grad_of(x) == wanted_x);
  CHECK(grad_of(w) == wanted_w);
  CHECK(memory_stats().in_use == in_use);
}

TEST_CASE("running out of memory names the op, forward and backward") {
  Tensor x = leaf({1, -2, 3, 4});
  const auto fault = [](int64_t nth, const auto& run) {
    fail_allocation(nth);
    const std::string message = error_of(run);
    fail_allocation(0);
    return message;
  };
  CHECK(contains(fault(1, [&] { relu(x); }), "out of memory on cpu in relu: 16 bytes wanted"));
  const Tensor y = relu(x), g = Tensor::full({4}, 1.0f);
  CHECK(contains(fault(1, [&] { backward(y, g); }), "out of memory on cpu in backward > relu: 16"));
  CHECK(contains(fault(1, [&] { Tensor plain({4}); }), "out of memory on cpu: 16 bytes wanted"));
}

TEST_CASE("a gradient that could not be added to is as it was") {
  Tensor x = leaf({1, 2});
  backward(sum(mul(x, 2.0f)));
  const Tensor seen = x.grad();  // so that adding needs fresh memory
  for (int64_t nth = 1;; ++nth) {
    fail_allocation(nth);
    const std::string message = error_of([&] { backward(sum(mul(x, 2.0f))); });
    fail_allocation(0);
    REQUIRE(x.grad().defined());
    if (message == "no error") break;
    CHECK(grad_of(x) == Floats{2, 2});
  }
  CHECK(grad_of(x) == Floats{4, 4});
  CHECK(seen.to_vector<float>() == Floats{2, 2});
}
