// The tiled product of gemm.cuh on tensor cores: bf16 operands, f32 sums. For anything that can be
// read as two matrices: plain arrays (gemm_bf16.cu), images and filters (conv_bf16.cu).
// Source: NVIDIA, "CUTLASS: efficient GEMM in CUDA" (the tiling); mma.cuh for the instructions.
//
// A block computes one tile of y; panels of a and b pass through a ring of shared-memory stages
// (cp.async, 16 bytes) two steps ahead of the products. A warp reads fragments with ldmatrix, the
// transposing form where the operand does not lie along k.
//
// Layout: operands and epilogues as gemm.cuh describes them, elements of uint16_t; kPack is 8 where
// neighbours, rows or k, come in aligned groups of 8, else 1: then they are copied one by one. Rows
// in shared memory are padded by 16 bytes, so that the 8 rows of a matrix lie in different banks.
// Numerics: f32 sums, rounded by the epilogue. Determinism: as gemm.cuh.
#pragma once

#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/mma.cuh"

namespace graft::cuda {

constexpr int kMmaStages = 3;

// kM x kN of y for a block, kWarpM x kWarpN for a warp.
template <int kBlockM, int kBlockN, int kWarpRows, int kWarpColumns, int kBlocks>
struct MmaTile {
  static constexpr int kM = kBlockM, kN = kBlockN, kDepth = 32;
  static constexpr int kWarpM = kWarpRows, kWarpN = kWarpColumns, kResident = kBlocks;
  static constexpr int kWarpsAcross = kN / kWarpN;
  static constexpr int kThreads = kM / kWarpM * kWarpsAcross * 32;
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0);
};
using LargeMmaTile = MmaTile<128, 128, 64, 32, 2>;
using SmallMmaTile = MmaTile<64, 64, 32, 32, 3>;

// An operand's panel in shared memory, in the order in which it lies in global memory, and what one
// thread copies of it.
template <class Operand, int kRows, int kDepth, int kThreads>
class MmaPanel {
  static constexpr bool kAlong = Operand::kAlongRows;
  static constexpr int kPack = Operand::kPack;
  static constexpr int kInner = kAlong ? kRows : kDepth, kOuter = kAlong ? kDepth : kRows;
  static constexpr int kStride = kInner + 8;
  static constexpr int kSide = kInner / kPack, kApart = kThreads / kSide;
  static constexpr int kCopies = kOuter / kApart;
  // One by one the addresses are too many to be kept in registers.
  static constexpr bool kKeepsRows = kAlong || kPack > 1;
  static constexpr int kRowCount = kAlong || kPack == 1 ? 1 : kCopies;
  static constexpr int kUnroll = kPack == 1 ? 1 : kCopies;
  static_assert(kThreads % kSide == 0 && kOuter % kApart == 0);

 public:
  static constexpr int kElements = kOuter * kStride;

  __device__ MmaPanel(const Operand& operand, int64_t batch, int64_t first_row)
      : operand_(operand), batch_(batch), first_row_(first_row) {
    if constexpr (kKeepsRows) {
      for (int i = 0; i < kRowCount; ++i) rows_[i] = find_row(i);
    }
  }

  // Starts copying the panel that begins at k.
  __device__ void copy(uint16_t* tile, int k) const {
#pragma unroll kUnroll
    for (int i = 0; i < kCopies; ++i) {
      const auto column = operand_.column(k + (kAlong ? outer(i) : inner()));
      const uint16_t* source;
      if constexpr (kKeepsRows) {
        source = operand_.at(rows_[kAlong ? 0 : i], column);
      } else {
        source = operand_.at(find_row(i), column);
      }
      uint16_t* target = tile + outer(i) * kStride + inner();
      if constexpr (kPack == 8) {
        copy_async<16>(target, source, source != nullptr);
      } else {
        *target = source != nullptr ? *source : uint16_t{0};
      }
    }
  }

  // The 16 rows from `row` on and the 16 k from `k` on as four matrices: (row, k), then (row + 8,
  // k) and (row, k + 8) in the order that the instruction wants, then (row + 8, k + 8).
  template <bool kRowsFirst>
  __device__ static FourMatrices fragment(const uint16_t* tile, int row, int k) {
    const int lane = static_cast<int>(threadIdx.x) % 32, low = lane / 8 % 2 * 8,
              high = lane / 16 * 8;
    const int at_row = row + (kRowsFirst ? low : high), at_k = k + (kRowsFirst ? high : low);
    const int along = kAlong ? at_row : at_k, across = (kAlong ? at_k : at_row) + lane % 8;
    return load_matrices<kAlong>(tile + across * kStride + along);
  }

 private:
  // Where this thread's i-th copy goes.
  __device__ static int inner() { return static_cast<int>(threadIdx.x) % kSide * kPack; }
  __device__ static int outer(int i) { return static_cast<int>(threadIdx.x) / kSide + i * kApart; }
  __device__ typename Operand::Row find_row(int i) const {
    return operand_.row(batch_, first_row_ + (kAlong ? inner() : outer(i)));
  }

  const Operand& operand_;
  int64_t batch_, first_row_;
  typename Operand::Row rows_[kRowCount];
};

template <class Tile, class A, class B, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    mma_kernel(A a, B b, Epilogue epilogue, GemmPartials partials, GemmCut cut) {
  using PanelA = MmaPanel<A, Tile::kM, Tile::kDepth, Tile::kThreads>;
  using PanelB = MmaPanel<B, Tile::kN, Tile::kDepth, Tile::kThreads>;
  constexpr int kStage = PanelA::kElements + PanelB::kElements;
  GRAFT_DYNAMIC_SHARED(uint16_t, stages);

  const GemmBlock<Tile> block(cut);
  const PanelA from_a(a, block.batch, block.first_row());
  const PanelB from_b(b, block.batch, block.first_column());
  const int steps = (block.end - block.begin + Tile::kDepth - 1) / Tile::kDepth;
  const auto fetch = [&](int step) {
    if (step < steps) {
      uint16_t* stage = stages + step % kMmaStages * kStage;
      const int k = block.begin + step * Tile::kDepth;
      from_a.copy(stage, k);
      from_b.copy(stage + PanelA::kElements, k);
    }
    commit_copies();  // a group a step, if an empty one, so that they can be counted
  };

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / Tile::kWarpsAcross * Tile::kWarpM;
  const int warp_column = warp % Tile::kWarpsAcross * Tile::kWarpN;
  constexpr int kDown = Tile::kWarpM / 16, kAcross = Tile::kWarpN / 8;
  MmaSums sums[kDown][kAcross] = {};

  for (int step = 0; step < kMmaStages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    wait_copies<kMmaStages - 2>();
    // This step's panels are there for all, and all are done with those of the step before.
    __syncthreads();
    fetch(step + kMmaStages - 1);
    const uint16_t* panel_a = stages + step % kMmaStages * kStage;
    const uint16_t* panel_b = panel_a + PanelA::kElements;
#pragma unroll
    for (int k = 0; k < Tile::kDepth; k += 16) {
      FourMatrices left[kDown];
#pragma unroll
      for (int i = 0; i < kDown; ++i) {
        left[i] = PanelA::template fragment<true>(panel_a, warp_row + i * 16, k);
      }
#pragma unroll
      for (int j = 0; j < kAcross; j += 2) {
        const FourMatrices right =
            PanelB::template fragment<false>(panel_b, warp_column + j * 8, k);
#pragma unroll
        for (int i = 0; i < kDown; ++i) {
          multiply_add(sums[i][j], left[i], right.v[0], right.v[1]);
          multiply_add(sums[i][j + 1], left[i], right.v[2], right.v[3]);
        }
      }
    }
  }

  const auto store_all = [&](const auto& output, int64_t part) {
#pragma unroll
    for (int i = 0; i < kDown * 2; ++i) {
      const int64_t row = block.first_row() + warp_row + i * 8 + lane / 4;
#pragma unroll
      for (int j = 0; j < kAcross; ++j) {
        const int64_t column = block.first_column() + warp_column + j * 8 + lane % 4 * 2;
        if (row >= cut.m || column >= cut.n) continue;
        const float* pair = &sums[i / 2][j].v[i % 2 * 2];
        if (output.wide) {
          output.template store<2>(part, row, column, Pack<float, 2>{{pair[0], pair[1]}});
        } else {
          output.template store<1>(part, row, column, Pack<float, 1>{{pair[0]}});
          if (column + 1 < cut.n) {
            output.template store<1>(part, row, column + 1, Pack<float, 1>{{pair[1]}});
          }
        }
      }
    }
  };
  if (cut.splits == 1) {
    store_all(epilogue, block.batch);
  } else {
    store_all(partials, block.split * cut.batch + block.batch);
  }
}

// Runs a product (k below 2^31) that was cut with cut_gemm<Tile>(). partials: cut.partials()
// floats, 16-byte aligned.
template <class Tile, class A, class B, class Epilogue>
void launch_mma(const char* op, const A& a, const B& b, const Epilogue& epilogue,
                const GemmCut& cut, float* partials) {
  constexpr int kStage = MmaPanel<A, Tile::kM, Tile::kDepth, Tile::kThreads>::kElements +
                         MmaPanel<B, Tile::kN, Tile::kDepth, Tile::kThreads>::kElements;
  launch(op, gemm_grid<Tile>(op, cut), kMmaStages * kStage * sizeof(uint16_t),
         mma_kernel<Tile, A, B, Epilogue>, a, b, epilogue,
         GemmPartials{partials, cut.m, cut.n, cut.n % 4 == 0}, cut);
  sum_splits(op, epilogue, cut, partials);
}

// Calls use(tile) with the tile for a product, by its shape alone: Large for much work. kPack: of
// its operands.
template <int kPack, class Large = LargeMmaTile, class Use>
auto with_mma_tile(int64_t batch, int64_t m, int64_t n, int64_t k, const Use& use) {
  if constexpr (kPack > 1) {
    if (cut_gemm<Large>(batch, m, n, k).tiles() >= 96) return use(Large{});
  }
  return use(SmallMmaTile{});
}

}  // namespace graft::cuda
