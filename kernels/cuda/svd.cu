// Singular values and vectors by one-sided Jacobi rotations.
//
// The matrix is k = min(rows, columns) vectors of n = max(rows, columns) numbers. Pairs of them are
// turned until all are orthogonal to each other; then their lengths are the singular values, they
// themselves, made unit vectors, those of the long side, and the product of all turns those of the
// short side (M. Hestenes, "Inversion of matrices by biorthogonalization", 1958; the turn: J.
// Demmel and K. Veselic, "Jacobi's method is more accurate than QR", 1992). The turns stand behind
// the vectors they are of, and are turned with them.
//
// A sweep meets every pair once, in k - 1 rounds of pairs that share no vector, as a tournament is
// held; a warp turns a pair, and a barrier ends a round. One block, since rounds follow each other:
// for the features of a batch, whose vectors stay in the second-level cache.
// Layout: row-major, contiguous; the working copy is in scratch memory. Numerics: double; vectors
// count as orthogonal below 1e-12 of their lengths' product. Deterministic: every sum is a warp's,
// in an order fixed by the shape.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr double kOrthogonal = 1e-12;
constexpr int kMostSweeps = 60;  // ten are usual

struct SvdShape {
  int64_t rows, columns, count, length, room;  // k, n, and what a vector takes with its turns
  bool wide;                                   // vectors are rows
  SvdShape(int64_t rows_, int64_t columns_, bool turns)
      : rows(rows_),
        columns(columns_),
        count(std::min(rows_, columns_)),
        length(std::max(rows_, columns_)),
        room(length + (turns ? count : 0)),
        wide(rows_ <= columns_) {}
};

// Turns two vectors until they are orthogonal; false: they were. By one warp.
__device__ bool turn_pair(double* a, double* b, const SvdShape& shape) {
  const int64_t lane = threadIdx.x % 32;
  double aa = 0, bb = 0, ab = 0;
  for (int64_t i = lane; i < shape.length; i += 32) {
    aa += a[i] * a[i];
    bb += b[i] * b[i];
    ab += a[i] * b[i];
  }
  aa = warp_reduce(aa, Sum{});
  bb = warp_reduce(bb, Sum{});
  ab = warp_reduce(ab, Sum{});
  if (fabs(ab) <= kOrthogonal * (sqrt(aa) * sqrt(bb))) return false;
  const double zeta = (bb - aa) / (2 * ab);
  const double t = copysign(1.0, zeta) / (fabs(zeta) + sqrt(1 + zeta * zeta));
  const double c = 1 / sqrt(1 + t * t), s = c * t;
  for (int64_t i = lane; i < shape.room; i += 32) {
    const double left = a[i], right = b[i];
    a[i] = c * left - s * right;
    b[i] = s * left + c * right;
  }
  return true;
}

// Writes the working copy; false where a number is not finite.
__device__ bool take_matrix(double* work, const float* x, const SvdShape& shape) {
  bool finite = true;
  for (int64_t i = threadIdx.x; i < shape.rows * shape.columns; i += blockDim.x) {
    const int64_t row = i / shape.columns, column = i % shape.columns;
    finite = finite && x[i] - x[i] == 0;  // not of infinity, not of NaN
    work[shape.wide ? row * shape.room + column : column * shape.room + row] =
        static_cast<double>(x[i]);
  }
  const int64_t turns = shape.room - shape.length;
  for (int64_t i = threadIdx.x; i < shape.count * turns; i += blockDim.x) {
    const int64_t vector = i / turns, j = i % turns;
    work[vector * shape.room + shape.length + j] = vector == j ? 1 : 0;
  }
  return finite;
}

__global__ void singular_values_kernel(float* values, float* u, float* vt, double* work,
                                       double* lengths, const float* x, SvdShape shape) {
  const int64_t warp = threadIdx.x / 32, warps = blockDim.x / 32, lane = threadIdx.x % 32;
  const bool finite = __syncthreads_and(take_matrix(work, x, shape)) != 0;
  const int64_t players = shape.count + shape.count % 2;  // one may sit out
  for (int sweep = 0; finite && sweep < kMostSweeps; ++sweep) {
    bool turned = false;
    for (int64_t round = 0; round < players - 1; ++round) {
      for (int64_t pair = warp; pair < players / 2; pair += warps) {
        const int64_t one = (round + pair) % (players - 1);
        const int64_t other =
            pair == 0 ? players - 1 : (round + players - 1 - pair) % (players - 1);
        const int64_t low = min(one, other), high = max(one, other);
        if (high >= shape.count) continue;
        turned = turn_pair(work + low * shape.room, work + high * shape.room, shape) || turned;
      }
      __syncthreads();
    }
    if (__syncthreads_or(turned) == 0) break;
  }

  for (int64_t i = warp; i < shape.count; i += warps) {
    double square = 0;
    for (int64_t j = lane; j < shape.length; j += 32) {
      const double value = work[i * shape.room + j];
      square += value * value;
    }
    square = warp_reduce(square, Sum{});
    if (lane == 0) lengths[i] = sqrt(square);
  }
  __syncthreads();
  for (int64_t i = warp; i < shape.count; i += warps) {
    const double length = lengths[i];
    int64_t place = 0;  // of this value among all, by size and then number
    for (int64_t j = 0; j < shape.count; ++j) {
      place += lengths[j] > length || (lengths[j] == length && j < i);
    }
    // Where x is not finite the lengths are no numbers, and no place is another's.
    if (!finite) place = i;
    constexpr double kNan = std::numeric_limits<double>::quiet_NaN();
    if (lane == 0) values[place] = static_cast<float>(finite ? length : kNan);
    if (u == nullptr) continue;
    const double scale = !finite ? kNan : length > 0 ? 1 / length : 0;
    for (int64_t j = lane; j < shape.room; j += 32) {
      const bool turn = j >= shape.length;
      const double entry = work[i * shape.room + j] * (turn && finite ? 1 : scale);
      const int64_t at = turn ? j - shape.length : j;
      if (turn == shape.wide) {
        u[at * shape.count + place] = static_cast<float>(entry);
      } else {
        vt[place * shape.columns + at] = static_cast<float>(entry);
      }
    }
  }
}

__global__ void singular_values_grad_kernel(float* dx, const float* g, const float* u,
                                            const float* vt, int64_t count, int64_t columns,
                                            int64_t n) {
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < n; i += step) {
    const int64_t row = i / columns, column = i % columns;
    double sum = 0;
    for (int64_t k = 0; k < count; ++k) {
      sum += static_cast<double>(u[row * count + k]) * static_cast<double>(g[k]) *
             static_cast<double>(vt[k * columns + column]);
    }
    dx[i] = static_cast<float>(sum);
  }
}

}  // namespace

void singular_values(float* values, float* u, float* vt, const float* x, int64_t rows,
                     int64_t columns) {
  constexpr const char* kOp = "singular_values";
  const SvdShape shape(rows, columns, u != nullptr);
  if (shape.count == 0) return;
  const auto numbers = static_cast<size_t>(shape.count * shape.room + shape.count);
  auto* work = static_cast<double*>(scratch(kOp, numbers * sizeof(double)));
  const auto warps = static_cast<unsigned>(std::clamp<int64_t>(shape.count / 2, 1, 32));
  launch(kOp, {1, 32 * warps}, 0, singular_values_kernel, values, u, vt, work,
         work + shape.count * shape.room, x, shape);
}

void singular_values_grad(float* dx, const float* g, const float* u, const float* vt, int64_t rows,
                          int64_t columns) {
  launch("singular_values_grad", grid_for(rows * columns), 0, singular_values_grad_kernel, dx, g, u,
         vt, std::min(rows, columns), columns, rows * columns);
}

}  // namespace graft::cuda
