#include "kernels/simt/tensor_core.h"

#include <cstring>

namespace graft::simt {
namespace {

constexpr unsigned kDepth = 16;

float element(uint32_t pair, unsigned half) {
  return __builtin_bit_cast(float, pair >> (16 * half) << 16);
}

}  // namespace

void exchange_matrices(uint32_t (&result)[4], const void* row, bool transposed,
                       const Where& where) {
  Exchange* exchange = begin_exchange("ldmatrix", ~0u, row, 16, where);
  const unsigned lane = here().lane();
  for (unsigned matrix = 0; matrix < 4; ++matrix) {
    uint16_t pair[2];
    for (unsigned half = 0; half < 2; ++half) {
      const unsigned down = transposed ? lane % 4 * 2 + half : lane / 4;
      const unsigned across = transposed ? lane / 4 : lane % 4 * 2 + half;
      std::memcpy(&pair[half], brought_by(exchange, matrix * 8 + down) + 2 * across, 2);
    }
    result[matrix] = pair[0] | uint32_t{pair[1]} << 16;
  }
  end_exchange(exchange);
}

void multiply_matrices(float (&c)[4], const MmaFactors& mine, const Where& where) {
  Exchange* exchange = begin_exchange("mma", ~0u, &mine, sizeof mine, where);
  const unsigned lane = here().lane();
  // This lane's two rows of a and two columns of b.
  double rows[2][kDepth], columns[2][kDepth];
  for (unsigned pair = 0; pair < 4; ++pair) {
    MmaFactors left, right[2];
    std::memcpy(&left, brought_by(exchange, lane / 4 * 4 + pair), sizeof left);
    for (unsigned i = 0; i < 2; ++i) {
      std::memcpy(&right[i], brought_by(exchange, (lane % 4 * 2 + i) * 4 + pair), sizeof left);
    }
    for (unsigned k = 0; k < 4; ++k) {  // at depths 2 pair, 2 pair + 1, and those 8 further
      const unsigned depth = k / 2 * 8 + pair * 2 + k % 2;
      for (unsigned i = 0; i < 2; ++i) {
        rows[i][depth] = element(left.a[k / 2 * 2 + i], k % 2);
        columns[i][depth] = element(right[i].b[k / 2], k % 2);
      }
    }
  }
  end_exchange(exchange);
  for (unsigned i = 0; i < 4; ++i) {
    double sum = c[i];
    for (unsigned k = 0; k < kDepth; ++k) sum += rows[i / 2][k] * columns[i % 2][k];
    c[i] = static_cast<float>(sum);
  }
}

}  // namespace graft::simt
