// Layer normalisation (Ba, Kiros, Hinton 2016) over the last dimension, and its gradient; the same
// of a residual and what dropout leaves of a branch.
//
//   y = xhat weight + bias,  xhat = (x - mean) invstd,  h = g weight
//   dx = invstd (h - mean(h) - xhat mean(h xhat));  dweight = sum g xhat;  dbias = sum g
//   with a branch: x = residual + keep(branch + its bias);  dbranch = keep(dx)
//
// Layout: rows of c numbers, 16 bytes at a time where c is a multiple of a pack and the arrays are
// aligned, else one by one. A row of up to 1024 floats belongs to a warp, a longer one to a block;
// it waits in registers, so x (and g) are read once. Rows that no block can hold are read again,
// from the caches. Backward, the row that gives dx also goes into sums of the columns that each
// thread owns: one read of g and x for all three gradients.
//
// Numerics: f32. Deviations d from a mean rounded to f32; their own mean, which is the rounding
// error, is kept beside it and taken off again: xhat = (d - rest) invstd (the corrected two-pass
// algorithm). Weight and bias gradients f32 within at most 256 rows a thread, double across.
// Deterministic: rows are independent; rows are dealt to blocks by shape alone, and their partial
// sums are merged in order.
#include <algorithm>
#include <type_traits>

#include "kernels/cuda/keep.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr int kRowWarps = 4;  // of a block whose warps take a row each

// The threads that share a row, and the packs of it that each of them holds; kPacks = 0: any
// number, read again when needed.
template <int kWidth_, int kPacks_, bool kBlock_>
struct Team {
  static constexpr int kWidth = kWidth_, kPacks = kPacks_;
  static constexpr bool kBlock = kBlock_;
  static constexpr int kSize = kBlock ? static_cast<int>(kThreads) : 32;
  static constexpr int kTeams = kBlock ? 1 : kRowWarps;  // of a block
  static constexpr int kBlockSize = kSize * kTeams;
  static constexpr int kSpan = kSize * kWidth * kPacks;  // the longest row
  __device__ static int index() { return static_cast<int>(threadIdx.x) / kSize; }
  __device__ static int lane() { return static_cast<int>(threadIdx.x) % kSize; }

  template <class V>
  __device__ static V sum(V value) {
    if constexpr (kBlock) return block_reduce(value, Sum{});
    return warp_reduce(value, Sum{});
  }
  // body(p, j) for this thread's packs: p counts them, j is the first column.
  template <class Body>
  __device__ static void for_packs(int64_t c, const Body& body) {
    if constexpr (kPacks == 0) {
      for (int64_t j = lane() * kWidth; j < c; j += kSize * kWidth) body(0, j);
    } else {
#pragma unroll
      for (int p = 0; p < kPacks; ++p) {
        const int j = (p * kSize + lane()) * kWidth;
        if (j < c) body(p, int64_t{j});
      }
    }
  }
};

// A thread's packs of one row.
template <class T, class Of>
struct HeldRow {
  static constexpr int kWidth = Of::kWidth;
  const T* from;
  Pack<T, kWidth> packs[Of::kPacks > 0 ? Of::kPacks : 1];
  __device__ HeldRow(const T* row, int64_t c) : from(row) {
    if constexpr (Of::kPacks > 0) {
      Of::for_packs(c, [&](int p, int64_t j) { packs[p] = load<kWidth>(from + j); });
    }
  }
  // The row is what make(j) stores there and gives.
  template <class Make>
  __device__ HeldRow(const T* row, int64_t c, const Make& make) : from(row) {
    Of::for_packs(c, [&](int p, int64_t j) {
      const Pack<T, kWidth> pack = make(j);
      if constexpr (Of::kPacks > 0) packs[p] = pack;
    });
  }
  __device__ Pack<T, kWidth> at(int p, int64_t j) const {
    if constexpr (Of::kPacks > 0) return packs[p];
    return load<kWidth>(from + j);
  }
};

// weight or bias: a constant where there is none.
template <int kWidth>
__device__ Pack<float, kWidth> load_or(const float* from, int64_t j, float otherwise) {
  if (from != nullptr) return load<kWidth>(from + j);
  Pack<float, kWidth> pack;
  for (float& v : pack.v) v = otherwise;
  return pack;
}

// Where x comes from: it stands there; or it is made, and stored for the backward pass.
struct Stored {
  const float* x;
  template <class Of>
  __device__ HeldRow<float, Of> row(int64_t r, int64_t c) const {
    return {x + r * c, c};
  }
};
struct Branch {
  float* sum;
  const float *x, *bias, *residual;
  Keep keep;
  RngKey key;
  template <class Of>
  __device__ HeldRow<float, Of> row(int64_t r, int64_t c) const {
    constexpr int kWidth = Of::kWidth;
    const RngKey now = resolved(key);
    return {sum + r * c, c, [&](int64_t j) {
              const int64_t i = r * c + j;
              Pack<float, kWidth> pack = load<kWidth>(x + i);
              const Pack<float, kWidth> b = load_or<kWidth>(bias, j, 0);
              const Pack<float, kWidth> added = load<kWidth>(residual + i);
              for (int k = 0; k < kWidth; ++k) pack.v[k] += b.v[k];
              pack = keep.of(pack, now, i);
              for (int k = 0; k < kWidth; ++k) pack.v[k] += added.v[k];
              store(sum + i, pack);
              return pack;
            }};
  }
};
// Where dx goes besides: nowhere, or through the branch's dropout.
struct NoBranch {
  template <int kWidth>
  __device__ void operator()(const Pack<float, kWidth>&, int64_t) const {}
};
struct BranchGrad {
  float* dx;
  Keep keep;
  RngKey key;
  template <int kWidth>
  __device__ void operator()(const Pack<float, kWidth>& dsum, int64_t i) const {
    store(dx + i, keep.of(dsum, resolved(key), i));
  }
};

// The bound of one block a multiprocessor lets the compiler keep a row in registers.
template <class T, class Of, class Source>
__global__ void __launch_bounds__(Of::kBlockSize, 1)
    layer_norm_kernel(T* __restrict__ y, float* __restrict__ stats, Source source,
                      const float* __restrict__ weight, const float* __restrict__ bias,
                      int64_t rows, int64_t c, float epsilon) {
  constexpr int kWidth = Of::kWidth;
  const int64_t r = int64_t{blockIdx.x} * Of::kTeams + Of::index();
  if (r >= rows) return;  // whole warps; with a row a block, none
  const HeldRow<T, Of> row = source.template row<Of>(r, c);
  const float inverse = 1.0f / static_cast<float>(c);
  float sum = 0;
  Of::for_packs(c, [&](int p, int64_t j) {
    const Pack<T, kWidth> in = row.at(p, j);
    for (int k = 0; k < kWidth; ++k) sum += static_cast<float>(in.v[k]);
  });
  const float mean = Of::sum(sum) * inverse;
  Two<float> both{0, 0};  // sums of deviations and of their squares
  Of::for_packs(c, [&](int p, int64_t j) {
    const Pack<T, kWidth> in = row.at(p, j);
    for (int k = 0; k < kWidth; ++k) {
      const float d = static_cast<float>(in.v[k]) - mean;
      both.a += d;
      both.b = fmaf(d, d, both.b);
    }
  });
  both = Of::sum(both);
  const float rest = both.a * inverse, variance = both.b * inverse - rest * rest;
  const float invstd = 1.0f / sqrtf((variance < 0 ? 0.0f : variance) + epsilon);
  const float shift = rest * invstd;
  if (Of::lane() == 0) {
    stats[3 * r] = mean;
    stats[3 * r + 1] = invstd;
    stats[3 * r + 2] = rest;
  }
  Of::for_packs(c, [&](int p, int64_t j) {
    const Pack<T, kWidth> in = row.at(p, j);
    const Pack<float, kWidth> w = load_or<kWidth>(weight, j, 1), b = load_or<kWidth>(bias, j, 0);
    Pack<T, kWidth> out;
    for (int k = 0; k < kWidth; ++k) {
      const float xhat = (static_cast<float>(in.v[k]) - mean) * invstd - shift;
      out.v[k] = static_cast<T>(xhat * w.v[k] + b.v[k]);
    }
    store(y + r * c + j, out);
  });
}

// A block takes chunk_rows rows, and with kSums leaves their column sums in partial (blocks, 2, c).
// dx may be null then, and blockIdx.y choose a slab of the columns.
template <class T, class Of, bool kSums, class Besides>
__global__ void __launch_bounds__(Of::kBlockSize, 1)
    layer_norm_grad_kernel(T* __restrict__ dx, float* __restrict__ partial, const T* __restrict__ g,
                           const T* __restrict__ x, const float* __restrict__ stats,
                           const float* __restrict__ weight, int64_t rows, int64_t c,
                           int64_t chunk_rows, Besides besides) {
  constexpr int kWidth = Of::kWidth, kHeld = Of::kPacks > 0 ? Of::kPacks : 1;
  const int64_t first = int64_t{blockIdx.y} * Of::kSpan, width = c - first;
  const int64_t begin = blockIdx.x * chunk_rows;
  const int64_t end = begin + chunk_rows < rows ? begin + chunk_rows : rows;
  Pack<float, kWidth> dweight[kHeld] = {}, dbias[kHeld] = {};
  for (int64_t r = begin + Of::index(); r < end; r += Of::kTeams) {
    const HeldRow<T, Of> held_g(g + r * c + first, width), held_x(x + r * c + first, width);
    const float mean = stats[3 * r], invstd = stats[3 * r + 1], shift = stats[3 * r + 2] * invstd;
    const auto xhat_of = [=](T v) { return (static_cast<float>(v) - mean) * invstd - shift; };
    Two<float> both{0, 0};  // sums of h and of h xhat
    Of::for_packs(width, [&](int p, int64_t j) {
      const Pack<T, kWidth> pg = held_g.at(p, j), px = held_x.at(p, j);
      const Pack<float, kWidth> w = load_or<kWidth>(weight, first + j, 1);
      for (int k = 0; k < kWidth; ++k) {
        const float gradient = static_cast<float>(pg.v[k]), xhat = xhat_of(px.v[k]);
        const float h = gradient * w.v[k];
        both.a += h;
        both.b = fmaf(h, xhat, both.b);
        if constexpr (kSums) {
          dweight[p].v[k] = fmaf(gradient, xhat, dweight[p].v[k]);
          dbias[p].v[k] += gradient;
        }
      }
    });
    if (dx == nullptr) continue;
    both = Of::sum(both);
    const float inverse = 1.0f / static_cast<float>(c);
    const float h_mean = both.a * inverse, product_mean = both.b * inverse;
    Of::for_packs(width, [&](int p, int64_t j) {
      const Pack<T, kWidth> pg = held_g.at(p, j), px = held_x.at(p, j);
      const Pack<float, kWidth> w = load_or<kWidth>(weight, j, 1);
      Pack<T, kWidth> out;
      for (int k = 0; k < kWidth; ++k) {
        const float h = static_cast<float>(pg.v[k]) * w.v[k];
        out.v[k] = static_cast<T>((h - h_mean - xhat_of(px.v[k]) * product_mean) * invstd);
      }
      store(dx + r * c + j, out);
      besides(out, r * c + j);
    });
  }
  if constexpr (kSums) {
    // The teams add theirs in turn; the last one writes.
    GRAFT_SHARED(float, shared, [2][Of::kTeams > 1 ? Of::kSpan : kWidth]);
    float* own = partial + int64_t{blockIdx.x} * 2 * c + first;
    for (int turn = 0; turn < Of::kTeams; ++turn) {
      if (turn == Of::index()) {
        Of::for_packs(width, [&](int p, int64_t j) {
          if (turn > 0) {
            for (int k = 0; k < kWidth; ++k) {
              dweight[p].v[k] += shared[0][j + k];
              dbias[p].v[k] += shared[1][j + k];
            }
          }
          const bool last = turn == Of::kTeams - 1;
          store(last ? own + j : shared[0] + j, dweight[p]);
          store(last ? own + c + j : shared[1] + j, dbias[p]);
        });
      }
      if constexpr (Of::kTeams > 1) __syncthreads();
    }
  }
}

// dweight and dbias (or null) from partial (chunks, 2, c): a block sums 8 columns with 32 lanes.
constexpr int kSumColumns = 8;
__global__ void layer_norm_sums_kernel(float* dweight, float* dbias, const float* partial,
                                       int64_t chunks, int64_t c) {
  const int64_t j = int64_t{blockIdx.x} * kSumColumns + threadIdx.x % kSumColumns;
  double sum = 0;
  for (int64_t i = threadIdx.x / kSumColumns; j < 2 * c && i < chunks;
       i += kThreads / kSumColumns) {
    sum += partial[i * 2 * c + j];
  }
  sum = block_reduce_columns<kSumColumns>(sum, Sum{});
  if (j >= 2 * c || threadIdx.x >= kSumColumns) return;
  float* out = j < c ? dweight : dbias;
  if (out != nullptr) out[j < c ? j : j - c] = static_cast<float>(sum);
}

// Calls use(team) with the team for rows of c; the packs are rounded up to a power of two.
template <class T, class Use>
void with_team(int64_t c, bool wide, const Use& use) {
  constexpr int W = kPackWidth<T>;
  const auto fits = [c](auto team) { return c <= decltype(team)::kSpan; };
  if (wide) {
    if (fits(Team<W, 2, false>{})) return use(Team<W, 2, false>{});
    if (fits(Team<W, 4, false>{})) return use(Team<W, 4, false>{});
    if (fits(Team<W, 8, false>{})) return use(Team<W, 8, false>{});
    if (fits(Team<W, 2, true>{})) return use(Team<W, 2, true>{});
    if (fits(Team<W, 4, true>{})) return use(Team<W, 4, true>{});
    if (fits(Team<W, 8, true>{})) return use(Team<W, 8, true>{});
    return use(Team<W, 0, true>{});
  }
  if (fits(Team<1, 8, false>{})) return use(Team<1, 8, false>{});
  if (fits(Team<1, 8, true>{})) return use(Team<1, 8, true>{});
  use(Team<1, 0, true>{});
}

int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of a block that leaves partial sums: as many blocks as are resident on a large GPU, few
// enough that their sums are small next to x.
template <class Of>
int64_t summed_rows(int64_t rows) {
  constexpr int64_t kBlocks = (Of::kBlock ? 1024 : 2048) / Of::kPacks, kMostRows = 256;
  return Of::kTeams * std::clamp<int64_t>(ceil_div(rows, kBlocks * Of::kTeams), 1, kMostRows);
}

template <class Source>
void launch_layer_norm(const char* op, float* y, float* stats, const Source& source,
                       const float* weight, const float* bias, bool wide, int64_t rows, int64_t c,
                       float epsilon) {
  with_team<float>(c, wide, [&]<class Of>(Of) {
    launch(op, {ceil_div(rows, Of::kTeams), Of::kBlockSize}, 0,
           layer_norm_kernel<float, Of, Source>, y, stats, source, weight, bias, rows, c, epsilon);
  });
}

template <class Besides>
void launch_layer_norm_grad(const char* op, float* dx, float* dweight, float* dbias, const float* g,
                            const float* x, const float* stats, const float* weight, bool wide,
                            int64_t rows, int64_t c, const Besides& besides) {
  const bool sums = dweight != nullptr || dbias != nullptr;
  const auto rows_only = [&]<class Of>(Of) {
    if (dx == nullptr) return;
    launch(op, {ceil_div(rows, Of::kTeams), Of::kBlockSize}, 0,
           layer_norm_grad_kernel<float, Of, false, Besides>, dx, nullptr, g, x, stats, weight,
           rows, c, int64_t{Of::kTeams}, besides);
  };
  // Of the rows, or of slabs of them.
  const auto with_sums = [&]<class Of>(Of, float* out) {
    const int64_t chunk_rows = summed_rows<Of>(rows), chunks = ceil_div(rows, chunk_rows);
    auto* partial =
        static_cast<float*>(scratch(op, static_cast<size_t>(2 * chunks * c) * sizeof(float)));
    launch(op, {chunks, Of::kBlockSize, ceil_div(c, Of::kSpan)}, 0,
           layer_norm_grad_kernel<float, Of, true, Besides>, out, partial, g, x, stats, weight,
           rows, c, chunk_rows, besides);
    launch(op, {ceil_div(2 * c, kSumColumns)}, 0, layer_norm_sums_kernel, dweight, dbias, partial,
           chunks, c);
  };
  with_team<float>(c, wide, [&]<class Of>(Of team) {
    if (!sums) return rows_only(team);
    if constexpr (Of::kPacks > 0) {
      with_sums(team, dx);
    } else {
      rows_only(team);
      with_sums(Team<Of::kWidth, 8, true>{}, static_cast<float*>(nullptr));
    }
  });
}

bool packs_fit(int64_t c, std::initializer_list<const void*> arrays) {
  return c % kPackWidth<float> == 0 && aligned(arrays);
}

}  // namespace

void layer_norm(float* y, float* stats, const float* x, const float* weight, const float* bias,
                int64_t rows, int64_t c, float epsilon) {
  launch_layer_norm("layer_norm", y, stats, Stored{x}, weight, bias,
                    packs_fit(c, {y, x, weight, bias}), rows, c, epsilon);
}

void layer_norm_grad(float* dx, float* dweight, float* dbias, const float* g, const float* x,
                     const float* stats, const float* weight, int64_t rows, int64_t c) {
  launch_layer_norm_grad("layer_norm_grad", dx, dweight, dbias, g, x, stats, weight,
                         packs_fit(c, {dx, g, x, weight}), rows, c, NoBranch{});
}

void dropout_add_layer_norm(float* y, float* sum, float* stats, const float* x, const float* bias,
                            const float* residual, const float* weight, const float* shift,
                            float probability, RngKey key, int64_t rows, int64_t c, float epsilon) {
  const Branch branch{sum, x, bias, residual, keep_of(probability), key};
  launch_layer_norm("dropout_add_layer_norm", y, stats, branch, weight, shift,
                    packs_fit(c, {y, sum, x, bias, residual, weight, shift}), rows, c, epsilon);
}

void dropout_add_layer_norm_grad(float* dx, float* dsum, float* dweight, float* dshift,
                                 const float* g, const float* sum, const float* stats,
                                 const float* weight, float probability, RngKey key, int64_t rows,
                                 int64_t c) {
  constexpr const char* kOp = "dropout_add_layer_norm_grad";
  const bool wide = packs_fit(c, {dx, dsum, g, sum, weight});
  if (dx == nullptr) {
    launch_layer_norm_grad(kOp, dsum, dweight, dshift, g, sum, stats, weight, wide, rows, c,
                           NoBranch{});
  } else {
    launch_layer_norm_grad(kOp, dsum, dweight, dshift, g, sum, stats, weight, wide, rows, c,
                           BranchGrad{dx, keep_of(probability), key});
  }
}

}  // namespace graft::cuda
