// Division of indices.
#pragma once

#include <bit>
#include <cstdint>
#include <cuda_runtime.h>

namespace graft::cuda {

struct Quotient {
  int64_t whole, rest;
};

// a / b and what is left over, for a of 0 or more and b above 0. A division of 64 bits costs
// several times one of 32.
__device__ inline Quotient divide(int64_t a, int64_t b) {
  if (((a | b) >> 32) == 0) {
    const uint32_t small_a = static_cast<uint32_t>(a), small_b = static_cast<uint32_t>(b);
    const uint32_t whole = small_a / small_b;
    return {whole, small_a - whole * small_b};
  }
  const int64_t whole = a / b;
  return {whole, a - whole * b};
}

// Division by a number that is the same for a whole launch, made on the host: a multiplication and
// a shift. n / d = floor(n ceil(2^p / d) / 2^p) for n < 2^31 and p = 31 + ceil(log2 d) (T. Granlund
// and P. Montgomery, "Division by invariant integers using multiplication", PLDI 1994).
struct Divider {
  uint32_t divisor = 1, multiplier = 0, shift = 0;

  Divider() = default;
  // 0 < by < 2^31
  explicit Divider(int64_t by) : divisor(static_cast<uint32_t>(by)) {
    if (divisor == 1) return;
    const int power = 31 + std::bit_width(divisor - 1);
    multiplier = static_cast<uint32_t>(((uint64_t{1} << power) + divisor - 1) / divisor);
    shift = static_cast<uint32_t>(power - 32);
  }

  struct Result {
    uint32_t quotient, rest;
  };
  // 0 <= n < 2^31
  __device__ Result operator()(uint32_t n) const {
    const uint32_t quotient = divisor == 1 ? n : __umulhi(n, multiplier) >> shift;
    return {quotient, n - quotient * divisor};
  }
};

}  // namespace graft::cuda
