// Optimizers against double references and PyTorch's own trajectories; state in and out.
#include "engine/optim.h"

#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <omp.h>

#include "engine/rng.h"
#include "kernels/device.h"
#include "tests/support/op_table.h"

namespace graft::test {
namespace {

NamedParameter parameter(const std::string& name, const std::vector<float>& values) {
  Tensor tensor = Tensor::of(values).to(test_device());
  tensor.set_requires_grad();
  return {name, tensor};
}

void set_grad(const NamedParameter& p, const std::vector<float>& values) {
  Tensor tensor = p.tensor;
  tensor.set_grad(Tensor::of(values).to(test_device()));
}

std::vector<ParameterGroup> one_group(std::vector<NamedParameter> parameters, float rate,
                                      float decay) {
  return {{"all", std::move(parameters), rate, decay}};
}

// The gradient of step k (from 0) for the four numbers that the trajectories start from.
const std::vector<float> kStart{0.5f, -1.0f, 2.0f, 0.01f};
std::vector<float> gradient_of(int k) {
  const auto step = static_cast<float>(k);
  return {0.1f * (step + 1), -0.5f + 0.3f * step, k % 2 == 0 ? 1e-3f : -1e-3f, 2.0f};
}

using Make = std::function<std::unique_ptr<Optimizer>(std::vector<ParameterGroup>)>;
Make sgd(float momentum, bool nesterov = false) {
  return [=](std::vector<ParameterGroup> groups) {
    return make_sgd(std::move(groups), {momentum, nesterov});
  };
}
Make adamw(const AdamWOptions& options = {}) {
  return [=](std::vector<ParameterGroup> groups) { return make_adamw(std::move(groups), options); };
}

// Values after steps 2 and 5.
void check_trajectory(const Make& make, float rate, float decay, const std::vector<float>& golden) {
  NamedParameter p = parameter("p", kStart);
  const auto optimizer = make(one_group({p}, rate, decay));
  for (int k = 0; k < 5; ++k) {
    set_grad(p, gradient_of(k));
    optimizer->step();
    if (k != 1 && k != 4) continue;
    const std::vector<float> values = p.tensor.to_vector<float>();
    for (size_t i = 0; i < 4; ++i) {
      CHECK(values[i] == doctest::Approx(golden[(k == 1 ? 0 : 4) + i]).epsilon(3e-7));
    }
  }
}

}  // namespace

// PyTorch 2.15, float32, the same starting point and gradients.
TEST_CASE("AdamW and SGD walk as PyTorch's") {
  check_trajectory(adamw(), 0.01f, 0.1f,
                   {0.479358703f, -0.979025304f, 1.98653853f, -0.0100099891f, 0.449094355f,
                    -0.973864436f, 1.97571552f, -0.0399499983f});
  check_trajectory(adamw({0.8f, 0.95f, 1e-4f}), 0.02f, 0,
                   {0.460505486f, -0.962336361f, 1.98383844f, -0.0299980026f, 0.400919259f,
                    -0.964639485f, 1.9756099f, -0.0899949968f});
  check_trajectory(sgd(0.9f), 0.1f, 0.01f,
                   {0.459560484f, -0.882151008f, 1.99411213f, -0.569828987f, 0.176918432f,
                    -0.88741219f, 1.97352827f, -2.61275482f});
  check_trajectory(sgd(0.9f, true), 0.1f, 0.01f,
                   {0.432632893f, -0.822074115f, 1.99070656f, -0.911324024f, 0.0574934483f,
                    -0.944713652f, 1.96615756f, -3.34242415f});
  check_trajectory(sgd(0), 0.1f, 0,
                   {0.469999999f, -0.930000007f, 2.0f, -0.389999986f, 0.349999994f, -1.05000007f,
                    1.99989998f, -0.98999995f});
}

namespace {

// A step of many tensors of odd sizes, by the textbook in double.
struct Textbook {
  bool adam;
  double rate, decay, momentum = 0.9;
  bool nesterov = false;
  std::vector<double> m, v;
  int step = 0;
  void update(std::vector<double>& p, const std::vector<float>& g) {
    if (m.empty()) m = v = std::vector<double>(p.size(), 0.0);
    ++step;
    for (size_t i = 0; i < p.size(); ++i) {
      if (adam) {
        const double b1 = 0.9f, b2 = 0.999f;
        m[i] = b1 * m[i] + (1 - b1) * g[i];
        v[i] = b2 * v[i] + (1 - b2) * g[i] * g[i];
        const double mean = m[i] / (1 - std::pow(b1, step));
        const double deviation = std::sqrt(v[i] / (1 - std::pow(b2, step)));
        p[i] -= rate * decay * p[i] + rate * mean / (deviation + 1e-8);
      } else {
        const double d = g[i] + decay * p[i];
        m[i] = momentum * m[i] + d;
        p[i] -= rate * (nesterov ? d + momentum * m[i] : m[i]);
      }
    }
  }
};

}  // namespace

TEST_CASE("one pass updates many tensors, the same with any number of threads") {
  std::vector<int64_t> sizes{1, 0, 17, 40000, 3, 1024, 9999};
  sizes.insert(sizes.end(), 70, 5);  // more than one launch takes
  for (bool adam : {true, false}) {
    std::vector<std::vector<float>> results;
    const int all_threads = omp_get_max_threads();
    for (int threads : {all_threads, 1, 3}) {
      omp_set_num_threads(threads);
      cuda::set_thread_order(results.empty()       ? cuda::ThreadOrder::forward
                             : results.size() == 1 ? cuda::ThreadOrder::reverse
                                                   : cuda::ThreadOrder::random);
      std::vector<NamedParameter> parameters;
      std::vector<std::vector<double>> expected;
      std::vector<Textbook> books;
      uint32_t stream = 0;
      for (int64_t size : sizes) {
        // Every other one begins where 16-byte accesses cannot.
        const int64_t skipped = stream % 2;
        const Tensor all = uniform({skipped + size}, -1, 1, {5, 0, stream++}).to(test_device());
        Tensor tensor = narrow(all, skipped, size);
        const std::vector<float> values = tensor.to_vector<float>();
        expected.emplace_back(values.begin(), values.end());
        tensor.set_requires_grad();
        parameters.push_back({text("p", stream), tensor});
        books.push_back({adam, double{0.01f}, double{0.1f}, double{0.9f}, true, {}, {}});
      }
      const auto groups = one_group(parameters, 0.01f, 0.1f);
      const auto optimizer = adam ? make_adamw(groups, {}) : make_sgd(groups, {0.9f, true});
      for (int step = 0; step < 3; ++step) {
        for (size_t t = 0; t < sizes.size(); ++t) {
          const Tensor g = uniform({sizes[t]}, -1, 1,
                                   {6, static_cast<uint64_t>(step), static_cast<uint32_t>(t)});
          parameters[t].tensor.set_grad(g.to(test_device()));
          books[t].update(expected[t], g.to_vector<float>());
        }
        optimizer->step();
      }
      std::vector<float> all;
      for (size_t t = 0; t < sizes.size(); ++t) {
        const Array ours = to_array(parameters[t].tensor);
        CHECK(compare(ours, Array(ours.shape, expected[t]), 2e-6, 1e-6) == "");
        for (double value : ours.values) all.push_back(static_cast<float>(value));
      }
      results.push_back(std::move(all));
    }
    omp_set_num_threads(all_threads);
    cuda::set_thread_order(cuda::ThreadOrder::forward);
    CHECK(results[0] == results[1]);
    CHECK(results[0] == results[2]);
  }
}

TEST_CASE("a parameter without gradient does not move, and its steps are not counted") {
  for (bool adam : {true, false}) {
    NamedParameter moving = parameter("moving", kStart), idle = parameter("idle", kStart);
    NamedParameter frozen{"frozen", Tensor::of(kStart).to(test_device())};
    const auto groups = one_group({moving, idle, frozen}, 0.1f, 0.5f);
    const auto optimizer = adam ? make_adamw(groups, {}) : make_sgd(groups, {});
    const uint64_t before = moving.tensor.storage()->version();
    for (int k = 0; k < 3; ++k) {
      set_grad(moving, gradient_of(k));
      if (k == 2) set_grad(idle, gradient_of(0));
      const std::vector<float> idle_before = idle.tensor.to_vector<float>();
      optimizer->step();
      CHECK((idle.tensor.to_vector<float>() == idle_before) == (k < 2));
    }
    CHECK(moving.tensor.storage()->version() > before);
    CHECK(frozen.tensor.to_vector<float>() == kStart);
    // The late starter's first step is a first step.
    NamedParameter fresh = parameter("fresh", kStart);
    const auto other_groups = one_group({fresh}, 0.1f, 0.5f);
    const auto other = adam ? make_adamw(other_groups, {}) : make_sgd(other_groups, {});
    set_grad(fresh, gradient_of(0));
    other->step();
    CHECK(idle.tensor.to_vector<float>() == fresh.tensor.to_vector<float>());
    if (adam) {
      CHECK(optimizer->state().at("moving/step").to_vector<int64_t>() == std::vector<int64_t>{3});
      CHECK(optimizer->state().at("idle/step").to_vector<int64_t>() == std::vector<int64_t>{1});
    }
    CHECK(optimizer->state().count(adam ? "frozen/exp_avg" : "frozen/momentum") == 0);
    optimizer->zero_grad();
    CHECK_FALSE(moving.tensor.grad().defined());
  }
}

TEST_CASE("groups have their own learning rate, which may change between steps") {
  NamedParameter a = parameter("a", {1, 1}), b = parameter("b", {1, 1});
  const auto optimizer = make_sgd({{"a", {a}, 0.5f, 0}, {"b", {b}, 0.25f, 0}}, {0.0f, false});
  set_grad(a, {1, 1});
  set_grad(b, {1, 1});
  optimizer->step();
  CHECK(a.tensor.to_vector<float>() == std::vector<float>{0.5f, 0.5f});
  CHECK(b.tensor.to_vector<float>() == std::vector<float>{0.75f, 0.75f});
  optimizer->groups()[0].learning_rate = 0;
  optimizer->step();
  CHECK(a.tensor.to_vector<float>() == std::vector<float>{0.5f, 0.5f});
  CHECK(b.tensor.to_vector<float>() == std::vector<float>{0.5f, 0.5f});
}

TEST_CASE("state saved and restored gives the same bits") {
  for (const Make& make : {sgd(0.9f), sgd(0.9f, true), adamw()}) {
    const auto run = [&](bool interrupt) {
      NamedParameter p = parameter("fc.weight", kStart);
      auto optimizer = make(one_group({p}, 0.05f, 0.1f));
      for (int k = 0; k < 6; ++k) {
        if (interrupt && k == 3) {
          const std::map<std::string, Tensor> state = optimizer->state();
          p = parameter("fc.weight", p.tensor.to_vector<float>());
          optimizer = make(one_group({p}, 0.05f, 0.1f));
          optimizer->load_state(state);
        }
        set_grad(p, gradient_of(k));
        optimizer->step();
      }
      return p.tensor.to_vector<float>();
    };
    CHECK(run(false) == run(true));
  }
  // What was handed out is a copy.
  NamedParameter p = parameter("fc.weight", kStart);
  const auto optimizer = make_adamw(one_group({p}, 0.05f, 0), {});
  CHECK(optimizer->state().empty());
  set_grad(p, gradient_of(0));
  optimizer->step();
  auto state = optimizer->state();
  CHECK(state.size() == 3);
  CHECK(state.at("fc.weight/step").shape().empty());
  const std::vector<float> before = state.at("fc.weight/exp_avg").to_vector<float>();
  optimizer->step();
  CHECK(state.at("fc.weight/exp_avg").to_vector<float>() == before);
}

TEST_CASE("state that does not fit is refused and changes nothing") {
  NamedParameter p = parameter("fc.weight", kStart);
  const auto optimizer = make_adamw(one_group({p}, 0.05f, 0), {});
  set_grad(p, gradient_of(0));
  optimizer->step();
  auto state = optimizer->state();
  state["head.bias/exp_avg"] = Tensor::zeros({4});
  op_error("optimizer", "left over: head.bias/exp_avg", [&] { optimizer->load_state(state); });
  state = optimizer->state();
  state.erase("fc.weight/exp_avg_sq");
  op_error("optimizer", "missing: fc.weight/exp_avg_sq", [&] { optimizer->load_state(state); });
  state = optimizer->state();
  state.erase("fc.weight/step");
  op_error("optimizer", "missing: fc.weight/step", [&] { optimizer->load_state(state); });
  state = optimizer->state();
  state["fc.weight/exp_avg"] = Tensor::zeros({3});
  op_error("optimizer", "fc.weight/exp_avg: expected f32[4], got f32[3]",
           [&] { optimizer->load_state(state); });
  const auto other = make_sgd(one_group({p}, 0.05f, 0), {});
  state = optimizer->state();
  op_error("optimizer", "left over: fc.weight/exp_avg, ", [&] { other->load_state(state); });
  CHECK(optimizer->state().size() == 3);
}

TEST_CASE("optimizer settings are checked") {
  NamedParameter p = parameter("p", kStart), twin = p;
  op_error("optimizer", "the name p is there twice", [&] {
    make_sgd(one_group({p, parameter("p", kStart)}, 0.1f, 0), {});
  });
  twin.name = "twin";
  op_error("optimizer", "twin shares its memory with another parameter", [&] {
    make_sgd(one_group({p, twin}, 0.1f, 0), {});
  });
  op_error("sgd", "nesterov needs a momentum", [&] { make_sgd({}, {0.0f, true}); });
  op_error("adamw", "expected beta1 and beta2 in 0..1", [&] { make_adamw({}, {1.0f, 0.999f}); });
  const auto optimizer = make_sgd({}, {});
  optimizer->step();
  optimizer->groups().push_back({"late", {p}, 0.1f, 0});
  set_grad(p, gradient_of(0));
  op_error("sgd", "p was not there when the optimizer was made", [&] { optimizer->step(); });
}

TEST_CASE("clip_grad_norm") {
  NamedParameter a = parameter("a", {0, 0}), b = parameter("b", {0}), none = parameter("c", {0});
  const auto set = [&] {
    set_grad(a, {3, 4});
    set_grad(b, {12});
  };
  set();
  CHECK(clip_grad_norm({a, b, none}, 26) == 13.0f);
  CHECK(a.tensor.grad().to_vector<float>() == std::vector<float>{3, 4});
  CHECK(clip_grad_norm({a, b, none}, 6.5f) == 13.0f);
  CHECK(a.tensor.grad().to_vector<float>()[1] == doctest::Approx(2).epsilon(1e-6));
  CHECK(b.tensor.grad().to_vector<float>()[0] == doctest::Approx(6).epsilon(1e-6));
  CHECK(clip_grad_norm({none}, 1) == 0.0f);
  // Squares beyond the range of f32, and numbers that are none.
  set_grad(a, {3e30f, 4e30f});
  CHECK(clip_grad_norm({a}, 1) == 5e30f);
  CHECK(a.tensor.grad().to_vector<float>()[0] == doctest::Approx(0.6).epsilon(1e-6));
  for (float bad : {NAN, INFINITY}) {
    set();
    set_grad(b, {bad});
    CHECK_FALSE(std::isfinite(clip_grad_norm({a, b}, 1)));
    CHECK(a.tensor.grad().to_vector<float>() == std::vector<float>{3, 4});
  }
  // Sums of many pieces.
  std::vector<NamedParameter> many;
  double squares = 0;
  for (int64_t size : {70001, 1, 4096, 12345}) {
    const Tensor g = uniform({size}, -1, 1, {8, 0, static_cast<uint32_t>(size)});
    for (float v : g.to_vector<float>()) squares += double{v} * double{v};
    many.push_back(parameter(text("p", size), std::vector<float>(static_cast<size_t>(size))));
    many.back().tensor.set_grad(g.to(test_device()));
  }
  const auto norm = static_cast<float>(std::sqrt(squares));
  CHECK(clip_grad_norm(many, 2) == norm);
  CHECK(clip_grad_norm(many, 3) == doctest::Approx(2).epsilon(1e-6));
  op_error("clip_grad_norm", "expected max_norm of at least 0, got -1",
           [&] { clip_grad_norm({a}, -1); });
}

// Steps that clip on the way end where clip_grad_norm() and a step do: to the bit on the device,
// within a rounding of the gradient on the CPU, whose compiler contracts the product.
TEST_CASE("a step with a clip norm is clip_grad_norm and a step") {
  const std::vector<std::vector<float>> gradients{
      {3, 4, 0}, {0.1f, 0.2f, 0.3f}, {30, -40, 12}, {NAN, 1, 2}, {1e30f, 2e30f, -1e30f}};
  for (const Make& make : {sgd(0), sgd(0.9f), sgd(0.9f, true), adamw()}) {
    const std::vector<float> start{0.5f, -1, 2}, more(5000, 0.25f);
    NamedParameter a = parameter("a", start), b = parameter("b", more);
    NamedParameter c = parameter("a", start), d = parameter("b", more);
    const auto fused = make(one_group({a, b}, 0.1f, 0.01f));
    const auto apart = make(one_group({c, d}, 0.1f, 0.01f));
    fused->set_clip_norm(2);
    for (const std::vector<float>& gradient : gradients) {
      for (const NamedParameter& p : {a, c}) set_grad(p, gradient);
      for (const NamedParameter& p : {b, d}) {
        set_grad(p, std::vector<float>(more.size(), gradient[1] * 0.01f));
      }
      fused->step();
      CHECK(a.tensor.grad().to_vector<float>()[1] == gradient[1]);
      clip_grad_norm({c, d}, 2);
      apart->step();
      for (const auto& [got, wanted] : {std::pair{a, c}, std::pair{b, d}}) {
        const std::vector<float> x = got.tensor.to_vector<float>();
        const std::vector<float> y = wanted.tensor.to_vector<float>();
        for (size_t i = 0; i < x.size(); ++i) {
          REQUIRE(std::isnan(x[i]) == std::isnan(y[i]));
          if (std::isnan(y[i])) continue;
          const float most = test_device().is_cpu() ? 3e-7f * std::max(1.0f, std::abs(y[i])) : 0;
          REQUIRE(std::abs(x[i] - y[i]) <= most);
        }
      }
    }
  }
  // A gradient that two parameters share counts once, as in clip_grad_norm().
  NamedParameter a = parameter("a", {1, 1}), b = parameter("b", {1, 1});
  Tensor shared = Tensor::of<float>({3, 4}).to(test_device());
  for (NamedParameter* p : {&a, &b}) p->tensor.set_grad(shared);
  const auto optimizer = sgd(0)(one_group({a, b}, 1, 0));
  optimizer->set_clip_norm(2.5f);
  optimizer->step();
  CHECK(b.tensor.to_vector<float>()[1] == doctest::Approx(-1).epsilon(1e-6));
  op_error("optimizer", "expected a clip norm of at least 0, got -1",
           [&] { optimizer->set_clip_norm(-1); });
}

}  // namespace graft::test
