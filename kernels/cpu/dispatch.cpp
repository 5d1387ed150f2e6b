// Which instruction set the vector kernels use.
#include <cstdlib>
#include <cstring>

#include "kernels/error.h"
#include "kernels/kernels.h"

namespace graft::cpu {

bool use_avx512() {
  static const bool answer = [] {
    GRAFT_CHECK(__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
                    __builtin_cpu_supports("f16c"),
                "graft needs a processor with AVX2, FMA and F16C (x86-64-v3)");
    const char* wish = std::getenv("GRAFT_ISA");
    if (wish != nullptr && std::strcmp(wish, "avx2") == 0) return false;
    return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
           __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
  }();
  return answer;
}

}  // namespace graft::cpu
