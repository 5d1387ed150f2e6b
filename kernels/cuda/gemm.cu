// Matrix products y = a b + bias: cuBLASLt's where the library is there (cublaslt.cu), else the
// tiled kernel of gemm.cuh, which also takes arrays that are not aligned to 16 bytes.
//
// Layout: row-major, either operand transposed or shared by the batch. Numerics: f32 products and
// sums, no TF32; bf16 products on tensor cores with f32 sums (gemm_bf16.cu), for which an f32
// weight is rounded when it is packed. Determinism: tile and cut of k by the shape alone
// (gemm.cuh).
#include <algorithm>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm_bf16.h"
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
  if (s.dtype == Dtype::bf16) {
    LibraryPlan plan;
    if (s.weight_b) {
      plan.packing = 1;
      plan.packed_bytes = static_cast<size_t>(s.k * s.n) * size_of(Dtype::bf16);
    }
    const auto library = library_product(s);
    if (library != nullptr) plan.scratch_bytes = library_scratch(*library);
    plan.primitive = std::make_shared<const MatmulPlan>(MatmulPlan{s, {}, {}, library});
    return plan;
  }
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

// The one packing: rounded to bf16.
void pack_weight(const LibraryPlan& plan, void* packed, const float* weight) {
  cast(packed, Dtype::bf16, weight, Dtype::f32,
       static_cast<int64_t>(plan.packed_bytes / size_of(Dtype::bf16)));
}

void matmul(const LibraryPlan& plan, Reals y_array, ConstReals a_array, const void* weight,
            const float* bias, void* scratch) {
  const MatmulPlan& chosen = plan_of(plan);
  const MatmulShape& s = chosen.shape;
  if (chosen.library != nullptr && aligned({y_array.data, a_array.data, weight, bias}) &&
      library_matmul(*chosen.library, y_array.data, a_array.data, weight, bias, scratch)) {
    return;
  }
  if (s.dtype == Dtype::bf16) {
    const auto* a = a_array.as<uint16_t>();
    const auto* b = static_cast<const uint16_t*>(weight);
    if (s.y_dtype == Dtype::bf16) {
      matmul_bf16(s, y_array.as<uint16_t>(), a, b, bias);
    } else {
      matmul_bf16(s, y_array.as<float>(), a, b, bias);
    }
    return;
  }
  auto* y = y_array.as<float>();
  const auto* a = a_array.as<float>();
  const float* b = static_cast<const float*>(weight);
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
