// Softmax, log-softmax and their gradients along the middle axis of (outer, axis, inner).
//
//   y = e^(x - max) / sum;        dx = y (g - sum(g y))
//   y = x - max - log(sum);       dx = g - e^y sum(g)
//
// Source: Milakov and Gimelshein, Online normalizer calculation for softmax (2018).
// Layout: contiguous f32; 16 bytes a load where alignment and the row length allow it, else 4. Rows
// (inner 1) of up to 1024 elements stay in the registers of one warp or less: read once, written
// once. Longer rows are a block's: one pass for maximum and sum together, one to write. With inner
// above 1 a thread takes a column, and neighbours read neighbours.
// Numerics: f32; the maximum is subtracted first, so no finite input overflows. A row with NaN or
// +inf, or of -inf only, becomes NaN, as in PyTorch.
// Determinism: a row's tree depends on its length alone.
#include <cmath>
#include <cstdint>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr int kWide = kPackWidth<float>;

// What is written, once a row's sum is known.
template <bool kLog>
struct Forward {
  float max, factor;  // factor: 1 / sum, or its log
  __device__ Forward(float max_, float sum)
      : max(max_), factor(kLog ? std::log(sum) : 1.0f / sum) {}
  __device__ float operator()(float x) const {
    return kLog ? (x - max) - factor : fn::fast_exp(x - max) * factor;
  }
};
// The gradient's sum is over term(y, g).
template <bool kLog>
struct Backward {
  float sum;
  __device__ static float term(float y, float g) { return kLog ? g : g * y; }
  __device__ float operator()(float y, float g) const {
    return kLog ? g - fn::fast_exp(y) * sum : y * (g - sum);
  }
};

// A thread's part of a row of n <= lanes * kWidth * kPacks elements, `fill` beyond the end.
template <int kWidth, int kPacks>
struct RowPart {
  float v[kPacks * kWidth];

  __device__ RowPart(const float* row, int n, const Team<false>& team, float fill) {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int j = at(p, team);
      Pack<float, kWidth> pack;
      for (float& value : pack.v) value = fill;
      if (j < n) pack = load<kWidth>(row + j);
      for (int k = 0; k < kWidth; ++k) v[p * kWidth + k] = pack.v[k];
    }
  }
  __device__ void write(float* row, int n, const Team<false>& team) const {
#pragma unroll
    for (int p = 0; p < kPacks; ++p) {
      const int j = at(p, team);
      Pack<float, kWidth> pack;
      for (int k = 0; k < kWidth; ++k) pack.v[k] = v[p * kWidth + k];
      if (j < n) store(row + j, pack);
    }
  }
  __device__ static int at(int p, const Team<false>& team) {
    return static_cast<int>(p * team.size() + team.rank()) * kWidth;
  }
};

template <bool kLog, int kWidth, int kPacks>
__global__ void short_rows_kernel(float* y, const float* x, int64_t rows, int64_t axis,
                                  Team<false> team) {
  team.for_rows(rows, [&](int64_t row, bool there) {
    const int n = there ? static_cast<int>(axis) : 0;
    RowPart<kWidth, kPacks> part(x + row * axis, n, team, -INFINITY);
    float max = part.v[0], sum = 0;
#pragma unroll
    for (const float value : part.v) max = Largest{}(max, value);
    max = team.reduce(max, Largest{});
#pragma unroll
    for (float& value : part.v) {
      const float power = fn::fast_exp(value - max);
      sum += power;
      if constexpr (!kLog) value = power;
    }
    sum = team.reduce(sum, Sum{});
    const float factor = kLog ? std::log(sum) : 1.0f / sum;
#pragma unroll
    for (float& value : part.v) value = kLog ? (value - max) - factor : value * factor;
    part.write(y + row * axis, n, team);
  });
}

template <bool kLog, int kWidth, int kPacks>
__global__ void short_rows_grad_kernel(float* dx, const float* y, const float* g, int64_t rows,
                                       int64_t axis, Team<false> team) {
  using Grad = Backward<kLog>;
  team.for_rows(rows, [&](int64_t row, bool there) {
    const int n = there ? static_cast<int>(axis) : 0;
    const RowPart<kWidth, kPacks> py(y + row * axis, n, team, 0);
    RowPart<kWidth, kPacks> part(g + row * axis, n, team, 0);
    float sum = 0;
#pragma unroll
    for (int k = 0; k < kWidth * kPacks; ++k) sum += Grad::term(py.v[k], part.v[k]);
    const Grad grad{team.reduce(sum, Sum{})};
#pragma unroll
    for (int k = 0; k < kWidth * kPacks; ++k) part.v[k] = grad(py.v[k], part.v[k]);
    part.write(dx + row * axis, n, team);
  });
}

template <bool kLog, int kWidth>
__global__ void long_rows_kernel(float* y, const float* x, int64_t rows, int64_t axis) {
  const Team<true> team;
  team.for_rows(rows, [&](int64_t row, bool) {
    const float* from = x + row * axis;
    ExpSum powers;
    team.for_items<kWidth>(axis, [&](int64_t j) { powers.add(load<kWidth>(from + j)); });
    powers = powers.over(team);
    const Forward<kLog> forward(powers.max, powers.sum);
    team.for_items<kWidth>(axis, [&](int64_t j) {
      Pack<float, kWidth> pack = load<kWidth>(from + j);
      for (float& value : pack.v) value = forward(value);
      store(y + row * axis + j, pack);
    });
  });
}

template <bool kLog, int kWidth>
__global__ void long_rows_grad_kernel(float* dx, const float* y, const float* g, int64_t rows,
                                      int64_t axis) {
  using Grad = Backward<kLog>;
  const Team<true> team;
  team.for_rows(rows, [&](int64_t row, bool) {
    const int64_t first = row * axis;
    float sum = 0;
    team.for_items<kWidth>(axis, [&](int64_t j) {
      const Pack<float, kWidth> py = load<kWidth>(y + first + j), pg = load<kWidth>(g + first + j);
      for (int k = 0; k < kWidth; ++k) sum += Grad::term(py.v[k], pg.v[k]);
    });
    const Grad grad{team.reduce(sum, Sum{})};
    team.for_items<kWidth>(axis, [&](int64_t j) {
      const Pack<float, kWidth> py = load<kWidth>(y + first + j);
      Pack<float, kWidth> pack = load<kWidth>(g + first + j);
      for (int k = 0; k < kWidth; ++k) pack.v[k] = grad(py.v[k], pack.v[k]);
      store(dx + first + j, pack);
    });
  });
}

// Calls body(offset) with the first element of every column.
template <class Body>
__device__ void for_columns(int64_t outer, int64_t axis, int64_t inner, const Body& body) {
  for_packs<1>(outer * inner, [&]<int>(int64_t i) { body(i / inner * axis * inner + i % inner); });
}

template <bool kLog>
__global__ void columns_kernel(float* y, const float* x, int64_t outer, int64_t axis,
                               int64_t inner) {
  for_columns(outer, axis, inner, [&](int64_t at) {
    ExpSum powers;
    for (int64_t a = 0; a < axis; ++a) powers.add(load<1>(x + at + a * inner));
    const Forward<kLog> forward(powers.max, powers.sum);
    for (int64_t a = 0; a < axis; ++a) y[at + a * inner] = forward(x[at + a * inner]);
  });
}

template <bool kLog>
__global__ void columns_grad_kernel(float* dx, const float* y, const float* g, int64_t outer,
                                    int64_t axis, int64_t inner) {
  for_columns(outer, axis, inner, [&](int64_t at) {
    Backward<kLog> grad{0};
    for (int64_t a = 0; a < axis; ++a) {
      grad.sum += Backward<kLog>::term(y[at + a * inner], g[at + a * inner]);
    }
    for (int64_t a = 0; a < axis; ++a) {
      const int64_t i = at + a * inner;
      dx[i] = grad(y[i], g[i]);
    }
  });
}

// Calls use(width, packs), as constants, with what holds a short row of n elements.
template <class Use>
void visit_part(bool wide, int64_t n, const Use& use) {
  const auto packs = [&]<int kWidth>(std::integral_constant<int, kWidth> width) {
    if (n <= 32 * 4) return use(width, std::integral_constant<int, 4 / kWidth>{});
    if (n <= 32 * 8) return use(width, std::integral_constant<int, 8 / kWidth>{});
    if (n <= 32 * 16) return use(width, std::integral_constant<int, 16 / kWidth>{});
    use(width, std::integral_constant<int, 32 / kWidth>{});
  };
  if (wide) {
    packs(std::integral_constant<int, kWide>{});
  } else {
    packs(std::integral_constant<int, 1>{});
  }
}

template <bool kLog>
void forward(const char* op, float* y, const float* x, int64_t outer, int64_t axis, int64_t inner) {
  if (inner != 1) {
    launch(op, grid_for(outer * inner), 0, columns_kernel<kLog>, y, x, outer, axis, inner);
    return;
  }
  const bool wide = axis % kWide == 0 && aligned({y, x});
  if (axis > kLongRow) {
    launch(op, grid_of_blocks(outer), 0,
           wide ? long_rows_kernel<kLog, kWide> : long_rows_kernel<kLog, 1>, y, x, outer, axis);
    return;
  }
  visit_part(wide, axis,
             [&]<int kWidth, int kPacks>(std::integral_constant<int, kWidth>,
                                         std::integral_constant<int, kPacks>) {
               const Team<false> team = lanes_for(axis, kWidth * kPacks);
               launch(op, grid_of(team, outer), 0, short_rows_kernel<kLog, kWidth, kPacks>, y, x,
                      outer, axis, team);
             });
}

template <bool kLog>
void backward(const char* op, float* dx, const float* y, const float* g, int64_t outer,
              int64_t axis, int64_t inner) {
  if (inner != 1) {
    launch(op, grid_for(outer * inner), 0, columns_grad_kernel<kLog>, dx, y, g, outer, axis, inner);
    return;
  }
  const bool wide = axis % kWide == 0 && aligned({dx, y, g});
  if (axis > kLongRow) {
    launch(op, grid_of_blocks(outer), 0,
           wide ? long_rows_grad_kernel<kLog, kWide> : long_rows_grad_kernel<kLog, 1>, dx, y, g,
           outer, axis);
    return;
  }
  visit_part(wide, axis,
             [&]<int kWidth, int kPacks>(std::integral_constant<int, kWidth>,
                                         std::integral_constant<int, kPacks>) {
               const Team<false> team = lanes_for(axis, kWidth * kPacks);
               launch(op, grid_of(team, outer), 0, short_rows_grad_kernel<kLog, kWidth, kPacks>, dx,
                      y, g, outer, axis, team);
             });
}

}  // namespace

void softmax(float* y, const float* x, int64_t outer, int64_t axis, int64_t inner) {
  forward<false>("softmax", y, x, outer, axis, inner);
}
void softmax_grad(float* dx, const float* y, const float* g, int64_t outer, int64_t axis,
                  int64_t inner) {
  backward<false>("softmax_grad", dx, y, g, outer, axis, inner);
}
void log_softmax(float* y, const float* x, int64_t outer, int64_t axis, int64_t inner) {
  forward<true>("log_softmax", y, x, outer, axis, inner);
}
void log_softmax_grad(float* dx, const float* y, const float* g, int64_t outer, int64_t axis,
                      int64_t inner) {
  backward<true>("log_softmax_grad", dx, y, g, outer, axis, inner);
}

}  // namespace graft::cuda
