// Sums into places that indices name: the gradients of gather and embedding.
//
//   out[key_i] = sum of g_i over all i of one key, in the order of i
//
// Atomic adds would give other bits on every run. Instead the keys are sorted, stably, with their
// positions (least significant digit first, after Merrill and Grimshaw, High performance and
// scalable radix sorting, 2011; without their overlapping of passes), and cut into pieces of
// kPiece. A block sums a piece; keys that cross the end of a piece leave partial sums behind, which
// a second launch adds up in order. So a table of two rows, as for token types, keeps the device as
// busy as a vocabulary. Work grows linearly with the number of indices.
// Layout: contiguous; rows of g are read 16 bytes at a time where aligned. Numerics: sums in f32 in
// the order of the indices, within a piece and then over pieces. Deterministic: the order depends
// on the indices alone. Integer atomics only count.
#include <cstdint>
#include <utility>

#include "kernels/cuda/divide.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/shared.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr unsigned kWarp = 32;
constexpr unsigned kDigitBits = 8, kDigits = 1u << kDigitBits;
constexpr int64_t kTile = 512;  // keys that one warp sorts
constexpr int64_t kPiece = 16;  // sorted keys that one block sums
constexpr int kAhead = 8;       // rows that a thread has under way

// ---- stable sort of (key, position) pairs

struct Pairs {
  uint32_t *keys, *positions;
};

__global__ void embedding_keys_kernel(Pairs pairs, const int64_t* ids, int64_t n) {
  for_packs<1>(n, [=]<int>(int64_t i) {
    pairs.keys[i] = static_cast<uint32_t>(ids[i]);
    pairs.positions[i] = static_cast<uint32_t>(i);
  });
}

// How often every digit occurs in every tile: counts (kDigits, tiles). A block is one warp.
__global__ void count_digits_kernel(uint32_t* counts, const uint32_t* keys, int64_t n,
                                    unsigned shift) {
  GRAFT_SHARED(uint32_t, own, [kDigits]);
  for (unsigned d = threadIdx.x; d < kDigits; d += kWarp) own[d] = 0;
  __syncwarp();
  const int64_t begin = blockIdx.x * kTile, end = min(begin + kTile, n);
  for (int64_t i = begin + threadIdx.x; i < end; i += kWarp) {
    atomicAdd(&own[keys[i] >> shift & (kDigits - 1)], 1u);
  }
  __syncwarp();
  for (unsigned d = threadIdx.x; d < kDigits; d += kWarp) {
    counts[int64_t{d} * gridDim.x + blockIdx.x] = own[d];
  }
}

// counts becomes where in the result every tile's first key of every digit belongs: the sum of all
// counts before. One block.
__global__ void place_digits_kernel(uint32_t* counts, int64_t n) {
  GRAFT_SHARED(uint32_t, warp_sums, [kWarp]);
  const unsigned lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
  uint32_t before = 0;  // the sum of what lies before this round
  for (int64_t start = 0; start < n; start += blockDim.x) {
    const int64_t i = start + threadIdx.x;
    const uint32_t own = i < n ? counts[i] : 0;
    uint32_t sum = own;  // of the lanes up to this one
    for (unsigned distance = 1; distance < kWarp; distance *= 2) {
      const uint32_t other = __shfl_up_sync(kFullWarp, sum, distance);
      if (lane >= distance) sum += other;
    }
    __syncthreads();
    if (lane == kWarp - 1) warp_sums[warp] = sum;
    __syncthreads();
    uint32_t all = 0;
    for (unsigned w = 0; w < blockDim.x / kWarp; ++w) {
      if (w == warp) sum += all;
      all += warp_sums[w];
    }
    if (i < n) counts[i] = before + sum - own;
    before += all;
  }
}

// A block is one warp: keys of a tile take their places in order, 32 at a time.
__global__ void move_pairs_kernel(Pairs to, Pairs from, const uint32_t* places, int64_t n,
                                  unsigned shift) {
  GRAFT_SHARED(uint32_t, next, [kDigits]);
  const unsigned lane = threadIdx.x;
  for (unsigned d = lane; d < kDigits; d += kWarp) {
    next[d] = places[int64_t{d} * gridDim.x + blockIdx.x];
  }
  __syncwarp();
  const int64_t begin = blockIdx.x * kTile, end = min(begin + kTile, n);
  for (int64_t start = begin; start < end; start += kWarp) {
    const int64_t i = start + lane;
    const uint32_t key = i < end ? from.keys[i] : 0;
    // Lanes past the end have a digit of their own.
    const uint32_t digit = i < end ? key >> shift & (kDigits - 1) : kDigits;
    const unsigned twins = __match_any_sync(kFullWarp, digit);
    const unsigned before = static_cast<unsigned>(__popc(twins & ((1u << lane) - 1)));
    const uint32_t place = i < end ? next[digit] + before : 0;
    __syncwarp();
    if (i < end) {
      to.keys[place] = key;
      to.positions[place] = from.positions[i];
      if (before == 0) next[digit] = place + static_cast<uint32_t>(__popc(twins));
    }
    __syncwarp();
  }
}

// ---- sums of sorted pairs

template <class T, int kWidth>
__device__ void store_rounded(T* to, const Pack<float, kWidth>& sum) {
  Pack<T, kWidth> rounded;
  for (int k = 0; k < kWidth; ++k) rounded.v[k] = static_cast<T>(sum.v[k]);
  store(to, rounded);
}

// partial: sums of the keys of a piece that the piece does not hold whole: the one that began
// before it, and the one that begins in it and goes on behind it. (pieces, 2, width)
template <class T, int kWidth>
__global__ void sum_pieces_kernel(T* out, float* partial, Pairs sorted, const T* g, int64_t n,
                                  int64_t width) {
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  if (column >= width) return;
  const int64_t begin = blockIdx.x * kPiece, end = min(begin + kPiece, n);
  bool goes_on = begin > 0 && sorted.keys[begin - 1] == sorted.keys[begin];
  Pack<float, kWidth> sum{};
  for (int64_t start = begin; start < end; start += kAhead) {
    // All loads first, so that they are under way together.
    Pack<T, kWidth> rows[kAhead];
    for (int a = 0; a < kAhead; ++a) {
      rows[a] = load<kWidth>(g + sorted.positions[min(start + a, end - 1)] * width + column);
    }
#pragma unroll
    for (int a = 0; a < kAhead; ++a) {
      const int64_t i = start + a;
      if (i >= end) break;
      for (int k = 0; k < kWidth; ++k) sum.v[k] += static_cast<float>(rows[a].v[k]);
      const uint32_t key = sorted.keys[i];
      const bool last = i + 1 == n || sorted.keys[i + 1] != key;
      if (!last && i + 1 < end) continue;
      if (last && !goes_on) {
        store_rounded(out + key * width + column, sum);
      } else {
        store(partial + (2 * int64_t{blockIdx.x} + (goes_on ? 0 : 1)) * width + column, sum);
      }
      goes_on = false;
      sum = {};
    }
  }
}

// The block of the piece in which a key begins that goes on behind it adds up what that left.
template <class T, int kWidth>
__global__ void join_pieces_kernel(T* out, const float* partial, Pairs sorted, int64_t n,
                                   int64_t width) {
  const int64_t column = (int64_t{blockIdx.y} * blockDim.x + threadIdx.x) * kWidth;
  if (column >= width) return;
  const int64_t begin = blockIdx.x * kPiece, end = begin + kPiece;
  if (end >= n) return;
  const uint32_t key = sorted.keys[end - 1];
  if (sorted.keys[end] != key || (begin > 0 && sorted.keys[begin - 1] == key)) return;
  Pack<float, kWidth> sum = load<kWidth>(partial + (2 * int64_t{blockIdx.x} + 1) * width + column);
  for (int64_t start = end; start < n && sorted.keys[start] == key; start += kPiece) {
    const Pack<float, kWidth> next = load<kWidth>(partial + start / kPiece * 2 * width + column);
    for (int k = 0; k < kWidth; ++k) sum.v[k] += next.v[k];
  }
  store_rounded(out + key * width + column, sum);
}

int64_t over(int64_t a, int64_t b) { return (a + b - 1) / b; }

template <class T, int kWidth>
void sum_sorted(const char* op, T* out, float* partial, Pairs sorted, const T* g, int64_t n,
                int64_t width) {
  const int64_t packs = over(width, kWidth), warps = over(packs, kWarp);
  const unsigned threads = static_cast<unsigned>(warps < 8 ? warps * kWarp : kThreads);
  const Grid grid{over(n, kPiece), threads, over(packs, threads)};
  launch(op, grid, 0, sum_pieces_kernel<T, kWidth>, out, partial, sorted, g, n, width);
  launch(op, grid, 0, join_pieces_kernel<T, kWidth>, out, partial, sorted, n, width);
}

// out (key_limit, width), zeroed, gets at every key the sum of its rows of g (n, width).
// make_keys(pairs) fills in the keys.
template <class MakeKeys>
void scatter_sum(const char* op, float* out, const float* g, int64_t n, int64_t key_limit,
                 int64_t width, const MakeKeys& make_keys) {
  if (n == 0 || width == 0) return;
  GRAFT_CHECK(n <= INT32_MAX && key_limit <= UINT32_MAX, op, ": ", n, " indices into ", key_limit,
              " places are more than fit into 32 bits");
  const int64_t tiles = over(n, kTile);
  // In 4-byte words; each array begins at a multiple of 16 bytes.
  const int64_t pairs_words = over(n, 4) * 4, counts_words = tiles * kDigits;
  const int64_t partial_words = 2 * over(n, kPiece) * width;
  auto* words = static_cast<uint32_t*>(
      scratch(op, static_cast<size_t>(4 * pairs_words + counts_words + partial_words) * 4));
  Pairs from{words, words + pairs_words};
  Pairs to{words + 2 * pairs_words, words + 3 * pairs_words};
  uint32_t* counts = words + 4 * pairs_words;
  auto* partial = reinterpret_cast<float*>(counts + counts_words);
  make_keys(from);
  const Grid grid{tiles, kWarp};
  for (unsigned shift = 0; shift < 32 && (key_limit - 1) >> shift != 0; shift += kDigitBits) {
    launch(op, grid, 0, count_digits_kernel, counts, from.keys, n, shift);
    launch(op, {1, 1024}, 0, place_digits_kernel, counts, counts_words);
    launch(op, grid, 0, move_pairs_kernel, to, from, counts, n, shift);
    std::swap(from, to);
  }
  constexpr int kWide = kPackWidth<float>;
  if (width % kWide == 0 && aligned({out, g})) {
    sum_sorted<float, kWide>(op, out, partial, from, g, n, width);
  } else {
    sum_sorted<float, 1>(op, out, partial, from, g, n, width);
  }
}

// ---- gather

// Where in the source line number `line` along the axis begins, and where in the index.
struct Line {
  int64_t source, index;
};
__device__ Line line_at(const GatherShape& s, int64_t stride, int64_t line) {
  const Quotient q = divide(line, stride);
  Line at{0, q.whole * stride * s.sizes[s.axis] + q.rest};
  for (int d = s.rank - 1; d >= 0; --d) {
    if (d == s.axis) continue;
    const Quotient by_size = divide(line, s.sizes[d]);
    at.source += by_size.rest * s.strides[d];
    line = by_size.whole;
  }
  return at;
}

// Lines along the axis share no target: one thread each walks its line in order.
template <class T>
__global__ void gather_grad_lines_kernel(T* dx, const int64_t* index, const T* g, GatherShape s,
                                         int64_t stride, int64_t lines) {
  for_packs<1>(lines, [&]<int>(int64_t line) {
    const Line at = line_at(s, stride, line);
    for (int64_t i = at.index; i < at.index + s.sizes[s.axis] * stride; i += stride) {
      dx[at.source + index[i] * s.strides[s.axis]] += g[i];
    }
  });
}

__global__ void gather_keys_kernel(Pairs pairs, const int64_t* index, GatherShape s, int64_t stride,
                                   int64_t n) {
  for_packs<1>(n, [&]<int>(int64_t i) {
    // i = (outer * length + position) * stride + inner; the line is outer * stride + inner.
    const Quotient inner = divide(i, stride), outer = divide(inner.whole, s.sizes[s.axis]);
    const Line at = line_at(s, stride, outer.whole * stride + inner.rest);
    pairs.keys[i] = static_cast<uint32_t>(at.source + index[i] * s.strides[s.axis]);
    pairs.positions[i] = static_cast<uint32_t>(i);
  });
}

}  // namespace

void gather_grad(float* dx, const int64_t* index, const float* g, const GatherShape& shape) {
  constexpr const char* kOp = "gather_grad";
  constexpr int64_t kManyLines = 4096, kShortLine = 64;
  const int64_t length = shape.sizes[shape.axis];
  int64_t lines = 1, stride = 1;
  for (int d = 0; d < shape.rank; ++d) {
    if (d != shape.axis) lines *= shape.sizes[d];
    if (d > shape.axis) stride *= shape.sizes[d];
  }
  // Threads enough, or little to do for each; else the lines are cut up by sorting.
  if (lines >= kManyLines || length <= kShortLine) {
    launch(kOp, grid_for(lines), 0, gather_grad_lines_kernel<float>, dx, index, g, shape, stride,
           lines);
    return;
  }
  int64_t limit = (shape.axis_size - 1) * shape.strides[shape.axis] + 1;
  for (int d = 0; d < shape.rank; ++d) {
    if (d != shape.axis) limit += (shape.sizes[d] - 1) * shape.strides[d];
  }
  const int64_t n = lines * length;
  scatter_sum(kOp, dx, g, n, limit, 1, [=](Pairs pairs) {
    launch(kOp, grid_for(n), 0, gather_keys_kernel, pairs, index, shape, stride, n);
  });
}

void embedding_grad(float* dw, const int64_t* ids, const float* g, int64_t count, int64_t rows,
                    int64_t width) {
  constexpr const char* kOp = "embedding_grad";
  const size_t bytes = static_cast<size_t>(rows * width) * sizeof(float);
  if (bytes == 0) return;
  check(cudaMemsetAsync(dw, 0, bytes, stream()), kOp);
  scatter_sum(kOp, dw, g, count, rows, width, [=](Pairs pairs) {
    launch(kOp, grid_for(count), 0, embedding_keys_kernel, pairs, ids, count);
  });
}

}  // namespace graft::cuda
