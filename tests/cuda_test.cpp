// The CUDA backend: what it says where there is no device, and its pointwise kernels where there is
// one.
#include <algorithm>
#include <cmath>
#include <cstdio>
#include <doctest/doctest.h>
#include <vector>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "engine/step_graph.h"
#include "engine/upload.h"
#include "kernels/cuda/scratch.h"
#include "kernels/device.h"

namespace {

using namespace graft;

constexpr Device kGpu{Device::Kind::cuda, 0};

bool device_present() { return cuda::device_count() > 0; }

bool skip(const char* what) {
  if (device_present()) return false;
  std::printf("SKIPPED: %s (%s)\n", what, kHasCuda ? "no CUDA device" : "built without CUDA");
  return true;
}

// Odd sizes, and a start that is not aligned to 16 bytes.
std::vector<float> values(int64_t n) {
  std::vector<float> v(static_cast<size_t>(n));
  for (size_t i = 0; i < v.size(); ++i) {
    v[i] = 0.25f + static_cast<float>(i * 2654435761u % 1000) / 500.0f;
  }
  return v;
}

void check_close(const std::vector<float>& got, const std::vector<double>& wanted) {
  REQUIRE(got.size() == wanted.size());
  for (size_t i = 0; i < got.size(); ++i) {
    INFO("element " << i);
    CHECK(std::abs(double{got[i]} - wanted[i]) <= 2e-6 * std::max(1.0, std::abs(wanted[i])));
  }
}

}  // namespace

TEST_CASE(
    "without a device everything runs on the CPU, and device memory is refused with the reason") {
  if (device_present()) return;
  const Tensor x = Tensor::of<float>({1, -2, 3});
  CHECK(relu(x).to_vector<float>() == std::vector<float>{1, 0, 3});
  if constexpr (kHasCuda) {
    CHECK(cuda::device_count() == 0);
    CHECK_THROWS_WITH_AS(x.to(kGpu), doctest::Contains("no usable CUDA device"), Error);
  } else {
    CHECK_THROWS_WITH_AS(x.to(kGpu), doctest::Contains("this build of graft has no CUDA backend"),
                         Error);
  }
}

TEST_CASE("copies to the device and back keep every byte") {
  if (skip("copies")) return;
  const std::vector<float> v = values(100003);
  const Tensor x = Tensor::of(v).to(kGpu);
  CHECK(x.device() == kGpu);
  CHECK(x.to(kCpu).to_vector<float>() == v);
  CHECK(x.clone().to_vector<float>() == v);
  CHECK_THROWS_WITH_AS(x.to({Device::Kind::cuda, 1}), doctest::Contains("CUDA_VISIBLE_DEVICES"),
                       Error);
}

TEST_CASE("a fill reaches every element and no other") {
  if (skip("fill")) return;
  for (const int64_t start : {0, 1, 4}) {
    const Tensor x = Tensor::zeros({1031}, Dtype::f32, kGpu);
    narrow(x, start, 1023).fill(2.5f);
    std::vector<float> wanted(1031, 0.0f);
    std::fill_n(wanted.begin() + start, 1023, 2.5f);
    CHECK(x.to_vector<float>() == wanted);
  }
}

TEST_CASE("memory that the device lacks is refused with what there is and who has it") {
  if (skip("too much memory")) return;
  const Tensor held = Tensor::full({1000}, 1.0f, kGpu);
  const auto too_much = [] { Tensor({int64_t{1} << 22, int64_t{1} << 20}, Dtype::f32, kGpu); };
  CHECK_THROWS_WITH_AS(too_much(), doctest::Contains("out of memory on cuda:0: 17592186044416"),
                       Error);
  CHECK_THROWS_WITH_AS(too_much(), doctest::Contains("other programs. Try a smaller batch"), Error);
  CHECK(held.to_vector<float>() == std::vector<float>(1000, 1.0f));
}

TEST_CASE("temporary results may have the memory of freed tensors") {
  if (skip("temporary results without memory")) return;
  if (!cuda::is_simulated()) return;  // a real one's memory takes long to fill
  constexpr size_t kMiB = size_t{1} << 20;
  release_cached_memory(kGpu);
  cuda::limit_simulated_memory(64 * kMiB);
  const Tensor held = Tensor::zeros({int64_t{8} << 20}, Dtype::u8, kGpu);
  (void)Tensor::zeros({int64_t{48} << 20}, Dtype::u8, kGpu);
  CHECK(memory_stats(kGpu).cached >= 48 * kMiB);
  CHECK(cuda::scratch("softmax", 50 * kMiB) != nullptr);
  CHECK(memory_stats(kGpu).cached == 0);
  const std::string in_use =
      std::to_string(memory_stats(kGpu).in_use) + " in use by tensors, 0 cached";
  try {
    cuda::scratch("softmax", 200 * kMiB);
    FAIL("there is no such memory");
  } catch (const Error& error) {
    const std::string message = error.what();
    CAPTURE(message);
    CHECK(message.starts_with(
        "softmax: out of memory on cuda:0: 209715200 bytes wanted for temporary"));
    CHECK(message.find(in_use) != std::string::npos);
    CHECK(message.find("other programs. Try a smaller batch") != std::string::npos);
  }
  cuda::limit_simulated_memory(0);
}

TEST_CASE("pointwise kernels, aligned and not, agree with formulas in double") {
  if (skip("pointwise kernels")) return;
  for (const int64_t n : {1, 3, 1023, 100003}) {
    for (const int64_t start : {0, 1}) {
      const std::vector<float> v = values(n + start);
      const Tensor x = narrow(Tensor::of(v).to(kGpu), start, n);
      std::vector<double> gelu_wanted, product_wanted;
      for (size_t i = static_cast<size_t>(start); i < v.size(); ++i) {
        const double a = double{v[i]};
        gelu_wanted.push_back(0.5 * a * std::erfc(-a * std::sqrt(0.5)));
        product_wanted.push_back(a * a);
      }
      check_close(gelu(x).to_vector<float>(), gelu_wanted);
      check_close(mul(x, x).to_vector<float>(), product_wanted);
    }
  }
}

TEST_CASE("broadcasting walks both operands") {
  if (skip("broadcasting")) return;
  for (const int64_t columns : {4, 5}) {
    const std::vector<float> va = values(7 * columns), vb = values(columns);
    const Tensor a = Tensor::of(va, {7, columns}).to(kGpu), b = Tensor::of(vb, {columns}).to(kGpu);
    std::vector<double> wanted;
    for (size_t i = 0; i < va.size(); ++i) {
      wanted.push_back(double{va[i]} / double{vb[i % static_cast<size_t>(columns)]});
    }
    check_close(div(a, b).to_vector<float>(), wanted);
  }
}

TEST_CASE("grad_reverse turns the gradient round on the device") {
  if (skip("grad_reverse")) return;
  Tensor x = Tensor::of<float>({1, 2, 3}).to(kGpu);
  x.set_requires_grad();
  backward(grad_reverse(x, 0.5f), Tensor::of<float>({1, 1, 4}).to(kGpu));
  CHECK(x.grad().to_vector<float>() == std::vector<float>{-0.5f, -0.5f, -2.0f});
}

// Six tensors of two sizes; the host's memory of each is used again when the allocator allows it.
TEST_CASE("uploads arrive whole while the device works on those before") {
  if (skip("uploads")) return;
  for (const bool pinned : {true, false}) {
    std::vector<Tensor> sums;
    std::vector<std::vector<float>> wanted;
    Upload upload(kGpu);
    const auto start = [&](int i) {
      Tensor host = pinned ? pinned_tensor({i < 3 ? 500 : 1000}) : Tensor({i < 3 ? 500 : 1000});
      std::fill_n(host.mutable_data<float>(), host.numel(), static_cast<float>(i));
      upload.start(host);
    };
    start(0);
    for (int i = 0; i < 6; ++i) {
      const Tensor x = upload.take();
      sums.push_back(add(x, x));
      wanted.emplace_back(static_cast<size_t>(x.numel()), 2 * static_cast<float>(i));
      if (i < 5) start(i + 1);
    }
    upload.start(pinned_tensor({10}));  // never taken
    for (size_t i = 0; i < 6; ++i) CHECK(sums[i].to_vector<float>() == wanted[i]);
  }
  Upload upload(kGpu);
  CHECK_THROWS_WITH_AS(upload.take(), doctest::Contains("nothing was started"), Error);
  CHECK_THROWS_WITH_AS(upload.start(Tensor::zeros({1}, Dtype::f32, kGpu)),
                       doctest::Contains("expected a tensor on the CPU"), Error);
}

TEST_CASE("recorded work runs when it is told to, as often as it is told to") {
  if (skip("graphs")) return;
  const Tensor x = Tensor::of<float>({1, 2, 3}).to(kGpu);
  Tensor y = Tensor::full({3}, 0.0f, kGpu);
  StepGraph graph(kGpu);
  CHECK_THROWS_WITH_AS(graph.run(), doctest::Contains("nothing was recorded"), Error);
  graph.record([&] { y.copy_from(add(y, mul(x, 2.0f))); });
  CHECK(y.to_vector<float>() == std::vector<float>{0, 0, 0});
  graph.run();
  graph.run();
  CHECK(y.to_vector<float>() == std::vector<float>{4, 8, 12});
}

TEST_CASE("what is recorded keeps its memory to itself") {
  if (skip("memory of graphs")) return;
  release_cached_memory(kGpu);
  const int64_t n = 1000;
  const Tensor x = Tensor::full({n}, 3.0f, kGpu);
  Tensor result;
  std::vector<Tensor> others;
  {
    StepGraph graph(kGpu);
    graph.record([&] { result = exp(mul(add(x, 1.0f), 0.0f)); });  // two temporaries
    for (float value = 0; value < 8; ++value) others.push_back(Tensor::full({n}, value, kGpu));
    graph.run();
    CHECK(result.to_vector<float>() == std::vector<float>(n, 1.0f));
    for (size_t i = 0; i < others.size(); ++i) {
      CHECK(others[i].to_vector<float>() == std::vector<float>(n, static_cast<float>(i)));
    }
  }
  // Afterwards it is ordinary memory, and the result still stands.
  CHECK(result.to_vector<float>() == std::vector<float>(n, 1.0f));
  CHECK(memory_stats(kGpu).cached > 0);
}

TEST_CASE("what waits for the device cannot be recorded, and does no harm") {
  if (skip("refused recordings")) return;
  const Tensor x = Tensor::of<float>({1, 2, 3}).to(kGpu);
  StepGraph graph(kGpu);
  CHECK_THROWS_AS(graph.record([&] { (void)sum(x).item(); }), Error);
  CHECK_FALSE(graph.recorded());
  CHECK(mul(x, 2.0f).to_vector<float>() == std::vector<float>{2, 4, 6});
  graph.record([&] { (void)mul(x, 2.0f); });
  graph.run();
}

TEST_CASE("numbers that change from step to step are read from the device") {
  if (skip("step numbers")) return;
  StepNumbers numbers(kGpu, 2);
  const Tensor x = Tensor::full({64}, 1.0f, kGpu);
  const auto eager = [&](uint64_t step) {
    return dropout(x, 0.5f, true, {7, step, 3}).to_vector<float>();
  };
  Tensor dropped;
  StepGraph graph(kGpu);
  graph.record([&] { dropped = dropout(x, 0.5f, true, {7, 0, 3, numbers.rng_step()}); });
  for (const uint64_t step : {5u, 6u}) {
    numbers.set(step, {});
    graph.run();
    CHECK(dropped.to_vector<float>() == eager(step));
  }
  CHECK(eager(5) != eager(6));
  CHECK_THROWS_AS(numbers.set(1, std::vector<OptimRates>(3)), Error);
}
