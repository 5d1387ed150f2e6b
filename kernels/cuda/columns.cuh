// Statistics and affine maps of the columns of a row-major matrix, or of many of them (samples):
// what batch-norm and group-norm share. Batch-norm is one sample whose channels are groups of one.
//
// A block takes a tile of at most 64 packs of neighbouring columns and a chunk of rows. A thread
// keeps one pack of columns, whose coefficients stay in its registers, and walks down the rows;
// threads side by side read neighbouring addresses, also across the ends of rows where the tile is
// a whole row. The cut depends on the shape (and on whether 16-byte packs are possible) alone.
//
// Maps that follow a reduction walk the chunks from the last to the first: what the reduction read
// last is still in the second-level cache.
//
// Numerics: a thread sums up to 256 rows in f32; threads and chunks are merged in double.
#pragma once

#include <algorithm>
#include <cstdint>
#include <limits>
#include <type_traits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/isa.h"
#include "kernels/types.h"

namespace graft::cuda {

struct ColumnCut {
  int64_t samples, rows, channels;  // rows of one sample
  int packs = 1, lanes = 1;         // of a block: packs in a row, and rows side by side
  int chunk_rows = 1;
  int64_t tiles = 0, chunks = 0;  // chunks of one sample

  Grid grid() const { return {samples * chunks, kThreads, tiles}; }
  // Two numbers a column for every chunk: what the reductions leave.
  int64_t partials() const { return 2 * samples * chunks * channels; }
};

inline ColumnCut cut_columns(int64_t samples, int64_t rows, int64_t channels, int width) {
  constexpr int64_t kMostPacks = 64, kBlocks = 1024, kFewestRows = 8, kMostRows = 256;
  ColumnCut cut{samples, rows, channels};
  if (samples == 0 || rows == 0 || channels == 0) return cut;
  const int64_t packs = channels / width;
  cut.tiles = (packs + kMostPacks - 1) / kMostPacks;
  cut.packs = static_cast<int>((packs + cut.tiles - 1) / cut.tiles);
  cut.lanes = static_cast<int>(kThreads) / cut.packs;
  const int64_t wanted = samples * rows * cut.tiles / (kBlocks * cut.lanes) + 1;
  cut.chunk_rows = cut.lanes * static_cast<int>(std::clamp(wanted, kFewestRows, kMostRows));
  cut.chunks = (rows + cut.chunk_rows - 1) / cut.chunk_rows;
  return cut;
}

// The width of packs with which the arrays can be read: the rows must start aligned too.
template <class T>
int column_width(int64_t channels, std::initializer_list<const void*> arrays) {
  return channels % kPackWidth<T> == 0 && aligned(arrays) ? kPackWidth<T> : 1;
}

// A few numbers for each column of each sample, shared by `width` neighbours: the statistics of
// batch-norm (3, channels) and of group-norm (samples, groups, 3) alike.
struct ColumnTable {
  const float* data;
  int64_t sample_step, column_step, number_step;
  int64_t width;
  __device__ float at(int64_t sample, int64_t column, int number) const {
    // No channel count needs more than 32 bits, and a division of 64 costs several times one of 32.
    const uint32_t group = static_cast<uint32_t>(column) / static_cast<uint32_t>(width);
    return data[sample * sample_step + group * column_step + number * number_step];
  }
};
GRAFT_HD inline ColumnTable channel_table(const float* data, int64_t channels) {
  return {data, 0, 1, channels, 1};
}
inline ColumnTable group_table(const float* data, int64_t groups, int numbers, int64_t width) {
  return {data, groups * numbers, numbers, 1, width};
}

__device__ inline int rows_of_chunk(const ColumnCut& cut, int64_t chunk) {
  const int64_t left = cut.rows - chunk * cut.chunk_rows;
  return left < cut.chunk_rows ? static_cast<int>(left) : cut.chunk_rows;
}

// One thread's way down its columns.
template <int kWidth>
struct ColumnWalk {
  int64_t sample, column;  // the first of kWidth columns
  int64_t partial;         // where the block's partial results are, in rows of `channels`
  int64_t offset, step;    // of its first element, and from row to row
  int chunk_rows, count;   // rows of the block and of this thread

  __device__ explicit ColumnWalk(const ColumnCut& cut, bool last_first = false) {
    const uint32_t block = last_first ? gridDim.x - 1 - blockIdx.x : blockIdx.x;
    const auto chunks = static_cast<uint32_t>(cut.chunks);
    const int64_t chunk = block % chunks;
    const int lane = static_cast<int>(threadIdx.x) / cut.packs;
    const int pack = static_cast<int>(threadIdx.x) - lane * cut.packs;
    sample = block / chunks;
    partial = int64_t{block} * 2;
    column = (int64_t{blockIdx.y} * cut.packs + pack) * kWidth;
    chunk_rows = rows_of_chunk(cut, chunk);
    const bool inside = lane < cut.lanes && column < cut.channels && lane < chunk_rows;
    count = inside ? (chunk_rows - lane + cut.lanes - 1) / cut.lanes : 0;
    offset = (sample * cut.rows + chunk * cut.chunk_rows + lane) * cut.channels + column;
    step = cut.lanes * cut.channels;
  }

  // body.operator()<n>(offset) for n rows at a time, a step apart.
  template <int kRows, class Body>
  __device__ void for_rows(const Body& body) const {
    int64_t at = offset;
    int i = 0;
    for (; i + kRows <= count; i += kRows, at += kRows * step) body.template operator()<kRows>(at);
    for (; i < count; ++i, at += step) body.template operator()<1>(at);
  }
};

// Several rows of one pack of columns. Reading all before the first is used keeps many loads in
// flight.
template <class T, int kWidth, int kRows>
struct RowPacks {
  Pack<T, kWidth> row[kRows];
  __device__ RowPacks() {}
  __device__ RowPacks(const T* from, int64_t step) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) row[r] = load<kWidth>(from + r * step);
  }
  __device__ float at(int r, int k) const { return static_cast<float>(row[r].v[k]); }
};

// (x - center) scale + offset: the statistics, weight and bias of a pack of columns. Forward and
// backward passes must round alike, as the backward pass makes the activation's mask from it: hence
// the explicit fma.
template <int kWidth>
struct ColumnAffine {
  float center[kWidth], scale[kWidth], offset[kWidth];
  __device__ ColumnAffine(const ColumnTable& stats, const float* weight, const float* bias,
                          int64_t sample, int64_t column) {
#pragma unroll
    for (int k = 0; k < kWidth; ++k) {
      const int64_t j = column + k;
      center[k] = stats.at(sample, j, 0);
      scale[k] = (weight != nullptr ? weight[j] : 1.0f) * stats.at(sample, j, 1);
      offset[k] = fmaf(-stats.at(sample, j, 2), scale[k], bias != nullptr ? bias[j] : 0.0f);
    }
  }
  __device__ float operator()(float x, int k) const {
    return fmaf(x - center[k], scale[k], offset[k]);
  }
};

// Mean and sum of squared deviations of each column of each chunk: partial (samples chunks, 2,
// channels). A thread shifts by the first row that it reads: the shifted sum of squares is at most
// n + 1 times the thread's own squared deviations, whatever the data, and a large mean does no
// harm. Threads are merged as Chan, Golub and LeVeque (1983) do.
template <class T, int kWidth>
__global__ void __launch_bounds__(kThreads)
    column_moments_kernel(double* partial, const T* __restrict__ x, ColumnCut cut) {
  GRAFT_SHARED(double, means, [kWidth][kThreads]);
  GRAFT_SHARED(float, squares, [kWidth][kThreads]);
  const ColumnWalk<kWidth> walk(cut);
  if (walk.count > 0) {
    const RowPacks<T, kWidth, 1> shift(x + walk.offset, 0);
    float s[kWidth] = {}, q[kWidth] = {};
    walk.template for_rows<8>([&]<int kRows>(int64_t at) {
      const RowPacks<T, kWidth, kRows> rows(x + at, walk.step);
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const float d = rows.at(r, k) - shift.at(0, k);
          s[k] += d;
          q[k] = fmaf(d, d, q[k]);
        }
      }
    });
    const float inverse = 1.0f / static_cast<float>(walk.count);
    for (int k = 0; k < kWidth; ++k) {
      const float mean = s[k] * inverse;
      means[k][threadIdx.x] = static_cast<double>(shift.at(0, k)) + mean;
      squares[k][threadIdx.x] = q[k] - s[k] * mean;
    }
  }
  __syncthreads();
  // All lanes have the same number of rows, but for the first ones' one more.
  const int fewest = walk.chunk_rows / cut.lanes, more = walk.chunk_rows % cut.lanes;
  const int lanes = fewest > 0 ? cut.lanes : more;
  for (int j = threadIdx.x; j < cut.packs * kWidth; j += kThreads) {
    const int64_t column = int64_t{blockIdx.y} * cut.packs * kWidth + j;
    if (column >= cut.channels) break;
    const double* own = means[j % kWidth] + j / kWidth;
    const float* own_squares = squares[j % kWidth] + j / kWidth;
    double mean = 0, square = 0;
    for (int i = 0; i < lanes; ++i) mean += (fewest + (i < more)) * own[i * cut.packs];
    mean /= walk.chunk_rows;
    for (int i = 0; i < lanes; ++i) {
      const double delta = own[i * cut.packs] - mean;
      square += own_squares[i * cut.packs] + (fewest + (i < more)) * delta * delta;
    }
    partial[walk.partial * cut.channels + column] = mean;
    partial[(walk.partial + 1) * cut.channels + column] = square;
  }
}

// Where the derivative of the activation is 1: everywhere, or where 0 < z < high, with z made again
// from x or the result y in z's place.
enum class Mask : uint8_t { none, from_x, from_y };

template <class T>
struct ColumnGrad {
  const T *g, *x, *y;
  T *dz, *dx;
  ColumnTable stats;
  const float *weight, *bias;
  float high;
};

template <Mask mask, int kWidth>
__device__ float masked(float g, float x, float y, const ColumnAffine<kWidth>& affine, int k,
                        float high) {
  if constexpr (mask == Mask::none) return g;
  const float z = mask == Mask::from_x ? affine(x, k) : y;
  return z > 0 && z < high ? g : 0.0f;
}

// dz = g under the mask. Sums of dz and of dz (x - center) of each column of each chunk: partial
// (samples chunks, 2, channels). Writes dz, and dx = scale dz, unless null.
template <class T, int kWidth, Mask mask, bool kSums>
__global__ void __launch_bounds__(kThreads)
    column_grad_kernel(double* partial, ColumnGrad<T> p, ColumnCut cut) {
  constexpr bool kReadsX = kSums || mask == Mask::from_x;
  const ColumnWalk<kWidth> walk(cut);
  float s[kWidth] = {}, q[kWidth] = {};
  if (walk.count > 0) {
    const ColumnAffine<kWidth> affine(p.stats, p.weight, p.bias, walk.sample, walk.column);
    walk.template for_rows<4>([&]<int kRows>(int64_t at) {
      const RowPacks<T, kWidth, kRows> g(p.g + at, walk.step);
      RowPacks<T, kWidth, kRows> x, y;
      if constexpr (kReadsX) x = {p.x + at, walk.step};
      if constexpr (mask == Mask::from_y) y = {p.y + at, walk.step};
#pragma unroll
      for (int r = 0; r < kRows; ++r) {
        Pack<T, kWidth> dz, dx;
#pragma unroll
        for (int k = 0; k < kWidth; ++k) {
          const float value =
              masked<mask>(g.at(r, k), kReadsX ? x.at(r, k) : 0.0f,
                           mask == Mask::from_y ? y.at(r, k) : 0.0f, affine, k, p.high);
          dz.v[k] = static_cast<T>(value);
          dx.v[k] = static_cast<T>(value * affine.scale[k]);
          if constexpr (kSums) {
            s[k] += value;
            q[k] = fmaf(value, x.at(r, k) - affine.center[k], q[k]);
          }
        }
        if (p.dz != nullptr) store(p.dz + at + r * walk.step, dz);
        if (p.dx != nullptr) store(p.dx + at + r * walk.step, dx);
      }
    });
  }
  if constexpr (kSums) {
    GRAFT_SHARED(float, shares, [2][kWidth][kThreads]);
    for (int k = 0; k < kWidth; ++k) {
      shares[0][k][threadIdx.x] = s[k];
      shares[1][k][threadIdx.x] = q[k];
    }
    __syncthreads();
    const int columns = cut.packs * kWidth;
    for (int i = threadIdx.x; i < 2 * columns; i += kThreads) {
      const int which = i >= columns, j = i - which * columns;
      const int64_t column = int64_t{blockIdx.y} * columns + j;
      if (column >= cut.channels) continue;
      const float* own = shares[which][j % kWidth] + j / kWidth;
      double total = 0;
      for (int lane = 0; lane < cut.lanes; ++lane) total += own[lane * cut.packs];
      partial[(walk.partial + which) * cut.channels + column] = total;
    }
  }
}

// dx = scale dz - (x - center) slope - constant; the map holds slope and constant. Wide packs want
// more registers than the compiler takes by itself: it would rather spill than have two blocks on a
// multiprocessor instead of three. (0: as it likes.)
template <class T, int kWidth, Mask mask>
__global__ void __launch_bounds__(kThreads, kWidth > 4 ? 2 : 0)
    column_center_grad_kernel(ColumnGrad<T> p, ColumnTable map, ColumnCut cut) {
  const ColumnWalk<kWidth> walk(cut, true);
  if (walk.count == 0) return;
  const ColumnAffine<kWidth> affine(p.stats, p.weight, p.bias, walk.sample, walk.column);
  float slope[kWidth], constant[kWidth];
  for (int k = 0; k < kWidth; ++k) {
    slope[k] = map.at(walk.sample, walk.column + k, 0);
    constant[k] = map.at(walk.sample, walk.column + k, 1);
  }
  walk.template for_rows<4>([&]<int kRows>(int64_t at) {
    const RowPacks<T, kWidth, kRows> g(p.g + at, walk.step), x(p.x + at, walk.step);
    RowPacks<T, kWidth, kRows> y;
    if constexpr (mask == Mask::from_y) y = {p.y + at, walk.step};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Pack<T, kWidth> dx;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        const float dz = masked<mask>(g.at(r, k), x.at(r, k),
                                      mask == Mask::from_y ? y.at(r, k) : 0.0f, affine, k, p.high);
        const float centered = fmaf(x.at(r, k) - affine.center[k], slope[k], constant[k]);
        dx.v[k] = static_cast<T>(fmaf(affine.scale[k], dz, -centered));
      }
      store(p.dx + at + r * walk.step, dx);
    }
  });
}

// y = (x - mean) invstd weight + bias [+ residual], kept within low and high (NaN stays).
template <class T, int kWidth, bool kResidual>
__global__ void __launch_bounds__(kThreads)
    column_affine_kernel(T* __restrict__ y, const T* __restrict__ x, const T* __restrict__ residual,
                         ColumnTable stats, const float* weight, const float* bias, float low,
                         float high, ColumnCut cut) {
  const ColumnWalk<kWidth> walk(cut, true);
  if (walk.count == 0) return;
  const ColumnAffine<kWidth> affine(stats, weight, bias, walk.sample, walk.column);
  walk.template for_rows<4>([&]<int kRows>(int64_t at) {
    const RowPacks<T, kWidth, kRows> rows(x + at, walk.step);
    RowPacks<T, kWidth, kRows> added;
    if constexpr (kResidual) added = {residual + at, walk.step};
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      Pack<T, kWidth> out;
#pragma unroll
      for (int k = 0; k < kWidth; ++k) {
        float v = affine(rows.at(r, k), k);
        if constexpr (kResidual) v += added.at(r, k);
        v = v < low ? low : v;
        out.v[k] = static_cast<T>(v > high ? high : v);
      }
      store(y + at + r * walk.step, out);
    }
  });
}

template <class T>
void launch_column_affine(const char* op, T* y, const T* x, const T* residual,
                          const ColumnTable& stats, const float* weight, const float* bias,
                          Activation activation, int64_t samples, int64_t rows, int64_t channels) {
  constexpr float kInfinity = std::numeric_limits<float>::infinity();
  const float low = activation == Activation::none ? -kInfinity : 0.0f;
  const float high = activation == Activation::relu6 ? 6.0f : kInfinity;
  const auto run = [&]<int kWidth>(std::integral_constant<int, kWidth>) {
    const ColumnCut cut = cut_columns(samples, rows, channels, kWidth);
    launch(op, cut.grid(), 0,
           residual != nullptr ? column_affine_kernel<T, kWidth, true>
                               : column_affine_kernel<T, kWidth, false>,
           y, x, residual, stats, weight, bias, low, high, cut);
  };
  if (column_width<T>(channels, {y, x, residual}) == 1) {
    run(std::integral_constant<int, 1>{});
  } else {
    run(std::integral_constant<int, kPackWidth<T>>{});
  }
}

// The kernels that merge partial results run blocks of 64 lanes for 4 neighbours (columns or groups
// of columns), so that 32 bytes are read together.
constexpr int kNeighbours = 4;
inline Grid neighbour_grid(int64_t items) { return {(items + kNeighbours - 1) / kNeighbours}; }
__device__ inline int64_t neighbour() {
  return int64_t{blockIdx.x} * kNeighbours + threadIdx.x % kNeighbours;
}

// Sum of f(0 .. n-1) over the lanes of this thread's neighbour, in each of them.
template <class F>
__device__ double lane_sum(int64_t n, const F& f) {
  double sum = 0;
  for (int64_t i = threadIdx.x / kNeighbours; i < n; i += kThreads / kNeighbours) sum += f(i);
  return block_reduce_columns<kNeighbours>(sum, Sum{});
}

struct Moments {
  double mean, square;  // square: the sum of squared deviations
};

// The moments of a group of `width` columns of one sample from its chunks'. All threads must come;
// those with inside = false get zeros.
__device__ inline Moments merge_moments(const double* partial, const ColumnCut& cut, int64_t sample,
                                        int64_t group, int width, bool inside) {
  const double* own = partial + 2 * sample * cut.chunks * cut.channels + group * width;
  const int64_t n = inside ? cut.chunks * width : 0;
  const auto part = [&](int64_t i, auto use) {
    const uint32_t chunk = static_cast<uint32_t>(i) / static_cast<uint32_t>(width);
    const double* at = own + int64_t{2} * chunk * cut.channels + (i - int64_t{chunk} * width);
    return use(static_cast<double>(rows_of_chunk(cut, chunk)), at[0], at[cut.channels]);
  };
  const double sum = lane_sum(n, [&](int64_t i) {
    return part(i, [](double rows, double mean, double) { return rows * mean; });
  });
  const double mean = sum / (static_cast<double>(cut.rows) * width);
  const double square = lane_sum(n, [&](int64_t i) {
    return part(i, [&](double rows, double part_mean, double part_square) {
      return part_square + rows * (part_mean - mean) * (part_mean - mean);
    });
  });
  return {mean, square < 0 ? 0.0 : square};
}

// dweight and dbias of one column from the partial sums of all chunks of all samples.
struct ColumnTotals {
  double dweight, dbias;
};
__device__ inline ColumnTotals merge_sums(const double* partial, const ColumnCut& cut,
                                          const ColumnTable& stats, int64_t column, bool inside) {
  const int64_t n = inside ? cut.samples * cut.chunks : 0;
  const double dbias =
      lane_sum(n, [&](int64_t i) { return partial[2 * i * cut.channels + column]; });
  const double dweight = lane_sum(n, [&](int64_t i) {
    const int64_t sample = static_cast<uint32_t>(i) / static_cast<uint32_t>(cut.chunks);
    const double invstd = stats.at(sample, column, 1), rest = stats.at(sample, column, 2);
    const double* at = partial + 2 * i * cut.channels + column;
    return (at[cut.channels] - rest * at[0]) * invstd;
  });
  return {dweight, dbias};
}

}  // namespace graft::cuda
