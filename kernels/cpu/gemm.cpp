// Matrix products on oneDNN: y = a b + bias, row-major f32 or bf16, accumulated in f32.
//
// GELU and its derivative are passes of our own over the result, in the cache where it is small:
// oneDNN's post-operation does not keep what the derivative reads, and a network that trains and
// one that does not shall compute the same bits. In bf16 they take the rounded sums.
//
// bf16 products take bf16 weights: packing an f32 one rounds it. On a machine without instructions
// for them they are f32 products of f32 copies, weights as they are. A weight may be given in
// oneDNN's packed layout (plan.packing). Determinism: the order of summation over k is fixed by the
// shape and the number of threads.
#include <algorithm>
#include <unordered_map>

#include "kernels/cpu/onednn.h"
#include "kernels/kernels.h"

namespace graft::cpu {
namespace onednn {
namespace {

constexpr auto kF32 = Memory::data_type::f32;

// rows x columns, row-major, or its transpose; `batch` 0 means no batch dimension.
Layout matrix(Memory::data_type type, int64_t batch, int64_t rows, int64_t columns,
              bool transposed) {
  const int64_t row = transposed ? 1 : columns, column = transposed ? rows : 1;
  if (batch == 0) return Layout({rows, columns}, type, {row, column});
  return Layout({batch, rows, columns}, type, {rows * columns, row, column});
}

}  // namespace

Operation product(const MatmulShape& s, Layout& plain_b) {
  const bool flat = s.batch == 1;
  const int64_t batch = flat ? 0 : s.batch;
  const Memory::data_type type = computed_as(s.dtype), y_type = computed_as(s.y_dtype);
  const Memory::data_type given_b = s.weight_b ? kF32 : type;
  Operation made;
  made.source = matrix(type, flat ? 0 : (s.shared_a ? 1 : s.batch), s.m, s.k, s.transpose_a);
  plain_b = matrix(given_b, flat ? 0 : (s.shared_b ? 1 : s.batch), s.k, s.n, s.transpose_b);
  made.target = matrix(y_type, batch, s.m, s.n, false);
  const bool packed = s.packed_b || given_b != type;
  const Layout wanted_b = packed ? Layout({s.k, s.n}, type, Memory::format_tag::any) : plain_b;
  if (s.bias) made.bias = matrix(kF32, flat ? 0 : 1, 1, s.n, false);
  const dnnl::matmul::desc description =
      s.bias ? dnnl::matmul::desc(made.source, wanted_b, made.bias, made.target)
             : dnnl::matmul::desc(made.source, wanted_b, made.target);
  const dnnl::matmul::primitive_desc chosen(description, user_scratchpad(), engine());
  made.weight = chosen.weights_desc();
  made.scratch = chosen.scratchpad_desc();
  made.primitive = dnnl::matmul(chosen);
  return made;
}

Copies copies_of(const MatmulShape& s) {
  if (has_bf16()) return {};
  const bool wide = s.dtype == Dtype::bf16;
  return {wide, wide && !s.weight_b, s.y_dtype == Dtype::bf16};
}

}  // namespace onednn

using namespace onednn;

namespace {

void end_product(const MatmulShape& s, Reals y, ConstReals sums, const void* pre) {
  const int64_t n = s.batch * s.m * s.n;
  if (s.end == MatmulEnd::gelu) unary(unary_of(s.gelu), {}, y, sums, n);
  if (s.end == MatmulEnd::gelu_grad) {
    unary_grad(unary_of(s.gelu), {}, y, {pre, y.dtype}, {}, sums, n);
  }
}

}  // namespace

LibraryPlan matmul_plan(const MatmulShape& s) {
  return cached(
      {'m', s.batch, s.m, s.n, s.k, s.transpose_a, s.transpose_b, s.shared_a, s.shared_b, s.bias,
       s.packed_b, s.weight_b, s.sums_a, static_cast<int64_t>(s.end), static_cast<int64_t>(s.gelu),
       static_cast<int64_t>(s.dtype), static_cast<int64_t>(s.y_dtype)},
      [&] {
        return checked(
            "matmul",
            [&] {
              Layout plain_b;
              Operation made = product(s, plain_b);
              made.shape = s;
              LibraryPlan plan = plan_of(std::move(made), plain_b, copies_of(s));
              plan.scratch_bytes = std::max(plan.scratch_bytes, ColumnSums(s).bytes);
              return plan;
            },
            " for ", s.batch, " x (", s.m, " x ", s.k, ") (", s.k, " x ", s.n, ")");
      });
}

void matmul(const LibraryPlan& plan, Reals y, ConstReals a, const void* b,
            const MatmulArrays& others, void* scratch) {
  checked("matmul", [&] {
    const Operation& op = operation(plan);
    const bool keeps = op.shape.end == MatmulEnd::gelu && others.pre != nullptr;
    const Reals sums{keeps ? others.pre : y.data, y.dtype};
    std::unordered_map<int, Memory> arguments{
        {DNNL_ARG_SRC, wrap(op.source, widened(op.source, a.data, op.source_copy, scratch))},
        {DNNL_ARG_WEIGHTS, wrap(op.weight, widened(op.weight, b, op.weight_copy, scratch))},
        {DNNL_ARG_DST, wrap(op.target, wide_target(sums.data, op.target_copy, scratch))},
        {DNNL_ARG_SCRATCHPAD, wrap(op.scratch, scratch)}};
    // An argument that the product does not have is an error.
    if (others.bias != nullptr) arguments.insert({DNNL_ARG_BIAS, wrap(op.bias, others.bias)});
    op.primitive.execute(stream(), arguments);
    narrow(sums.data, op.target, op.target_copy, scratch);
    end_product(op.shape, y, sums, others.pre);
    if (others.sums != nullptr) {
      ColumnSums(op.shape).run(others.sums, a, scratch, cast, reduce_sum);
    }
  });
}

}  // namespace graft::cpu
