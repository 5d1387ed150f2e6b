// Pointwise kernels: y = f(x), dx = g f'(x), out = f(a, b) and its gradients; formulas in
// functors.h. Layout: contiguous f32 or bf16; broadcast operands by strides. A thread moves 16
// bytes at a time where the arrays are aligned to 16 bytes and the innermost dimension allows it,
// else one element. Numerics: f32, as the formula says; a bf16 result is rounded once. Each element
// has one writer, so results are deterministic. Arrays may be the same (in place), hence no
// __restrict__; every element is read before it is written.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// launch() of the wide or the narrow instantiation, for n elements.
template <int kWide, class Wide, class Narrow, class... Args>
void launch_packs(const char* op, bool wide, int64_t n, Wide* wide_kernel, Narrow* narrow_kernel,
                  const Args&... args) {
  if (wide) {
    launch(op, grid_for((n + kWide - 1) / kWide), 0, wide_kernel, args...);
  } else {
    launch(op, grid_for(n), 0, narrow_kernel, args...);
  }
}

template <class T, class F, int kWidth>
__global__ void unary_kernel(UnaryParams params, T* y, const T* x, int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    Pack<float, W> pack = load_floats<W>(x + i);
    for (float& value : pack.v) value = F::f(value, params);
    store_floats(y + i, pack);
  });
}

template <class T, class F, int kWidth>
__global__ void unary_grad_kernel(UnaryParams params, T* dx, const T* x, const T* y, const T* g,
                                  int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    // The loads of arrays that F::d does not read are dropped by the compiler.
    const Pack<float, W> px = load_floats<W>(x + i), py = load_floats<W>(y + i);
    Pack<float, W> pack = load_floats<W>(g + i);
    for (int k = 0; k < W; ++k) pack.v[k] *= F::d(px.v[k], py.v[k], params);
    store_floats(dx + i, pack);
  });
}

template <class T, class F, int kWidth>
__global__ void binary_kernel(T* out, const T* a, const T* b, int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Pack<float, W> pb = load_floats<W>(b + i);
    Pack<float, W> pack = load_floats<W>(a + i);
    for (int k = 0; k < W; ++k) pack.v[k] = F::f(pack.v[k], pb.v[k]);
    store_floats(out + i, pack);
  });
}

struct Offsets {
  int64_t a, b;
};

// Where the operands' elements for element i of the result are.
__device__ Offsets offsets_of(const BroadcastShape& shape, int64_t i) {
  Offsets at{0, 0};
  // A division of 64 bits costs several times one of 32.
  if (i <= UINT32_MAX) {
    uint32_t rest = static_cast<uint32_t>(i);
    for (int d = shape.rank - 1; d > 0; --d) {
      const uint32_t size = static_cast<uint32_t>(shape.sizes[d]), quotient = rest / size;
      const int64_t index = rest - quotient * size;
      at.a += index * shape.a_strides[d];
      at.b += index * shape.b_strides[d];
      rest = quotient;
    }
    at.a += rest * shape.a_strides[0];
    at.b += rest * shape.b_strides[0];
    return at;
  }
  for (int d = shape.rank - 1; d >= 0; --d) {
    const int64_t index = i % shape.sizes[d];
    at.a += index * shape.a_strides[d];
    at.b += index * shape.b_strides[d];
    i /= shape.sizes[d];
  }
  return at;
}

// kWidth neighbours of an operand whose innermost stride is 1 or 0 (or any, for one element).
template <int kWidth, class T>
__device__ Pack<float, kWidth> load_strided(const T* from, int64_t stride) {
  Pack<float, kWidth> pack;
  if (stride == 1) return load_floats<kWidth>(from);
  for (float& value : pack.v) value = static_cast<float>(*from);
  return pack;
}

template <class T, class F, int kWidth>
__global__ void binary_broadcast_kernel(T* out, const T* a, const T* b, BroadcastShape shape,
                                        int64_t n) {
  const int64_t a_stride = shape.a_strides[shape.rank - 1];
  const int64_t b_stride = shape.b_strides[shape.rank - 1];
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Offsets at = offsets_of(shape, i);
    const Pack<float, W> pb = load_strided<W>(b + at.b, b_stride);
    Pack<float, W> pack = load_strided<W>(a + at.a, a_stride);
    for (int k = 0; k < W; ++k) pack.v[k] = F::f(pack.v[k], pb.v[k]);
    store_floats(out + i, pack);
  });
}

template <class T, class F, int kWidth>
__global__ void binary_grad_kernel(T* da, T* db, const T* a, const T* b, const T* g,
                                   BroadcastShape shape, int64_t n) {
  const int64_t a_stride = shape.a_strides[shape.rank - 1];
  const int64_t b_stride = shape.b_strides[shape.rank - 1];
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Offsets at = offsets_of(shape, i);
    const Pack<float, W> pa = load_strided<W>(a + at.a, a_stride);
    const Pack<float, W> pb = load_strided<W>(b + at.b, b_stride);
    const Pack<float, W> pg = load_floats<W>(g + i);
    Pack<float, W> pack;
    if (da != nullptr) {
      for (int k = 0; k < W; ++k) pack.v[k] = pg.v[k] * F::da(pa.v[k], pb.v[k]);
      store_floats(da + i, pack);
    }
    if (db != nullptr) {
      for (int k = 0; k < W; ++k) pack.v[k] = pg.v[k] * F::db(pa.v[k], pb.v[k]);
      store_floats(db + i, pack);
    }
  });
}

int64_t count_of(const BroadcastShape& shape) {
  int64_t n = 1;
  for (int d = 0; d < shape.rank; ++d) n *= shape.sizes[d];
  return n;
}

// Packs must not cross an end of the innermost dimension, and must start aligned in every operand.
bool packable(const BroadcastShape& shape, int width) {
  const int last = shape.rank - 1;
  if (shape.sizes[last] % width != 0) return false;
  for (const int64_t* strides : {shape.a_strides, shape.b_strides}) {
    if (strides[last] != 0 && strides[last] != 1) return false;
    if (strides[last] == 0) continue;
    for (int d = 0; d < last; ++d) {
      if (strides[d] % width != 0) return false;
    }
  }
  return true;
}

// A scalar result as one element of one dimension, so that the innermost one always exists.
BroadcastShape at_least_1d(BroadcastShape shape) {
  if (shape.rank == 0) {
    shape.rank = 1;
    shape.sizes[0] = 1;
  }
  return shape;
}

template <class T>
void unary(Unary op, UnaryParams params, T* y, const T* x, int64_t n) {
  visit(op, [=](auto functor) {
    using F = decltype(functor);
    launch_packs<kPackWidth<T>>("unary", aligned({y, x}), n, unary_kernel<T, F, kPackWidth<T>>,
                                unary_kernel<T, F, 1>, params, y, x, n);
  });
}

template <class T>
void unary_grad(Unary op, UnaryParams params, T* dx, const T* x, const T* y, const T* g,
                int64_t n) {
  if (x == nullptr) x = g;
  if (y == nullptr) y = g;
  visit(op, [=](auto functor) {
    using F = decltype(functor);
    launch_packs<kPackWidth<T>>("unary_grad", aligned({dx, x, y, g}), n,
                                unary_grad_kernel<T, F, kPackWidth<T>>, unary_grad_kernel<T, F, 1>,
                                params, dx, x, y, g, n);
  });
}

template <class T>
void binary(Binary op, T* out, const T* a, const T* b, int64_t n) {
  visit(op, [=](auto functor) {
    using F = decltype(functor);
    launch_packs<kPackWidth<T>>("binary", aligned({out, a, b}), n,
                                binary_kernel<T, F, kPackWidth<T>>, binary_kernel<T, F, 1>, out, a,
                                b, n);
  });
}

template <class T>
void binary_broadcast(Binary op, T* out, const T* a, const T* b, const BroadcastShape& given) {
  const BroadcastShape shape = at_least_1d(given);
  const bool wide = packable(shape, kPackWidth<T>) && aligned({out, a, b});
  const int64_t n = count_of(shape);
  visit(op, [&](auto functor) {
    using F = decltype(functor);
    launch_packs<kPackWidth<T>>("binary_broadcast", wide, n,
                                binary_broadcast_kernel<T, F, kPackWidth<T>>,
                                binary_broadcast_kernel<T, F, 1>, out, a, b, shape, n);
  });
}

template <class T>
void binary_grad(Binary op, T* da, T* db, const T* a, const T* b, const T* g,
                 const BroadcastShape& given) {
  const BroadcastShape shape = at_least_1d(given);
  const bool wide = packable(shape, kPackWidth<T>) && aligned({da, db, a, b, g});
  const int64_t n = count_of(shape);
  visit(op, [&](auto functor) {
    using F = decltype(functor);
    launch_packs<kPackWidth<T>>("binary_grad", wide, n, binary_grad_kernel<T, F, kPackWidth<T>>,
                                binary_grad_kernel<T, F, 1>, da, db, a, b, g, shape, n);
  });
}

}  // namespace

void unary(Unary op, UnaryParams params, Reals y, ConstReals x, int64_t n) {
  visit_real(y.dtype, [&]<class T>(T) { unary(op, params, y.as<T>(), x.as<T>(), n); });
}

void unary_grad(Unary op, UnaryParams params, Reals dx, ConstReals x, ConstReals y, ConstReals g,
                int64_t n) {
  visit_real(dx.dtype, [&]<class T>(T) {
    unary_grad(op, params, dx.as<T>(), x.as<T>(), y.as<T>(), g.as<T>(), n);
  });
}

void binary(Binary op, Reals out, ConstReals a, ConstReals b, int64_t n) {
  visit_real(out.dtype, [&]<class T>(T) { binary(op, out.as<T>(), a.as<T>(), b.as<T>(), n); });
}

void binary_broadcast(Binary op, Reals out, ConstReals a, ConstReals b,
                      const BroadcastShape& shape) {
  visit_real(out.dtype,
             [&]<class T>(T) { binary_broadcast(op, out.as<T>(), a.as<T>(), b.as<T>(), shape); });
}

void binary_grad(Binary op, Reals da, Reals db, ConstReals a, ConstReals b, ConstReals g,
                 const BroadcastShape& shape) {
  visit_real(g.dtype, [&]<class T>(T) {
    binary_grad(op, da.as<T>(), db.as<T>(), a.as<T>(), b.as<T>(), g.as<T>(), shape);
  });
}

}  // namespace graft::cuda
