// Tensor and Storage: construction, views, copies, versions, the allocator and its test hooks.
#include "engine/tensor.h"

#include <cmath>
#include <cstring>
#include <doctest/doctest.h>
#include <limits>
#include <memory>
#include <sstream>
#include <string>
#include <thread>

using namespace graft;

namespace {

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

TEST_CASE("shape, size and type of a new tensor") {
  const Tensor x({2, 3, 4});
  CHECK(x.rank() == 3);
  CHECK(x.numel() == 24);
  CHECK(x.bytes() == 96);
  CHECK(x.dtype() == Dtype::f32);
  CHECK(x.dim(-1) == 4);
  CHECK(reinterpret_cast<uintptr_t>(x.raw()) % 64 == 0);
  CHECK(Tensor(Shape{}).numel() == 1);
  CHECK(Tensor({3, 0}).numel() == 0);
  CHECK(Tensor({5}, Dtype::bf16).bytes() == 10);
  std::ostringstream text;
  text << x << ' ' << Tensor() << ' ' << Tensor({1}, Dtype::u8);
  CHECK(text.str() == "f32[2, 3, 4] an undefined tensor u8[1]");
  CHECK(contains(error_of([&] { (void)x.dim(3); }), "dim: axis 3 is outside a shape of [2, 3, 4]"));
}

TEST_CASE("impossible shapes are refused") {
  CHECK(contains(error_of([] { Tensor x({2, -1}); }), "sizes cannot be negative"));
  const int64_t big = int64_t{1} << 40;
  CHECK(contains(error_of([&] { Tensor x({big, big}); }), "too many elements"));
  CHECK(contains(error_of([&] { Tensor x({big, 1 << 22}); }), "too many elements"));
#ifndef __SANITIZE_ADDRESS__  // which ends the program where malloc would return null
  CHECK(contains(error_of([&] { Tensor x({big, 1 << 16}); }), "out of memory on cpu"));
#endif
  CHECK(contains(error_of([] {
                   Tensor::of<float>({1, 2}, {3});
                 }),
                 "Tensor::of: shape [3] wants 3 values, got 2"));
}

TEST_CASE("values go in and come out") {
  CHECK(Tensor::of<float>({1, 2, 3, 4}, {2, 2}).to_vector<float>() == Floats{1, 2, 3, 4});
  CHECK(Tensor::of<int64_t>({1, -2}).to_vector<int64_t>() == std::vector<int64_t>{1, -2});
  CHECK(Tensor::zeros({3}).to_vector<float>() == Floats{0, 0, 0});
  CHECK(Tensor::full({2}, 1.5f).to_vector<float>() == Floats{1.5f, 1.5f});
  CHECK(Tensor::scalar(2).item() == 2);
  CHECK(contains(error_of([] { (void)Tensor::zeros({2}).item(); }),
                 "item: expected one element, got f32[2]"));
  CHECK(contains(error_of([] { (void)Tensor().item(); }), "item: expected one element"));
  CHECK(contains(error_of([] { (void)Tensor::zeros({2}).data<int64_t>(); }),
                 "tensor: expected i64 elements, this one has f32[2]"));
  CHECK(contains(error_of([] { (void)Tensor().data<float>(); }),
                 "tensor: used before it was given a value"));
}

TEST_CASE("views share memory, copies do not") {
  Tensor x = Tensor::of<float>({0, 1, 2, 3, 4, 5}, {3, 2});
  const Tensor view = view_as(x, {2, 3}), rows = narrow(x, 1, 2), copy = x.clone();
  CHECK(rows.to_vector<float>() == Floats{2, 3, 4, 5});
  CHECK(rows.shape() == Shape{2, 2});
  CHECK(narrow(rows, 1, 1).to_vector<float>() == Floats{4, 5});
  CHECK(narrow(x, 3, 0).numel() == 0);
  x.mutable_data<float>()[2] = 9;
  CHECK(view.to_vector<float>() == Floats{0, 1, 9, 3, 4, 5});
  CHECK(rows.to_vector<float>() == Floats{9, 3, 4, 5});
  CHECK(copy.to_vector<float>() == Floats{0, 1, 2, 3, 4, 5});
  CHECK(contains(error_of([&] { view_as(x, {4}); }), "view: f32[3, 2] cannot take the shape [4]"));
  CHECK(contains(error_of([] { view_as(Tensor(), {0}); }), "view: an undefined tensor"));
  CHECK(contains(error_of([&] { narrow(x, 2, 2); }), "are outside f32[3, 2]"));
  CHECK(contains(error_of([&] { narrow(x, -1, 1); }), "are outside f32[3, 2]"));
  CHECK(contains(error_of([&] { narrow(x, 1, std::numeric_limits<int64_t>::max()); }),
                 "are outside f32[3, 2]"));
  CHECK(contains(error_of([&] { Tensor t(x.storage(), 4, {3}, Dtype::f32); }), "does not fit"));
  CHECK(contains(error_of([&] { Tensor t(x.storage(), -1, {3}, Dtype::f32); }), "does not fit"));
}

TEST_CASE("every way of writing counts as a change") {
  Tensor x = Tensor::zeros({2});
  uint64_t version = x.storage()->version();
  const auto changed = [&] {
    const uint64_t before = version;
    version = x.storage()->version();
    return version != before;
  };
  (void)x.data<float>();
  (void)x.to_vector<float>();
  CHECK(!changed());
  (void)x.mutable_data<float>();
  CHECK(changed());
  x.fill(3);
  CHECK(changed());
  x.copy_from(Tensor::of<float>({1, 2}));
  CHECK(changed());
  Tensor view = view_as(x, {1, 2});
  view.fill(0);
  CHECK(changed());
  CHECK(contains(error_of([&] { x.copy_from(Tensor::zeros({3})); }),
                 "copy_from: expected f32[2], got f32[3]"));
  CHECK(contains(error_of([&] { x.copy_from(Tensor()); }), "got an undefined tensor"));
}

TEST_CASE("borrowed memory lives as long as a tensor uses it") {
  auto owner = std::make_shared<std::vector<float>>(Floats{1, 2, 3, 4});
  const std::weak_ptr<std::vector<float>> alive = owner;
  float* data = owner->data();
  Tensor x(std::make_shared<Storage>(data, 16, std::move(owner)), 1, {3}, Dtype::f32);
  CHECK(x.to_vector<float>() == Floats{2, 3, 4});
  CHECK(!alive.expired());
  x = Tensor();
  CHECK(alive.expired());
}

TEST_CASE("freed blocks are used again, and given back on request") {
  release_cached_memory();
  const MemoryStats before = memory_stats();
  const void* first;
  {
    const Tensor x({100000});
    first = x.raw();
    CHECK(memory_stats().in_use >= before.in_use + 400000);
  }
  CHECK(memory_stats().in_use == before.in_use);
  CHECK(memory_stats().cached >= 400000);
  { CHECK(Tensor({100000}).raw() == first); }
  release_cached_memory();
  CHECK(memory_stats().cached == 0);
}

TEST_CASE("the peak is remembered until it is reset") {
  reset_peak_memory();
  const size_t start = memory_stats().in_use;
  { const Tensor a({1 << 20}), b({1 << 20}); }
  CHECK(memory_stats().peak_in_use >= start + (size_t{8} << 20));
  reset_peak_memory();
  CHECK(memory_stats().peak_in_use == memory_stats().in_use);
}

TEST_CASE("running out of memory says how much was wanted") {
  fail_allocation(2);
  const Tensor first({4});
  const std::string message = error_of([] { Tensor x({1000}); });
  CHECK(contains(message, "out of memory on cpu: 4000 bytes wanted"));
  CHECK(contains(message, "smaller batch"));
  CHECK(Tensor({1000}).defined());  // once only
  fail_allocation(0);
}

TEST_CASE("fresh memory is poisoned and a write past the end is noticed") {
  poison_fresh_memory(true);
  {
    Tensor x({1000});
    for (float value : x.to_vector<float>()) REQUIRE(std::isnan(value));
    x.fill(1);
  }
  CHECK(damaged_guards() == 0);
  {
    Tensor x({13}, Dtype::u8);
    static_cast<char*>(x.raw())[13] = 0;
  }
  CHECK(damaged_guards() == 1);
  { const Tensor x({0}); }
  poison_fresh_memory(false);
  CHECK(damaged_guards() == 1);
}

TEST_CASE("tensors made and dropped by many threads leave nothing behind") {
  const size_t before = memory_stats().in_use;
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([t] {
      Tensor kept;
      for (int i = 0; i < 2000; ++i) {
        Tensor x = Tensor::full({(i * 37 + t) % 500 + 1}, static_cast<float>(t));
        if (i % 3 == 0) kept = x;
        if (kept.data<float>()[0] != static_cast<float>(t)) throw Error("memory of another thread");
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(memory_stats().in_use == before);
}
