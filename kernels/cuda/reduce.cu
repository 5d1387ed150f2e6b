// Sum, mean, maximum and argmax over the middle of (outer, axis, inner); gradient of the maximum.
//
//   y[o, k] = sum over a of x[o, a, k] / divisor
//   where[o, k] = the first a with the largest x[o, a, k];    NaN is largest
//   y[o, k] = x[o, where[o, k], k]
//   dx[o, a, k] = g[o, k] if a = where[o, k], else 0
//
// Layout: contiguous f32; 16 bytes a load where alignment and sizes allow it, else 4. Three shapes
// of work: short rows (inner 1) by a few lanes of a warp each, long rows by blocks, columns (inner
// above 1) by blocks as wide as it takes to read whole lines. Few and long reductions are cut into
// chunks whose results are reduced once more.
// Numerics: sums gather in double, so that a channel's sum over a whole batch is exact to f32; the
// additions still take less time than the loads. A maximum is one of 64-bit keys: the value in an
// order that integers have, above the position counted down.
// Determinism: the cut and the tree depend on the shape alone.
#include <algorithm>
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/rows.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/device.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// What is reduced to what: of() is an element's (or a chunk's) contribution, the call joins two,
// and write() turns the last into result (o, k).
struct AxisSum {
  using Partial = double;
  float* y;
  int64_t inner;
  double divisor;

  __device__ static Partial identity() { return 0; }
  template <class T>
  __device__ static Partial of(T value, int64_t) {
    return static_cast<double>(value);
  }
  __device__ Partial operator()(Partial a, Partial b) const { return a + b; }
  __device__ void write(int64_t o, int64_t k, Partial sum) const {
    y[o * inner + k] = static_cast<float>(sum / divisor);
  }
};

struct AxisMax {
  using Partial = unsigned long long;
  float* y;
  int64_t* where;
  const float* x;
  int64_t axis, inner;

  __device__ static Partial identity() { return 0; }
  __device__ static Partial of(float value, int64_t at) {
    const unsigned bits = __float_as_uint(value);
    const unsigned ordered = (bits >> 31) != 0 ? ~bits : bits | 0x80000000u;
    // +0 and -0 tie.
    const unsigned high = value != value ? ~0u : (value == 0 ? 0x80000000u : ordered);
    return static_cast<Partial>(high) << 32 | static_cast<unsigned>(~at);
  }
  __device__ static Partial of(Partial chunk, int64_t) { return chunk; }
  __device__ Partial operator()(Partial a, Partial b) const { return a > b ? a : b; }
  __device__ void write(int64_t o, int64_t k, Partial best) const {
    const int64_t at = static_cast<unsigned>(~best);
    if (where != nullptr) where[o * inner + k] = at;
    if (y != nullptr) y[o * inner + k] = x[(o * axis + at) * inner + k];
  }
};

// The axis in chunks of `length`.
struct Cut {
  int64_t length, chunks;
};

template <class R, class In, int kWidth>
__global__ void short_rows_kernel(R reduction, const In* x, int64_t rows, int64_t axis,
                                  Team<false> team) {
  team.for_rows(rows, [&](int64_t row, bool there) {
    typename R::Partial sum = R::identity();
    team.for_items<kWidth>(there ? axis : 0, [&](int64_t a) {
      const Pack<In, kWidth> pack = load<kWidth>(x + row * axis + a);
      for (int k = 0; k < kWidth; ++k) sum = reduction(sum, R::of(pack.v[k], a + k));
    });
    sum = team.reduce(sum, reduction);
    if (there && team.rank() == 0) reduction.write(row, 0, sum);
  });
}

// One block a chunk of a row.
template <class R, class In, int kWidth>
__global__ void long_rows_kernel(R reduction, typename R::Partial* partial, const In* x,
                                 int64_t rows, int64_t axis, Cut cut) {
  for (int64_t item = blockIdx.x; item < rows * cut.chunks; item += gridDim.x) {
    const int64_t row = item / cut.chunks, first = item % cut.chunks * cut.length;
    const int64_t last = min(axis, first + cut.length);
    const int64_t whole = first + (last - first) / kWidth * kWidth;
    typename R::Partial sum = R::identity();
    for (int64_t a = first + threadIdx.x * kWidth; a < whole; a += blockDim.x * kWidth) {
      const Pack<In, kWidth> pack = load<kWidth>(x + row * axis + a);
      for (int k = 0; k < kWidth; ++k) sum = reduction(sum, R::of(pack.v[k], a + k));
    }
    for (int64_t a = whole + threadIdx.x; a < last; a += blockDim.x) {
      sum = reduction(sum, R::of(x[row * axis + a], a));
    }
    sum = block_reduce(sum, reduction);
    if (threadIdx.x != 0) continue;
    if (partial != nullptr) {
      partial[item] = sum;
    } else {
      reduction.write(row, 0, sum);
    }
  }
}

// One block a chunk of a tile of columns: `lanes` (a power of two) threads side by side, kWidth
// columns each, the others below them.
template <class R, class In, int kWidth>
__global__ void columns_kernel(R reduction, typename R::Partial* partial, const In* x,
                               ReduceShape shape, Cut cut, unsigned lanes) {
  using Partial = typename R::Partial;
  GRAFT_SHARED(Partial, sums, [kWidth][kThreads]);
  const unsigned lane = threadIdx.x % lanes, row = threadIdx.x / lanes, rows = kThreads / lanes;
  const int64_t tiles = (shape.inner + lanes * kWidth - 1) / (lanes * kWidth);
  for (int64_t item = blockIdx.x; item < shape.outer * cut.chunks * tiles; item += gridDim.x) {
    const int64_t column = (item % tiles * lanes + lane) * kWidth;
    const int64_t part = item / tiles, o = part / cut.chunks;
    const int64_t first = part % cut.chunks * cut.length;
    const int64_t last = min(shape.axis, first + cut.length);
    Partial sum[kWidth];
    for (Partial& s : sum) s = R::identity();
    if (column < shape.inner) {
      const In* from = x + (o * shape.axis + first + row) * shape.inner + column;
      for (int64_t a = first + row; a < last; a += rows, from += rows * shape.inner) {
        const Pack<In, kWidth> pack = load<kWidth>(from);
        for (int k = 0; k < kWidth; ++k) sum[k] = reduction(sum[k], R::of(pack.v[k], a));
      }
    }
    __syncthreads();  // the last item's sums have been read
    for (int k = 0; k < kWidth; ++k) {
      // Lanes of one warp that hold the same columns.
      for (unsigned distance = 16; distance >= lanes; distance /= 2) {
        sum[k] = reduction(sum[k], __shfl_xor_sync(kFullWarp, sum[k], static_cast<int>(distance)));
      }
      sums[k][threadIdx.x] = sum[k];
    }
    __syncthreads();
    if (row != 0 || column >= shape.inner) continue;
    for (int k = 0; k < kWidth; ++k) {
      Partial total = sum[k];
      const unsigned step = lanes < 32 ? 32 : lanes;
      for (unsigned t = lane + step; t < kThreads; t += step) total = reduction(total, sums[k][t]);
      if (partial != nullptr) {
        partial[part * shape.inner + column + k] = total;
      } else {
        reduction.write(o, column + k, total);
      }
    }
  }
}

__global__ void max_grad_kernel(float* dx, const int64_t* where, const float* g, int64_t axis,
                                int64_t inner, int64_t n) {
  for_packs<1>(
      n, [&]<int>(int64_t i) { dx[(i / inner * axis + where[i]) * inner + i % inner] = g[i]; });
}

int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// A cut that makes about 1024 blocks' work of `items` reductions of axis * width elements each, as
// far as every block keeps 8192 elements.
Cut cut_of(int64_t items, int64_t axis, int64_t width) {
  constexpr int64_t kBlockElements = 8192, kEnoughBlocks = 1024;
  const int64_t wanted =
      std::min(axis * width / kBlockElements, kEnoughBlocks / std::max<int64_t>(items, 1));
  if (wanted <= 1) return {axis, 1};
  const int64_t length = divide_up(divide_up(axis, wanted), 4) * 4;  // whole packs
  return {length, divide_up(axis, length)};
}

template <class R, class In, int kWidth>
void reduce_as(const char* op, const R& reduction, const In* x, const ReduceShape& s,
               bool cuttable) {
  using Partial = typename R::Partial;
  if (s.inner == 1 && s.axis <= kLongRow) {
    const Team<false> team = lanes_for(s.axis, kWidth);
    launch(op, grid_of(team, s.outer), 0, short_rows_kernel<R, In, kWidth>, reduction, x, s.outer,
           s.axis, team);
    return;
  }
  // Narrow blocks read 32 threads' width at a time; short axes leave no work for more rows.
  const int64_t columns = divide_up(s.inner, kWidth);
  unsigned lanes = power_of_two_from(columns, 32);
  while (lanes < kThreads && lanes < columns && s.axis * lanes < 4 * kThreads) lanes *= 2;
  const int64_t items = s.inner == 1 ? s.outer : s.outer * divide_up(columns, lanes);
  const int64_t width = s.inner == 1 ? 1 : std::min<int64_t>(s.inner, lanes * kWidth);
  const Cut cut = cuttable ? cut_of(items, s.axis, width) : Cut{s.axis, 1};
  Partial* partial = nullptr;
  if (cut.chunks > 1) {
    const int64_t count = s.outer * cut.chunks * s.inner;
    partial = static_cast<Partial*>(scratch(op, static_cast<size_t>(count) * sizeof(Partial)));
  }
  const Grid grid = grid_of_blocks(items * cut.chunks);
  if (s.inner == 1) {
    launch(op, grid, 0, long_rows_kernel<R, In, kWidth>, reduction, partial, x, s.outer, s.axis,
           cut);
  } else {
    launch(op, grid, 0, columns_kernel<R, In, kWidth>, reduction, partial, x, s, cut, lanes);
  }
  if (partial == nullptr) return;
  reduce_as<R, Partial, 1>(op, reduction, partial, {s.outer, cut.chunks, s.inner}, false);
}

template <class R>
void reduce(const char* op, const R& reduction, const float* x, const ReduceShape& s) {
  if (s.outer == 0 || s.inner == 0) return;
  constexpr int kWide = kPackWidth<float>;
  // Packs must not cross an end of the contiguous dimension, but for the tail of a single long row.
  const int64_t line = s.inner == 1 ? s.axis : s.inner;
  const bool wide = line % kWide == 0 || (s.inner == 1 && s.outer == 1 && s.axis > kLongRow);
  if (wide && aligned({x})) {
    reduce_as<R, float, kWide>(op, reduction, x, s, true);
  } else {
    reduce_as<R, float, 1>(op, reduction, x, s, true);
  }
}

}  // namespace

// The cut for a GPU is finer than the one that `partial` was made for: scratch() holds it.
void reduce_sum(float* y, const float* x, const ReduceShape& shape, double divisor, double*) {
  reduce("reduce_sum", AxisSum{y, shape.inner, divisor}, x, shape);
}

void reduce_max(float* y, int64_t* where, const float* x, const ReduceShape& shape) {
  GRAFT_CHECK(shape.axis <= UINT32_MAX, "reduce_max: expected at most ", UINT32_MAX,
              " elements along the axis, got ", shape.axis, "; reduce in two steps");
  reduce("reduce_max", AxisMax{y, where, x, shape.axis, shape.inner}, x, shape);
}

void reduce_max_grad(float* dx, const int64_t* where, const float* g, const ReduceShape& shape) {
  const int64_t n = shape.outer * shape.inner;
  fill_bytes(dx, 0, static_cast<size_t>(n * shape.axis) * sizeof(float), 0);
  launch("reduce_max_grad", grid_for(n), 0, max_grad_kernel, dx, where, g, shape.axis, shape.inner,
         n);
}

}  // namespace graft::cuda
