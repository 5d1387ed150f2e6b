// Matrix products y = a b + bias: cuBLASLt's where the library is there (cublaslt.cu), else the
// tiled kernel of gemm.cuh, which also takes arrays that are not aligned to 16 bytes.
//
// Layout: row-major f32, either operand transposed or shared by the batch. Numerics: f32 products
// and sums, no TF32. Determinism: tile and cut of k by the shape alone (gemm.cuh).
#include <algorithm>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

struct MatmulPlan {
  MatmulShape shape;
  GemmTileKind tile;
  GemmCut cut;
  std::shared_ptr<const LibraryProduct> library;  // null: our own kernel
};

const MatmulPlan& plan_of(const LibraryPlan& plan) {
  return *static_cast<const MatmulPlan*>(plan.primitive.get());
}

struct MatmulEpilogue {
  float* y;
  const float* bias;  // null: none
  int64_t m, n;
  bool wide;

  template <int W>
  __device__ void store(int64_t batch, int64_t row, int64_t column, Pack<float, W> sums) const {
    if (bias != nullptr) {
      const Pack<float, W> added = load<W>(bias + column);
      for (int j = 0; j < W; ++j) sums.v[j] += added.v[j];
    }
    store_whole(y + (batch * m + row) * n + column, sums);
  }
};

// Makes the rows of a, or the columns of b, as they lie.
template <int kPack>
struct MakeOperand {
  template <bool kAlong>
  auto make(const float* data, int64_t rows, int64_t depth, bool shared) const {
    return MatrixOperand < kAlong,
           kAlong ? kPack : 1 > {data, rows, static_cast<int>(depth), shared ? 0 : rows * depth};
  }
};

// Whether the operands that do not lie along k can be read 16 bytes at a time.
bool packable(const MatmulShape& s, const float* a, const float* b) {
  return (!s.transpose_a || (s.m % 4 == 0 && aligned({a}))) &&
         (s.transpose_b || (s.n % 4 == 0 && aligned({b})));
}

}  // namespace

LibraryPlan matmul_plan(const MatmulShape& s) {
  const GemmTileKind tile = choose_tile(s.batch, s.m, s.n, s.k);
  const GemmCut cut = visit_tile(
      tile, [&](auto chosen) { return cut_gemm<decltype(chosen)>(s.batch, s.m, s.n, s.k); });
  const auto library = library_product(s);
  LibraryPlan plan;
  plan.scratch_bytes = static_cast<size_t>(cut.partials()) * sizeof(float);
  if (library != nullptr) {
    plan.scratch_bytes = std::max(plan.scratch_bytes, library_scratch(*library));
  }
  plan.primitive = std::make_shared<const MatmulPlan>(MatmulPlan{s, tile, cut, library});
  return plan;
}

// Every plan here reads weights as they are.
void pack_weight(const LibraryPlan& plan, void* packed, const float* weight) {
  check(cudaMemcpyAsync(packed, weight, plan.packed_bytes, cudaMemcpyDeviceToDevice, stream()),
        "pack_weight");
}

void matmul(const LibraryPlan& plan, Reals y_array, ConstReals a_array, const void* weight,
            const float* bias, void* scratch) {
  const MatmulPlan& chosen = plan_of(plan);
  const MatmulShape& s = chosen.shape;
  auto* y = y_array.as<float>();
  const auto* a = a_array.as<float>();
  const float* b = static_cast<const float*>(weight);
  if (chosen.library != nullptr && aligned({y, a, b, bias}) &&
      library_matmul(*chosen.library, y, a, b, bias, scratch)) {
    return;
  }
  const MatmulEpilogue epilogue{y, bias, s.m, s.n, s.n % 4 == 0 && aligned({y, bias})};
  const auto run = [&](const auto& left, const auto& right) {
    visit_tile(chosen.tile, [&](auto tile) {
      launch_gemm<decltype(tile)>("matmul", left, right, epilogue, chosen.cut,
                                  static_cast<float*>(scratch));
    });
  };
  if (packable(s, a, b)) {
    visit_operands(s, a, b, MakeOperand<4>(), run);
  } else {
    visit_operands(s, a, b, MakeOperand<1>(), run);
  }
}

}  // namespace graft::cuda
