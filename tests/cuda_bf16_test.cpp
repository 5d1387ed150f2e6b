// bf16 matrix products on tensor cores against sums in double, the factors being what bf16 holds.
#include <cmath>
#include <cstdio>
#include <doctest/doctest.h>
#include <string>
#include <vector>

#include "kernels/cuda/gemm_bf16.h"
#include "kernels/device.h"

namespace {

using namespace graft;

constexpr Device kGpu{Device::Kind::cuda, 0};

float wide(uint16_t bits) { return __builtin_bit_cast(float, uint32_t{bits} << 16); }
// To nearest, ties to even; for finite numbers.
uint16_t narrow(double value) {
  const uint32_t bits = __builtin_bit_cast(uint32_t, static_cast<float>(value));
  return static_cast<uint16_t>((bits + 0x7FFF + (bits >> 16 & 1)) >> 16);
}

// Device memory with a copy of `host`, `shift` elements behind an aligned address.
template <class T>
class OnDevice {
 public:
  explicit OnDevice(const std::vector<T>& host, size_t shift = 0)
      : size_(host.size()), memory_(cuda::allocate((size_ + shift + 1) * sizeof(T), 0)) {
    REQUIRE(memory_ != nullptr);
    data_ = static_cast<T*>(memory_) + shift;
    cuda::copy(data_, kGpu, host.data(), kCpu, size_ * sizeof(T));
  }
  ~OnDevice() { cuda::release(memory_, 0); }
  OnDevice(const OnDevice&) = delete;
  OnDevice& operator=(const OnDevice&) = delete;
  T* data() const { return data_; }
  std::vector<T> read() const {
    std::vector<T> host(size_);
    cuda::copy(host.data(), kCpu, data_, kGpu, size_ * sizeof(T));
    return host;
  }

 private:
  size_t size_;
  void* memory_;
  T* data_;
};

// Between -1 and 1.
std::vector<uint16_t> factor(int64_t n, uint32_t seed) {
  std::vector<uint16_t> v(static_cast<size_t>(n));
  for (uint16_t& value : v) {
    seed = seed * 1664525u + 1013904223u;
    value = narrow((seed >> 8) / 8388608.0 - 1.0);
  }
  return v;
}

void check_product(const MatmulShape& s, size_t shift = 0) {
  const std::string row = std::to_string(s.batch) + " x " + std::to_string(s.m) + " x " +
                          std::to_string(s.k) + " x " + std::to_string(s.n) +
                          (s.transpose_a ? " a^T" : "") + (s.transpose_b ? " b^T" : "");
  INFO(row);
  const std::vector<uint16_t> a = factor((s.shared_a ? 1 : s.batch) * s.m * s.k, 1);
  const std::vector<uint16_t> b = factor((s.shared_b ? 1 : s.batch) * s.k * s.n, 2);
  std::vector<float> bias(static_cast<size_t>(s.n));
  for (size_t j = 0; j < bias.size(); ++j) bias[j] = 0.25f * static_cast<float>(j % 7) - 0.5f;
  const size_t outputs = static_cast<size_t>(s.batch * s.m * s.n);
  const OnDevice<uint16_t> left(a, shift), right(b, shift);
  const OnDevice<float> added(bias), result(std::vector<float>(outputs, NAN));
  const OnDevice<uint16_t> narrow_result(std::vector<uint16_t>(outputs, 0x7FC0));
  const float* bias_data = s.bias ? added.data() : nullptr;
  const auto run = [&] {
    cuda::matmul_bf16(s, result.data(), left.data(), right.data(), bias_data);
    return result.read();
  };
  const std::vector<float> y = run();
  cuda::matmul_bf16(s, narrow_result.data(), left.data(), right.data(), bias_data);
  const std::vector<uint16_t> narrow_y = narrow_result.read();

  // Room for f32 sums that are rounded towards zero, as tensor cores may. A product that is missing
  // or in the wrong place is thousands of times more.
  const double allowed = 2e-6 + 5e-8 * static_cast<double>(s.k);
  double worst = 0;
  bool rounded = true;
  for (int64_t q = 0; q < s.batch; ++q) {
    const uint16_t* qa = a.data() + (s.shared_a ? 0 : q * s.m * s.k);
    const uint16_t* qb = b.data() + (s.shared_b ? 0 : q * s.k * s.n);
    for (int64_t i = 0; i < s.m; ++i) {
      for (int64_t j = 0; j < s.n; ++j) {
        double sum = s.bias ? bias[static_cast<size_t>(j)] : 0.0;
        for (int64_t p = 0; p < s.k; ++p) {
          sum += double{wide(qa[s.transpose_a ? p * s.m + i : i * s.k + p])} *
                 wide(qb[s.transpose_b ? j * s.k + p : p * s.n + j]);
        }
        const size_t at = static_cast<size_t>((q * s.m + i) * s.n + j);
        const double error = std::abs(y[at] - sum);
        if (!(error <= worst)) worst = error;
        rounded = rounded && narrow_y[at] == narrow(y[at]);
      }
    }
  }
  CHECK(worst <= allowed);
  CHECK(rounded);
  if (!cuda::is_simulated()) return;
  for (const auto order : {cuda::ThreadOrder::reverse, cuda::ThreadOrder::random}) {
    cuda::set_thread_order(order, 5);
    CHECK(run() == y);
  }
  cuda::set_thread_order(cuda::ThreadOrder::forward);
}

}  // namespace

TEST_CASE("bf16 products") {
  if (cuda::device_count() == 0) {
    std::printf("SKIPPED: bf16 products (no CUDA device)\n");
    return;
  }
  for (bool ta : {false, true}) {
    for (bool tb : {false, true}) {
      const auto shape = [&](int64_t batch, int64_t m, int64_t n, int64_t k) {
        return MatmulShape{
            .batch = batch, .m = m, .n = n, .k = k, .transpose_a = ta, .transpose_b = tb};
      };
      check_product(shape(1, 1, 1, 1));
      check_product(shape(1, 16, 8, 16));
      check_product(shape(1, 64, 64, 32));
      check_product(shape(1, 65, 70, 33));     // one element at a time
      check_product(shape(1, 72, 80, 104));    // edges of tiles and of k
      check_product(shape(1, 16, 24, 40), 1);  // not aligned
      check_product(shape(1, 8, 16, 1032));    // k cut into chunks
      check_product(shape(1, 9, 15, 300));     // likewise, and one at a time
      MatmulShape more = shape(3, 24, 40, 48);
      more.bias = true;
      more.shared_b = true;
      check_product(more);
      more.shared_b = false;
      more.shared_a = true;
      check_product(more);
    }
  }
  // The large tile.
  check_product({.batch = 96, .m = 72, .n = 64, .k = 40, .transpose_b = true, .bias = true});
  check_product({.batch = 96, .m = 64, .n = 72, .k = 8, .transpose_a = true});
}
