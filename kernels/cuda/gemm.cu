// Matrix products y = a b + bias: cuBLASLt's where the library is there (cublaslt.cu), else the
// tiled kernel of gemm.cuh, which also takes arrays that are not aligned to 16 bytes. GELU, its
// derivative and the sums of a's columns are done with the product where the library can (it has
// GELU by tanh only), else in a pass behind it; our own kernel has both forms of GELU
// (gemm_gelu.cu), and sums columns in a pass.
//
// Layout: row-major, either operand transposed or shared by the batch. Numerics: f32 products and
// sums, no TF32; bf16 products on tensor cores with f32 sums (gemm_bf16.cu), for which an f32
// weight is rounded when it is packed. Determinism: tile and cut of k by the shape alone
// (gemm.cuh).
#include <algorithm>

#include "kernels/cuda/cublaslt.h"
#include "kernels/cuda/gemm.cuh"
#include "kernels/cuda/gemm_bf16.h"
#include "kernels/cuda/gemm_end.cuh"
#include "kernels/cuda/gemm_gelu.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

struct MatmulPlan {
  MatmulShape shape;
  MatmulShape library_shape;  // what the library does of it; the rest are passes behind that
  std::shared_ptr<const LibraryProduct> library = nullptr;  // null: our own kernel
  size_t pre_offset = 0;  // in scratch, for what GELU is taken of where nobody wants it
  // Of our own kernel in f32.
  GemmTileKind tile = kGeluTile;
  GemmCut cut{};
};

const MatmulPlan& plan_of(const LibraryPlan& plan) {
  return *static_cast<const MatmulPlan*>(plan.primitive.get());
}

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

// The sums of a's columns, behind the product: its scratch memory is free then.
void sum_columns(const MatmulShape& s, float* sums, ConstReals a, void* scratch) {
  ColumnSums(s).run(sums, a, scratch, cast, reduce_sum);
}

// False: nothing was done.
bool by_library(const MatmulPlan& chosen, Reals y, ConstReals a, const void* b,
                const MatmulArrays& others, void* scratch) {
  const MatmulShape &s = chosen.shape, &does = chosen.library_shape;
  if (chosen.library == nullptr ||
      !aligned({y.data, a.data, b, others.bias, others.pre, others.sums})) {
    return false;
  }
  const bool passes = s.end != does.end, gelu = s.end == MatmulEnd::gelu;
  MatmulArrays given = others;
  if (!does.sums_a) given.sums = nullptr;
  if (passes) given.pre = nullptr;
  if (!passes && gelu && given.pre == nullptr) {
    given.pre = static_cast<char*>(scratch) + chosen.pre_offset;
  }
  const Reals sums{passes && gelu && others.pre != nullptr ? others.pre : y.data, y.dtype};
  if (!library_matmul(*chosen.library, sums.data, a.data, b, given, scratch)) return false;
  const int64_t n = s.batch * s.m * s.n;
  if (passes && gelu) unary(unary_of(s.gelu), {}, y, sums, n);
  if (passes && !gelu) unary_grad(unary_of(s.gelu), {}, y, {others.pre, y.dtype}, {}, sums, n);
  if (s.sums_a && !does.sums_a) sum_columns(s, others.sums, a, scratch);
  return true;
}

void by_hand(const MatmulPlan& chosen, uint16_t* y, ConstReals a_array, const void* b_array,
             const MatmulArrays& others) {
  const auto *a = a_array.as<uint16_t>(), *b = static_cast<const uint16_t*>(b_array);
  if (chosen.shape.end != MatmulEnd::none) {
    matmul_gelu(chosen.shape, y, a, b, others);
  } else {
    matmul_bf16(chosen.shape, y, a, b, others.bias);
  }
}

void by_hand(const MatmulPlan& chosen, float* y, ConstReals a_array, const void* b_array,
             const MatmulArrays& others, float* partials) {
  const MatmulShape& s = chosen.shape;
  if (s.dtype == Dtype::bf16) {
    matmul_bf16(s, y, a_array.as<uint16_t>(), static_cast<const uint16_t*>(b_array), others.bias);
    return;
  }
  const auto *a = a_array.as<float>(), *b = static_cast<const float*>(b_array);
  if (s.end != MatmulEnd::none) {
    matmul_gelu(s, chosen.cut, y, a, b, others, partials);
    return;
  }
  const GemmEnd<float> end{y, others.bias, s.m, s.n, s.n % 4 == 0 && aligned({y, others.bias})};
  const auto run = [&](const auto& left, const auto& right) {
    visit_tile(chosen.tile, [&](auto tile) {
      launch_gemm<decltype(tile)>("matmul", left, right, end, chosen.cut, partials);
    });
  };
  if (packable(s, a, b)) {
    visit_operands(s, a, b, MakeOperand<4>(), run);
  } else {
    visit_operands(s, a, b, MakeOperand<1>(), run);
  }
}

}  // namespace

LibraryPlan matmul_plan(const MatmulShape& s) {
  LibraryPlan plan;
  MatmulPlan chosen{s, s};
  if (s.dtype == Dtype::bf16) {
    if (s.weight_b) {
      plan.packing = 1;
      plan.packed_bytes = static_cast<size_t>(s.k * s.n) * size_of(Dtype::bf16);
    }
  } else {
    if (s.end == MatmulEnd::none) chosen.tile = choose_tile(s.batch, s.m, s.n, s.k);
    chosen.cut = visit_tile(
        chosen.tile, [&](auto tile) { return cut_gemm<decltype(tile)>(s.batch, s.m, s.n, s.k); });
    plan.scratch_bytes = static_cast<size_t>(chosen.cut.partials()) * sizeof(float);
  }
  chosen.library = library_product(s);
  if (chosen.library == nullptr && (s.end != MatmulEnd::none || s.sums_a)) {
    chosen.library_shape.end = MatmulEnd::none;
    chosen.library_shape.sums_a = false;
    chosen.library = library_product(chosen.library_shape);
  }
  if (chosen.library != nullptr) {
    chosen.pre_offset = (library_scratch(*chosen.library) + 255) / 256 * 256;
    const bool has_pre = chosen.library_shape.end == MatmulEnd::gelu;
    const size_t pre = has_pre ? static_cast<size_t>(s.m * s.n) * size_of(s.y_dtype) : 0;
    plan.scratch_bytes = std::max(plan.scratch_bytes, chosen.pre_offset + pre);
  }
  plan.scratch_bytes = std::max(plan.scratch_bytes, ColumnSums(s).bytes);
  plan.primitive = std::make_shared<const MatmulPlan>(chosen);
  return plan;
}

// The one packing: rounded to bf16.
void pack_weight(const LibraryPlan& plan, void* packed, const float* weight) {
  cast(packed, Dtype::bf16, weight, Dtype::f32,
       static_cast<int64_t>(plan.packed_bytes / size_of(Dtype::bf16)));
}

void matmul(const LibraryPlan& plan, Reals y, ConstReals a, const void* b,
            const MatmulArrays& others, void* scratch) {
  const MatmulPlan& chosen = plan_of(plan);
  if (by_library(chosen, y, a, b, others, scratch)) return;
  if (y.dtype == Dtype::bf16) {
    by_hand(chosen, y.as<uint16_t>(), a, b, others);
  } else {
    by_hand(chosen, y.as<float>(), a, b, others, static_cast<float*>(scratch));
  }
  if (chosen.shape.sums_a) sum_columns(chosen.shape, others.sums, a, scratch);
}

}  // namespace graft::cuda
