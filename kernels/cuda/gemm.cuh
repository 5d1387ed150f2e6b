// A tiled matrix product y = epilogue(a b), a (m, k), b (k, n), f32, for anything that can be read
// as two matrices: plain arrays here (MatrixOperand), images and filters in conv.cu.
//
// A block computes one tile of y from panels of a and b in shared memory, where the next panels
// arrive (cp.async) while the current ones are multiplied; a thread holds up to 8x8 sums in
// registers (the structure of V. Volkov and J. Demmel, "Benchmarking GPUs to tune dense linear
// algebra", SC 2008). Panels are stored depth by depth, so that the 4 neighbours that a thread
// reads for one k are one 16-byte load: 4 such loads for 64 multiply-adds.
//
// Numerics: f32 multiply-adds, k ascending within a chunk. Determinism: where y has too few tiles
// to fill a GPU, k is cut into chunks by the shape alone; their sums are kept apart and added in
// order by a second kernel. No atomics.
//
// An operand is a struct, passed by value, that says where its elements are (null: a zero). Its
// rows are m for a, n for b.
//   static constexpr bool kAlongRows;        neighbours in memory: neighbouring rows, else k
//   static constexpr int kPack;              elements moved at once, aligned, all there or none:
//                                            4 is for operands along rows, 1 for all
//   Row row(int64_t batch, int64_t r) const;            once for each row a thread copies, any r
//   Column column(int k) const;                         once for each k it copies, any k >= 0
//   const float* at(const Row&, const Column&) const;
// An epilogue takes finished sums, W (4, 2 or 1) neighbours of one row, all inside y:
//   bool wide;  // whether columns come in aligned groups of 4
//   template <int W> void store(int64_t batch, int64_t row, int64_t column, Pack<float, W>) const;
#pragma once

#include <algorithm>
#include <cmath>

#include "kernels/cuda/async_copy.cuh"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/plan.h"

namespace graft::cuda {

// kM x kN of y for a block, kThreadM x kThreadN for a thread, kDepth of k at a time; so many blocks
// are to fit on a multiprocessor.
template <int kBlockM, int kBlockN, int kBlockDepth, int kM_, int kN_, int kBlocks>
struct GemmTile {
  static constexpr int kM = kBlockM, kN = kBlockN, kDepth = kBlockDepth;
  static constexpr int kThreadM = kM_, kThreadN = kN_, kResident = kBlocks;
  static constexpr int kAcross = kN / kThreadN;  // threads side by side
  static constexpr int kThreads = kM / kThreadM * kAcross;
  static_assert(kThreadM % 4 == 0 && kThreadN % 4 == 0 && kAcross % 8 == 0 && kThreads % 32 == 0);
};
using LargeTile = GemmTile<128, 128, 8, 8, 8, 2>;
using MediumTile = GemmTile<64, 64, 8, 8, 4, 4>;
using TallTile = GemmTile<128, 32, 8, 8, 4, 4>;  // few columns
using FlatTile = GemmTile<32, 128, 8, 4, 8, 4>;  // few rows
using SmallTile = GemmTile<32, 32, 8, 4, 4, 8>;

// The sizes of a product and how it is cut.
struct GemmCut {
  int64_t batch, m, n, k;
  int64_t tiles_m, tiles_n;
  int64_t splits, chunk;  // k is cut into `splits` chunks
  int64_t tiles() const { return batch * tiles_m * tiles_n; }
  int64_t partials() const { return splits > 1 ? splits * batch * m * n : 0; }  // floats of scratch
};

// How a product is cut with this tile. The numbers suit GPUs of about 100 multiprocessors but do
// not depend on the one at hand.
template <class Tile>
GemmCut cut_gemm(int64_t batch, int64_t m, int64_t n, int64_t k) {
  constexpr int64_t kEnoughBlocks = 256, kLeastDepth = 128, kMostSplits = 64;
  GemmCut cut{batch, m, n, k, (m + Tile::kM - 1) / Tile::kM, (n + Tile::kN - 1) / Tile::kN, 1, k};
  const int64_t tiles = cut.tiles();
  if (tiles == 0 || tiles > kEnoughBlocks / 2) return cut;
  const int64_t wanted = std::min({kEnoughBlocks / tiles, k / kLeastDepth, kMostSplits});
  if (wanted < 2) return cut;
  const int64_t steps = (k + Tile::kDepth - 1) / Tile::kDepth;
  cut.chunk = (steps + wanted - 1) / wanted * Tile::kDepth;
  cut.splits = (k + cut.chunk - 1) / cut.chunk;
  return cut;
}

enum class GemmTileKind : uint8_t { large, medium, tall, flat, small };

// The tile for a product: by its shape alone.
inline GemmTileKind choose_tile(int64_t batch, int64_t m, int64_t n, int64_t k) {
  if (m <= 32 && n <= 32) return GemmTileKind::small;
  if (n <= 32) return GemmTileKind::tall;
  if (m <= 32) return GemmTileKind::flat;
  if (m <= 64 || n <= 64) return GemmTileKind::medium;
  const GemmCut large = cut_gemm<LargeTile>(batch, m, n, k);
  return large.tiles() * large.splits >= 96 ? GemmTileKind::large : GemmTileKind::medium;
}

// Calls use(tile) with an object of the tile's type.
template <class Use>
auto visit_tile(GemmTileKind kind, const Use& use) {
  switch (kind) {
    case GemmTileKind::large:
      return use(LargeTile{});
    case GemmTileKind::medium:
      return use(MediumTile{});
    case GemmTileKind::tall:
      return use(TallTile{});
    case GemmTileKind::flat:
      return use(FlatTile{});
    case GemmTileKind::small:
      break;
  }
  return use(SmallTile{});
}

// A row-major matrix (rows, depth) with k along memory, or (depth, rows) with rows along memory.
// kPack 4 wants 16-byte alignment of `data`, and `rows` and `stride` that 4 divides.
template <bool kAlong, int kPackWidth_ = 1, class T = float>
struct MatrixOperand {
  static constexpr bool kAlongRows = kAlong;
  static constexpr int kPack = kPackWidth_;
  const T* data;
  int64_t rows;
  int depth;
  int64_t batch_stride = 0;

  struct Row {
    const T* first;  // null: outside
  };
  struct Column {
    int64_t offset;  // negative: outside
  };
  __device__ Row row(int64_t batch, int64_t r) const {
    if (r >= rows) return {nullptr};
    return {data + batch * batch_stride + (kAlong ? r : r * depth)};
  }
  __device__ Column column(int k) const {
    if (k >= depth) return {-1};
    return {kAlong ? k * rows : k};
  }
  __device__ const T* at(const Row& row, const Column& column) const {
    return row.first != nullptr && column.offset >= 0 ? row.first + column.offset : nullptr;
  }
};

// What one thread copies of an operand's panels: tile[k][row], kStride floats from one k to the
// next. Where k runs along memory, 8 neighbouring threads copy 8 neighbouring k (a sector of 32
// bytes) of one row; the padding spreads their targets over the banks.
template <class Operand, int kRows, int kDepth, int kThreads>
class GemmPanel {
  static constexpr bool kAlong = Operand::kAlongRows;
  static constexpr int kPack = Operand::kPack;
  static constexpr int kSide = kAlong ? kRows / kPack : 8;
  static constexpr int kApart = kThreads / kSide;
  static constexpr int kRowCount = kAlong ? 1 : kRows / kApart;
  static constexpr int kColumnCount = kAlong ? (kDepth + kApart - 1) / kApart : kDepth / 8;
  static_assert(kThreads % kSide == 0 && (kAlong || kRows % kApart == 0) &&
                (kPack == 1 || kAlong) && kDepth % 8 == 0);

 public:
  static constexpr int kStride = kRows + 4;
  static constexpr int kFloats = kDepth * kStride;

  __device__ GemmPanel(const Operand& operand, int64_t batch, int64_t first_row)
      : operand_(operand) {
    for (int i = 0; i < kRowCount; ++i) rows_[i] = operand.row(batch, first_row + tile_row(i));
  }

  // Starts copying the panel that begins at k.
  __device__ void copy(float* tile, int k) const {
#pragma unroll
    for (int j = 0; j < kColumnCount; ++j) {
      const int depth = tile_depth(j);
      if (kDepth % kApart != 0 && depth >= kDepth) continue;
      const auto column = operand_.column(k + depth);
#pragma unroll
      for (int i = 0; i < kRowCount; ++i) {
        const float* source = operand_.at(rows_[i], column);
        copy_async<4 * kPack>(tile + depth * kStride + tile_row(i), source, source != nullptr);
      }
    }
  }

 private:
  __device__ static int tile_row(int i) {
    const int thread = static_cast<int>(threadIdx.x);
    return kAlong ? thread % kSide * kPack : thread / kSide + i * kApart;
  }
  __device__ static int tile_depth(int j) {
    const int thread = static_cast<int>(threadIdx.x);
    return kAlong ? thread / kSide + j * kApart : thread % kSide + j * 8;
  }

  const Operand& operand_;
  typename Operand::Row rows_[kRowCount];
};

// Where a thread's sums lie: groups of 4 rows and columns, kM / (kThreadM / 4) apart, so that a
// warp's 4 x 8 threads read neighbouring 16 bytes.
template <class Tile>
struct GemmPlace {
  int down, across;
  __device__ GemmPlace() {
    const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
    constexpr int kWarpsAcross = Tile::kAcross / 8;
    down = warp / kWarpsAcross * 4 + lane / 8;
    across = warp % kWarpsAcross * 8 + lane % 8;
  }
  __device__ int row(int i) const {
    return i / 4 * (Tile::kM * 4 / Tile::kThreadM) + down * 4 + i % 4;
  }
  __device__ int column(int j) const {
    return j / 4 * (Tile::kN * 4 / Tile::kThreadN) + across * 4 + j % 4;
  }
};

// sums += a panel of a times a panel of b.
template <class Tile, int kStrideA, int kStrideB>
__device__ void multiply_panels(float (&sums)[Tile::kThreadM][Tile::kThreadN],
                                const GemmPlace<Tile>& place, const float* a, const float* b) {
#pragma unroll
  for (int k = 0; k < Tile::kDepth; ++k) {
    Pack<float, 4> pa[Tile::kThreadM / 4], pb[Tile::kThreadN / 4];
#pragma unroll
    for (int i = 0; i < Tile::kThreadM / 4; ++i) {
      pa[i] = load<4>(a + k * kStrideA + place.row(i * 4));
    }
#pragma unroll
    for (int j = 0; j < Tile::kThreadN / 4; ++j) {
      pb[j] = load<4>(b + k * kStrideB + place.column(j * 4));
    }
#pragma unroll
    for (int i = 0; i < Tile::kThreadM; ++i) {
#pragma unroll
      for (int j = 0; j < Tile::kThreadN; ++j) {
        sums[i][j] = fmaf(pa[i / 4].v[i % 4], pb[j / 4].v[j % 4], sums[i][j]);
      }
    }
  }
}

// Chunks' sums, kept apart for sum_splits_kernel.
struct GemmPartials {
  float* data;
  int64_t m, n;
  bool wide;
  template <int W>
  __device__ void store(int64_t part, int64_t row, int64_t column, Pack<float, W> sums) const {
    store_whole(data + (part * m + row) * n + column, sums);
  }
};

template <class Tile, class Output>
__device__ void store_tile(const float (&sums)[Tile::kThreadM][Tile::kThreadN],
                           const GemmPlace<Tile>& place, const Output& output, int64_t batch,
                           int64_t first_row, int64_t first_column, const GemmCut& cut) {
#pragma unroll
  for (int i = 0; i < Tile::kThreadM; ++i) {
    const int64_t row = first_row + place.row(i);
#pragma unroll
    for (int j = 0; j < Tile::kThreadN; j += 4) {
      const int64_t column = first_column + place.column(j);
      if (row >= cut.m || column >= cut.n) continue;
      if (output.wide) {
        output.template store<4>(
            batch, row, column,
            Pack<float, 4>{{sums[i][j], sums[i][j + 1], sums[i][j + 2], sums[i][j + 3]}});
      } else {
#pragma unroll
        for (int l = 0; l < 4; ++l) {
          if (column + l < cut.n) {
            output.template store<1>(batch, row, column + l, Pack<float, 1>{{sums[i][j + l]}});
          }
        }
      }
    }
  }
}

// Which tile and chunk a block computes: chunks slowest, columns of tiles fastest.
template <class Tile>
struct GemmBlock {
  unsigned batch, split, tile_m, tile_n;
  int begin, end;  // of k
  __device__ explicit GemmBlock(const GemmCut& cut) {
    // gemm_grid() makes sure that 31 bits are enough.
    unsigned rest = blockIdx.x;
    tile_n = rest % static_cast<unsigned>(cut.tiles_n);
    rest /= static_cast<unsigned>(cut.tiles_n);
    tile_m = rest % static_cast<unsigned>(cut.tiles_m);
    rest /= static_cast<unsigned>(cut.tiles_m);
    batch = rest % static_cast<unsigned>(cut.batch);
    split = rest / static_cast<unsigned>(cut.batch);
    const int64_t first = split * cut.chunk;
    begin = static_cast<int>(first);
    end = static_cast<int>(cut.k - first < cut.chunk ? cut.k : first + cut.chunk);
  }
  __device__ int64_t first_row() const { return int64_t{tile_m} * Tile::kM; }
  __device__ int64_t first_column() const { return int64_t{tile_n} * Tile::kN; }
};

template <class Tile, class A, class B, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    gemm_kernel(A a, B b, Epilogue epilogue, GemmPartials partials, GemmCut cut) {
  using PanelA = GemmPanel<A, Tile::kM, Tile::kDepth, Tile::kThreads>;
  using PanelB = GemmPanel<B, Tile::kN, Tile::kDepth, Tile::kThreads>;
  GRAFT_SHARED(float, tile_a, [2][PanelA::kFloats]);
  GRAFT_SHARED(float, tile_b, [2][PanelB::kFloats]);

  const GemmBlock<Tile> block(cut);
  const PanelA panel_a(a, block.batch, block.first_row());
  const PanelB panel_b(b, block.batch, block.first_column());
  const GemmPlace<Tile> place;
  float sums[Tile::kThreadM][Tile::kThreadN] = {};

  panel_a.copy(tile_a[0], block.begin);
  panel_b.copy(tile_b[0], block.begin);
  commit_copies();
  int current = 0;
  for (int k = block.begin; k < block.end; k += Tile::kDepth) {
    wait_copies<0>();
    // The current panels are there for all, and all are done with the other ones.
    __syncthreads();
    if (k + Tile::kDepth < block.end) {
      panel_a.copy(tile_a[current ^ 1], k + Tile::kDepth);
      panel_b.copy(tile_b[current ^ 1], k + Tile::kDepth);
      commit_copies();
    }
    multiply_panels<Tile, PanelA::kStride, PanelB::kStride>(sums, place, tile_a[current],
                                                            tile_b[current]);
    current ^= 1;
  }

  if (cut.splits == 1) {
    store_tile<Tile>(sums, place, epilogue, block.batch, block.first_row(), block.first_column(),
                     cut);
  } else {
    store_tile<Tile>(sums, place, partials, block.split * cut.batch + block.batch,
                     block.first_row(), block.first_column(), cut);
  }
}

// The second pass where k was cut: adds the chunks' sums in order. kWidth columns a thread.
template <int kWidth, class Epilogue>
__global__ void sum_splits_kernel(Epilogue epilogue, const float* partials, GemmCut cut) {
  const int64_t total = cut.batch * cut.m * cut.n;
  const int64_t step = int64_t{gridDim.x} * blockDim.x * kWidth;
  for (int64_t i = (int64_t{blockIdx.x} * blockDim.x + threadIdx.x) * kWidth; i < total;
       i += step) {
    Pack<float, kWidth> sums = load<kWidth>(partials + i);
    for (int64_t split = 1; split < cut.splits; ++split) {
      const Pack<float, kWidth> part = load<kWidth>(partials + split * total + i);
      for (int j = 0; j < kWidth; ++j) sums.v[j] += part.v[j];
    }
    const int64_t row = i / cut.n;
    epilogue.template store<kWidth>(row / cut.m, row % cut.m, i % cut.n, sums);
  }
}

template <class Tile>
Grid gemm_grid(const char* op, const GemmCut& cut) {
  const int64_t blocks = cut.tiles() * cut.splits;
  GRAFT_CHECK(blocks <= INT32_MAX && cut.k <= INT32_MAX, op, ": a product of ", cut.batch, " x (",
              cut.m, " x ", cut.k, ") (", cut.k, " x ", cut.n,
              ") is too large for one grid; split the batch");
  return {blocks, Tile::kThreads};
}

// The second pass, where there is one.
template <class Epilogue>
void sum_splits(const char* op, const Epilogue& epilogue, const GemmCut& cut,
                const float* partials) {
  if (cut.splits == 1) return;
  const int64_t outputs = cut.batch * cut.m * cut.n;
  if (cut.n % 4 == 0 && epilogue.wide) {
    launch(op, grid_for(outputs / 4), 0, sum_splits_kernel<4, Epilogue>, epilogue, partials, cut);
  } else {
    launch(op, grid_for(outputs), 0, sum_splits_kernel<1, Epilogue>, epilogue, partials, cut);
  }
}

// Runs a product (k below 2^31) that was cut with cut_gemm<Tile>(). partials: cut.partials()
// floats, 16-byte aligned.
template <class Tile, class A, class B, class Epilogue>
void launch_gemm(const char* op, const A& a, const B& b, const Epilogue& epilogue,
                 const GemmCut& cut, float* partials) {
  launch(op, gemm_grid<Tile>(op, cut), 0, gemm_kernel<Tile, A, B, Epilogue>, a, b, epilogue,
         GemmPartials{partials, cut.m, cut.n, cut.n % 4 == 0}, cut);
  sum_splits(op, epilogue, cut, partials);
}

// Calls use(operand of a, operand of b) for the layouts of a product;
// operands.make<along rows>(data, rows, depth, shared) makes one.
template <class T, class Operands, class Use>
void visit_operands(const MatmulShape& s, const T* a, const T* b, const Operands& operands,
                    const Use& use) {
  const auto with_b = [&](const auto& left) {
    if (s.transpose_b) {
      use(left, operands.template make<false>(b, s.n, s.k, s.shared_b));
    } else {
      use(left, operands.template make<true>(b, s.n, s.k, s.shared_b));
    }
  };
  if (s.transpose_a) {
    with_b(operands.template make<true>(a, s.m, s.k, s.shared_a));
  } else {
    with_b(operands.template make<false>(a, s.m, s.k, s.shared_a));
  }
}

}  // namespace graft::cuda
