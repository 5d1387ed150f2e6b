// Matrix products on oneDNN: y = a b + bias, row-major f32, accumulated in f32.
//
// A weight may be given in oneDNN's packed layout (plan.packing). Determinism: the order of
// summation over k is fixed by the shape and the number of threads.
#include <unordered_map>

#include "kernels/cpu/onednn.h"
#include "kernels/kernels.h"

namespace graft::cpu {
namespace onednn {
namespace {

constexpr auto kF32 = Memory::data_type::f32;

// rows x columns, row-major, or its transpose; `batch` 0 means no batch dimension.
Layout matrix(int64_t batch, int64_t rows, int64_t columns, bool transposed) {
  const int64_t row = transposed ? 1 : columns, column = transposed ? rows : 1;
  if (batch == 0) return Layout({rows, columns}, kF32, {row, column});
  return Layout({batch, rows, columns}, kF32, {rows * columns, row, column});
}

}  // namespace

Operation product(const MatmulShape& s, Layout& plain_b) {
  const bool flat = s.batch == 1;
  const int64_t batch = flat ? 0 : s.batch;
  Operation made;
  made.source = matrix(flat ? 0 : (s.shared_a ? 1 : s.batch), s.m, s.k, s.transpose_a);
  plain_b = matrix(flat ? 0 : (s.shared_b ? 1 : s.batch), s.k, s.n, s.transpose_b);
  made.target = matrix(batch, s.m, s.n, false);
  const Layout wanted_b = s.packed_b ? Layout({s.k, s.n}, kF32, Memory::format_tag::any) : plain_b;
  if (s.bias) made.bias = matrix(flat ? 0 : 1, 1, s.n, false);
  const dnnl::matmul::desc description =
      s.bias ? dnnl::matmul::desc(made.source, wanted_b, made.bias, made.target)
             : dnnl::matmul::desc(made.source, wanted_b, made.target);
  const dnnl::matmul::primitive_desc chosen(description, user_scratchpad(), engine());
  made.weight = chosen.weights_desc();
  made.scratch = chosen.scratchpad_desc();
  made.primitive = dnnl::matmul(chosen);
  return made;
}

}  // namespace onednn

using namespace onednn;

LibraryPlan matmul_plan(const MatmulShape& s) {
  return cached({'m', s.batch, s.m, s.n, s.k, s.transpose_a, s.transpose_b, s.shared_a, s.shared_b,
                 s.bias, s.packed_b},
                [&] {
                  return checked(
                      "matmul",
                      [&] {
                        Layout plain_b;
                        Operation made = product(s, plain_b);
                        return plan_of(std::move(made), plain_b);
                      },
                      " for ", s.batch, " x (", s.m, " x ", s.k, ") (", s.k, " x ", s.n, ")");
                });
}

void matmul(const LibraryPlan& plan, Reals y, ConstReals a, const void* b, const float* bias,
            void* scratch) {
  checked("matmul", [&] {
    const Operation& op = operation(plan);
    std::unordered_map<int, Memory> arguments{{DNNL_ARG_SRC, wrap(op.source, a.data)},
                                              {DNNL_ARG_WEIGHTS, wrap(op.weight, b)},
                                              {DNNL_ARG_DST, wrap(op.target, y.data)},
                                              {DNNL_ARG_SCRATCHPAD, wrap(op.scratch, scratch)}};
    // An argument that the product does not have is an error.
    if (bias != nullptr) arguments.insert({DNNL_ARG_BIAS, wrap(op.bias, bias)});
    op.primitive.execute(stream(), arguments);
  });
}

}  // namespace graft::cpu
