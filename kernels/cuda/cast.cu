// Conversion between element types: element.h. Layout: contiguous; a thread moves 16 bytes of the
// wider type at a time where both arrays are aligned to 16 bytes, else one element.
// Numerics: to bf16 rounds to nearest, ties to even. The same bits as on the CPU but for NaN, of
// which the GPU's instruction makes 0x7FFF whatever it was. Elementwise, hence deterministic.
#include <cstdint>

#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

template <class To, class From>
constexpr int kCastWidth = 16 /
                           static_cast<int>(sizeof(To) > sizeof(From) ? sizeof(To) : sizeof(From));

template <class To, class From>
__global__ void cast_kernel(To* y, const From* x, bool wide, int64_t n) {
  const auto cast_pack = [=]<int W>(int64_t i) {
    const Pack<From, W> from = load<W>(x + i);
    Pack<To, W> to;
    for (int k = 0; k < W; ++k) to.v[k] = Write<To>::from(read(from.v[k]));
    store(y + i, to);
  };
  if (wide) {
    for_packs<kCastWidth<To, From>>(n, cast_pack);
  } else {
    for_packs<1>(n, cast_pack);
  }
}

}  // namespace

void cast(void* y, Dtype to, const void* x, Dtype from, int64_t n) {
  visit_type(to, [=]<class To>(To) {
    visit_type(from, [=]<class From>(From) {
      const bool wide = aligned({y, x});
      const int64_t width = wide ? kCastWidth<To, From> : 1;
      launch("cast", grid_for((n + width - 1) / width), 0, cast_kernel<To, From>,
             static_cast<To*>(y), static_cast<const From*>(x), wide, n);
    });
  });
}

}  // namespace graft::cuda
