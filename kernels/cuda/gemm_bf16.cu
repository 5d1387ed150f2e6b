// Matrix products y = a b + bias of bf16 matrices on tensor cores.
// Source: NVIDIA, "CUTLASS: efficient GEMM in CUDA" (the tiling); mma.cuh for the instructions.
//
// A block computes one tile of y; panels of a and b pass through a ring of shared-memory stages
// (cp.async, 16 bytes) two steps ahead of the products. A warp reads fragments with ldmatrix, the
// transposing form where the operand does not lie along k.
//
// Layout: row-major, either operand transposed or shared by the batch. 16-byte copies want operands
// aligned to 16 bytes and 8 that divides their innermost size; others are copied one by one. Rows
// in shared memory are padded by 16 bytes, so that the 8 rows of a matrix lie in different banks.
// Numerics: f32 sums, one rounding to y's type. Determinism: k is cut by the shape alone, the
// chunks' sums are added in order (gemm.cuh).
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm_bf16.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/scratch.h"

namespace graft::cuda {
namespace {

constexpr int kStages = 3;

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
struct MmaPanel {
  static constexpr bool kAlong = Operand::kAlongRows;
  static constexpr int kPack = Operand::kPack;
  static constexpr int kInner = kAlong ? kRows : kDepth, kOuter = kAlong ? kDepth : kRows;
  static constexpr int kStride = kInner + 8, kElements = kOuter * kStride;
  static constexpr int kSide = kInner / kPack, kApart = kThreads / kSide;
  // One by one the addresses are too many to be kept in registers.
  static constexpr int kUnroll = kPack == 1 ? 1 : kOuter / kApart;
  static_assert(kThreads % kSide == 0 && kOuter % kApart == 0);

  __device__ static void copy(const Operand& operand, uint16_t* tile, int64_t batch,
                              int64_t first_row, int k) {
    const int thread = static_cast<int>(threadIdx.x), inner = thread % kSide * kPack;
#pragma unroll kUnroll
    for (int i = 0; i < kOuter / kApart; ++i) {
      const int outer = thread / kSide + i * kApart;
      const uint16_t* source = operand.at(operand.row(batch, first_row + (kAlong ? inner : outer)),
                                          operand.column(k + (kAlong ? outer : inner)));
      uint16_t* target = tile + outer * kStride + inner;
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
    const int inner = kAlong ? at_row : at_k, outer = (kAlong ? at_k : at_row) + lane % 8;
    return load_matrices<kAlong>(tile + outer * kStride + inner);
  }
};

template <class Tile, class A, class B, class Epilogue>
__global__ void __launch_bounds__(Tile::kThreads, Tile::kResident)
    mma_kernel(A a, B b, Epilogue epilogue, GemmPartials partials, GemmCut cut) {
  using PanelA = MmaPanel<A, Tile::kM, Tile::kDepth, Tile::kThreads>;
  using PanelB = MmaPanel<B, Tile::kN, Tile::kDepth, Tile::kThreads>;
  constexpr int kStage = PanelA::kElements + PanelB::kElements;
  GRAFT_DYNAMIC_SHARED(uint16_t, stages);

  const GemmBlock<Tile> block(cut);
  const int steps = (block.end - block.begin + Tile::kDepth - 1) / Tile::kDepth;
  const auto fetch = [&](int step) {
    if (step < steps) {
      uint16_t* stage = stages + step % kStages * kStage;
      const int k = block.begin + step * Tile::kDepth;
      PanelA::copy(a, stage, block.batch, block.first_row(), k);
      PanelB::copy(b, stage + PanelA::kElements, block.batch, block.first_column(), k);
    }
    commit_copies();  // a group a step, if an empty one, so that they can be counted
  };

  const int lane = static_cast<int>(threadIdx.x) % 32, warp = static_cast<int>(threadIdx.x) / 32;
  const int warp_row = warp / Tile::kWarpsAcross * Tile::kWarpM;
  const int warp_column = warp % Tile::kWarpsAcross * Tile::kWarpN;
  constexpr int kDown = Tile::kWarpM / 16, kAcross = Tile::kWarpN / 8;
  MmaSums sums[kDown][kAcross] = {};

  for (int step = 0; step < kStages - 1; ++step) fetch(step);
  for (int step = 0; step < steps; ++step) {
    wait_copies<kStages - 2>();
    // This step's panels are there for all, and all are done with those of the step before.
    __syncthreads();
    fetch(step + kStages - 1);
    const uint16_t* panel_a = stages + step % kStages * kStage;
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

__device__ void write(float& to, float value) { to = value; }
__device__ void write(uint16_t& to, float value) { to = to_bf16(value); }

template <class T>
struct Bf16Epilogue {
  T* y;
  const float* bias;  // null: none
  int64_t m, n;
  bool wide;

  template <int W>
  __device__ void store(int64_t batch, int64_t row, int64_t column, Pack<float, W> sums) const {
    if (bias != nullptr) {
      const Pack<float, W> added = load<W>(bias + column);
      for (int j = 0; j < W; ++j) sums.v[j] += added.v[j];
    }
    Pack<T, W> result;
    for (int j = 0; j < W; ++j) write(result.v[j], sums.v[j]);
    graft::cuda::store(y + (batch * m + row) * n + column, result);
  }
};

template <class Tile, class A, class B, class Epilogue>
void launch_mma(const A& a, const B& b, const Epilogue& epilogue, const MatmulShape& s) {
  const GemmCut cut = cut_gemm<Tile>(s.batch, s.m, s.n, s.k);
  float* partials =
      cut.splits == 1
          ? nullptr
          : static_cast<float*>(scratch("matmul", static_cast<size_t>(cut.partials()) * 4));
  constexpr int kStage = MmaPanel<A, Tile::kM, Tile::kDepth, Tile::kThreads>::kElements +
                         MmaPanel<B, Tile::kN, Tile::kDepth, Tile::kThreads>::kElements;
  launch("matmul", gemm_grid<Tile>("matmul", cut), kStages * kStage * sizeof(uint16_t),
         mma_kernel<Tile, A, B, Epilogue>, a, b, epilogue,
         GemmPartials{partials, cut.m, cut.n, cut.n % 4 == 0}, cut);
  sum_splits("matmul", epilogue, cut, partials);
}

template <int kPack>
struct MakeOperand {
  template <bool kAlong>
  auto make(const uint16_t* data, int64_t rows, int64_t depth, bool shared) const {
    return MatrixOperand<kAlong, kPack, uint16_t>{data, rows, static_cast<int>(depth),
                                                  shared ? 0 : rows * depth};
  }
};

template <int kPack, class Epilogue>
void multiply(const MatmulShape& s, const uint16_t* a, const uint16_t* b,
              const Epilogue& epilogue) {
  const auto run = [&](const auto& left, const auto& right) {
    if constexpr (kPack > 1) {
      if (cut_gemm<LargeMmaTile>(s.batch, s.m, s.n, s.k).tiles() >= 96) {
        launch_mma<LargeMmaTile>(left, right, epilogue, s);
        return;
      }
    }
    launch_mma<SmallMmaTile>(left, right, epilogue, s);
  };
  visit_operands(s, a, b, MakeOperand<kPack>(), run);
}

template <class T>
void matmul_to(const MatmulShape& s, T* y, const uint16_t* a, const uint16_t* b,
               const float* bias) {
  const Bf16Epilogue<T> epilogue{y, bias, s.m, s.n, s.n % 4 == 0 && aligned({y, bias})};
  const bool packable = aligned({a, b}) && (s.transpose_a ? s.m : s.k) % 8 == 0 &&
                        (s.transpose_b ? s.k : s.n) % 8 == 0;
  if (packable) {
    multiply<8>(s, a, b, epilogue);
  } else {
    multiply<1>(s, a, b, epilogue);
  }
}

}  // namespace

void matmul_bf16(const MatmulShape& s, uint16_t* y, const uint16_t* a, const uint16_t* b,
                 const float* bias) {
  matmul_to(s, y, a, b, bias);
}
void matmul_bf16(const MatmulShape& s, float* y, const uint16_t* a, const uint16_t* b,
                 const float* bias) {
  matmul_to(s, y, a, b, bias);
}

}  // namespace graft::cuda
