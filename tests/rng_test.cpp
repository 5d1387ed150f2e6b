#include "engine/rng.h"

#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <set>

#include "kernels/philox.h"

using namespace graft;

namespace {

// philox() for a plain counter and key, as the published vectors state them.
std::vector<uint32_t> block(uint32_t c0, uint32_t c1, uint32_t c2, uint32_t c3, uint32_t k0,
                            uint32_t k1) {
  const RngKey key{(uint64_t{k1} << 32) | k0, c3, c2};
  const Philox4 words = philox(key, (uint64_t{c1} << 32) | c0);
  return {words.v, words.v + 4};
}

}  // namespace

TEST_CASE("Philox gives the published vectors") {
  // kat_vectors of Random123 (Salmon et al.), philox4x32 with 10 rounds.
  CHECK(block(0, 0, 0, 0, 0, 0) ==
        std::vector<uint32_t>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8});
  const uint32_t ones = 0xffffffff;
  CHECK(block(ones, ones, ones, ones, ones, ones) ==
        std::vector<uint32_t>{0x408f276d, 0x41c83b0e, 0xa20bc7c6, 0x6d5451fd});
  CHECK(block(0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344, 0xa4093822, 0x299f31d0) ==
        std::vector<uint32_t>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1});
}

TEST_CASE("every part of a key counts") {
  std::set<uint32_t> seen;
  for (const RngKey& key : {RngKey{0, 0, 0}, RngKey{1, 0, 0}, RngKey{0, 1, 0}, RngKey{0, 0, 1},
                            RngKey{uint64_t{1} << 32, 0, 0}}) {
    seen.insert(philox_word(key, 0));
    seen.insert(philox_word(key, 1));
    seen.insert(philox_word(key, uint64_t{1} << 34));
  }
  CHECK(seen.size() == 15);
}

TEST_CASE("a step's streams restart with the step") {
  begin_rng_step(5, 9);
  const RngKey first = next_key(), second = next_key();
  CHECK(first.stream != second.stream);
  begin_rng_step(5, 9);
  const RngKey again = next_key();
  CHECK(again.seed == first.seed);
  CHECK(again.step == first.step);
  CHECK(again.stream == first.stream);
}

TEST_CASE("uniform numbers fill their range evenly") {
  const int64_t n = 100000;
  const std::vector<float> values = uniform({n}, -1, 3, {11, 0, 0}).to_vector<float>();
  std::vector<int> bins(20);
  for (float value : values) {
    REQUIRE(value >= -1);
    REQUIRE(value < 3);
    ++bins[static_cast<size_t>((value + 1) * 5)];
  }
  // Chi-squared with 19 degrees of freedom: 43.8 is exceeded once in a thousand seeds.
  double chi = 0;
  for (int count : bins) chi += std::pow(count - n / 20.0, 2) / (n / 20.0);
  CHECK(chi < 43.8);
}

TEST_CASE("normal numbers have the moments of the distribution") {
  const int64_t n = 200000;
  const std::vector<float> values = normal({n}, 2, 3, {12, 0, 0}).to_vector<float>();
  double mean = 0, square = 0, fourth = 0;
  int64_t within = 0;
  for (float value : values) {
    const double z = (static_cast<double>(value) - 2) / 3;
    REQUIRE(std::isfinite(z));
    mean += z / n;
    square += z * z / n;
    fourth += z * z * z * z / n;
    within += std::fabs(z) < 1;
  }
  CHECK(std::fabs(mean) < 0.01);
  CHECK(std::fabs(square - 1) < 0.015);
  CHECK(std::fabs(fourth - 3) < 0.15);
  CHECK(std::fabs(within / static_cast<double>(n) - 0.6827) < 0.005);
}

TEST_CASE("a permutation holds every number once, and every place is as likely") {
  CHECK(permutation(0, {1, 0, 0}).empty());
  CHECK(permutation(1, {1, 0, 0}) == std::vector<int64_t>{0});
  std::vector<int64_t> order = permutation(1000, {1, 0, 0});
  CHECK(order == permutation(1000, {1, 0, 0}));
  CHECK(order != permutation(1000, {2, 0, 0}));
  std::sort(order.begin(), order.end());
  for (int64_t i = 0; i < 1000; ++i) CHECK(order[static_cast<size_t>(i)] == i);
  // All 24 orders of four: chi-squared with 23 degrees of freedom.
  std::vector<int> counts(256);
  const int trials = 24000;
  for (uint64_t seed = 0; seed < trials; ++seed) {
    const auto p = permutation(4, {seed, 0, 0});
    ++counts[static_cast<size_t>(p[0] | p[1] << 2 | p[2] << 4 | p[3] << 6)];
  }
  double chi = 0;
  int orders = 0;
  for (int count : counts) {
    if (count == 0) continue;
    ++orders;
    chi += std::pow(count - trials / 24.0, 2) / (trials / 24.0);
  }
  CHECK(orders == 24);
  CHECK(chi < 49.7);
}

TEST_CASE("a random stream repeats and stays in range") {
  RandomStream a({3, 4, 5}), b({3, 4, 5});
  for (int i = 0; i < 1000; ++i) {
    const double value = a.uniform();
    CHECK(value == b.uniform());
    REQUIRE(value >= 0);
    REQUIRE(value < 1);
    const int64_t below = a.below(7);
    CHECK(below == b.below(7));
    REQUIRE(below >= 0);
    REQUIRE(below < 7);
  }
}

TEST_CASE("tensors hold the key's words in order, whatever the threads") {
  const RngKey key{3, 4, 5};
  const int64_t n = 70001;
  const std::vector<float> even = uniform({n}, 0, 1, key).to_vector<float>();
  const std::vector<float> bell = normal({n}, 0, 1, key).to_vector<float>();
  int64_t different = 0;
  RandomStream random(key);
  for (int64_t i = 0; i < n; ++i) {
    const uint32_t word = philox_word(key, static_cast<uint64_t>(i));
    different += even[static_cast<size_t>(i)] != to_uniform(word);
    different += bell[static_cast<size_t>(i)] != static_cast<float>(random.normal());
  }
  CHECK(different == 0);
}
