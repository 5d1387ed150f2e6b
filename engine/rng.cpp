#include "engine/rng.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <numeric>

#include "kernels/cpu/parallel.h"
#include "kernels/philox.h"

namespace graft {
namespace {

thread_local RngKey current;

}  // namespace

void begin_rng_step(uint64_t seed, uint64_t step, const uint64_t* step_at) {
  current = {seed, step, 0, step_at};
}

RngKey next_key() {
  const RngKey key = current;
  ++current.stream;
  return key;
}

Tensor uniform(Shape shape, float low, float high, RngKey key) {
  Tensor result(std::move(shape));
  float* values = result.mutable_data<float>();
  cpu::parallel_for(result.numel(), 8, [=](int64_t begin, int64_t end) {
    RandomStream random(key, static_cast<uint64_t>(begin));
    for (int64_t i = begin; i < end; ++i) {
      values[i] = low + (high - low) * to_uniform(random.bits());
    }
  });
  return result;
}

Tensor normal(Shape shape, float mean, float stddev, RngKey key) {
  Tensor result(std::move(shape));
  float* values = result.mutable_data<float>();
  cpu::parallel_for(result.numel(), 32, [=](int64_t begin, int64_t end) {
    // A normal number takes four words.
    RandomStream random(key, static_cast<uint64_t>(begin) * 4);
    for (int64_t i = begin; i < end; ++i) {
      values[i] = mean + stddev * static_cast<float>(random.normal());
    }
  });
  return result;
}

std::vector<int64_t> permutation(int64_t n, RngKey key) {
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), int64_t{0});
  RandomStream random(key);
  for (int64_t i = n - 1; i > 0; --i) {
    std::swap(order[static_cast<size_t>(i)], order[static_cast<size_t>(random.below(i + 1))]);
  }
  return order;
}

uint32_t RandomStream::bits() {
  const uint64_t block = index_ >> 2;
  if (block != block_) {
    const Philox4 fresh = philox(key_, block);
    std::copy_n(fresh.v, 4, words_);
    block_ = block;
  }
  return words_[index_++ & 3];
}
double RandomStream::uniform() {
  const uint64_t high = bits() >> 5, low = bits() >> 6;
  return static_cast<double>((high << 26) | low) * 0x1p-53;
}
// Box-Muller; the second number of each pair is not used, so that the stream has no hidden state.
double RandomStream::normal() {
  const double radius = std::sqrt(-2.0 * std::log(1.0 - uniform()));
  return radius * std::cos(2.0 * std::numbers::pi * uniform());
}
int64_t RandomStream::below(int64_t n) {
  // Multiply-shift on 64 random bits: the bias is below n / 2^64.
  const uint64_t word = (static_cast<uint64_t>(bits()) << 32) | bits();
  return static_cast<int64_t>((static_cast<unsigned __int128>(word) * static_cast<uint64_t>(n)) >>
                              64);
}

}  // namespace graft
