// Conversion between element types: element.h, in loops that vectorise. Layout: contiguous.
#include "kernels/cpu/parallel.h"
#include "kernels/element.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {

void cast(void* y, Dtype to, const void* x, Dtype from, int64_t n) {
  visit_type(to, [=]<class To>(To) {
    visit_type(from, [=]<class From>(From) {
      parallel_for(n, 1, [=](int64_t begin, int64_t end) {
        To* target = static_cast<To*>(y);
        const From* source = static_cast<const From*>(x);
        for (int64_t i = begin; i < end; ++i) target[i] = Write<To>::from(read(source[i]));
      });
    });
  });
}

}  // namespace graft::cpu::GRAFT_ISA
