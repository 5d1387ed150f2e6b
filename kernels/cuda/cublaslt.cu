// Products by cuBLASLt, loaded when the first one is wanted: a machine without the library computes
// with our own kernel (gemm.cu), as does every machine with GRAFT_CUBLAS=0 in the environment.
// Source: cuBLAS 13 documentation, "Using the cublasLt API".
//
// Layout: cuBLAS thinks in columns. Our row-major y (m, n) is its y' (n, m) = b' a', so the
// operands change places, and a bias along n is its bias along the rows of the result, which its
// epilogue adds. Numerics: CUBLAS_COMPUTE_32F, f32 without TF32; sums of bf16 products are f32,
// too, and the bias stays f32: where the library has no algorithm for that, our own kernel does it.
//
// Ends: GELU (GELU_AUX, which keeps what it is taken of) and its derivative (DGELU) are the tanh
// form in this library, and want rows of a multiple of 8 elements; the exact form is refused, and
// becomes a pass of our own (gemm.cu). The sums of a's columns, which are the gradient of a bias,
// are BGRADB: our a is its second matrix. They come with the gradient of the weight, whose sums are
// f32 as the bias's gradient is; DGELU_BGRAD would give that the type of y.
//
// Choice: the library proposes algorithms for a shape; the first call runs them all and takes the
// fastest, or the first within a stream capture, where nothing can be timed. That choice stands for
// this and later processes (kernels/choices.h). Determinism: an algorithm gives the same bits in
// every run on one kind of GPU; where it cuts k, only those are taken that keep the chunks' sums in
// f32 and add them in a separate step.
#include "kernels/cuda/cublaslt.h"

#if !defined(GRAFT_SIMT) && __has_include(<cublasLt.h>)

#include <algorithm>
#include <array>
#include <cmath>
#include <cstdlib>
#include <cublasLt.h>
#include <dlfcn.h>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/choices.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/library_choice.h"

namespace graft::cuda {
namespace {

constexpr size_t kWorkspace = size_t{32} << 20;  // what NVIDIA recommends for Hopper
constexpr int kCandidates = 8;
constexpr int kRounds = 4;            // the first of them warms up
constexpr float kWorthwhile = 0.95f;  // a later proposal must beat the first one's time by this
// Algorithms are proposed for pointers that are aligned as well as this one, which is not followed.
void* const kSomewhere = reinterpret_cast<void*>(uintptr_t{16});

// The functions, under their own names.
struct Library {
#define GRAFT_CUBLASLT_LIST(X)        \
  X(cublasLtCreate)                   \
  X(cublasLtGetVersion)               \
  X(cublasLtMatmul)                   \
  X(cublasLtMatmulAlgoGetHeuristic)   \
  X(cublasLtMatmulDescCreate)         \
  X(cublasLtMatmulDescSetAttribute)   \
  X(cublasLtMatrixLayoutCreate)       \
  X(cublasLtMatrixLayoutSetAttribute) \
  X(cublasLtMatmulPreferenceCreate)   \
  X(cublasLtMatmulPreferenceDestroy)  \
  X(cublasLtMatmulPreferenceSetAttribute)
#define GRAFT_MEMBER(name) decltype(&::name) name = nullptr;
  GRAFT_CUBLASLT_LIST(GRAFT_MEMBER)
#undef GRAFT_MEMBER
  cublasLtHandle_t handle = nullptr;
  bool timed = true;
};

std::string_view setting() {
  const char* value = std::getenv("GRAFT_CUBLAS");
  return value == nullptr ? "" : value;
}

// Null where there is no library. What is used here is the same in cuBLAS 12 and 13.
const Library* open_library() {
  if (setting() == "0") return nullptr;
  void* file = nullptr;
  for (const char* name : {"libcublasLt.so.13", "libcublasLt.so.12", "libcublasLt.so"}) {
    if (file == nullptr) file = dlopen(name, RTLD_NOW | RTLD_LOCAL);
  }
  if (file == nullptr) return nullptr;
  auto library = std::make_unique<Library>();
#define GRAFT_RESOLVE(name)                                                      \
  library->name = reinterpret_cast<decltype(library->name)>(dlsym(file, #name)); \
  if (library->name == nullptr) return nullptr;
  GRAFT_CUBLASLT_LIST(GRAFT_RESOLVE)
#undef GRAFT_RESOLVE
  if (library->cublasLtCreate(&library->handle) != CUBLAS_STATUS_SUCCESS) return nullptr;
  library->timed = choice_setting().timed;
  return library.release();
}
const Library* library() {
  static const Library* opened = open_library();
  return opened;
}

struct Algorithm {
  cublasLtMatmulAlgo_t steps;
  size_t scratch_bytes;
};

bool capturing() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream(), &status) == cudaSuccess) {
    return status != cudaStreamCaptureStatusNone;
  }
  cudaGetLastError();  // another stream's capture forbids the question
  return true;
}

// A matrix (rows, columns) in memory column by column.
cublasLtMatrixLayout_t layout(const Library& lib, Dtype dtype, int64_t rows, int64_t columns,
                              int64_t batch, bool shared) {
  const cudaDataType_t type = dtype == Dtype::bf16 ? CUDA_R_16BF : CUDA_R_32F;
  cublasLtMatrixLayout_t made = nullptr;
  const int32_t count = static_cast<int32_t>(batch);
  const int64_t stride = shared ? 0 : rows * columns;
  if (lib.cublasLtMatrixLayoutCreate(&made, type, static_cast<uint64_t>(rows),
                                     static_cast<uint64_t>(columns),
                                     rows) != CUBLAS_STATUS_SUCCESS ||
      lib.cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &count,
                                           sizeof count) != CUBLAS_STATUS_SUCCESS ||
      lib.cublasLtMatrixLayoutSetAttribute(made, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET,
                                           &stride, sizeof stride) != CUBLAS_STATUS_SUCCESS) {
    return nullptr;
  }
  return made;
}

cublasLtEpilogue_t epilogue_of(const MatmulShape& s) {
  if (s.sums_a) return CUBLASLT_EPILOGUE_BGRADB;
  if (s.end == MatmulEnd::gelu_grad) return CUBLASLT_EPILOGUE_DGELU;
  if (s.end == MatmulEnd::gelu) {
    return s.bias ? CUBLASLT_EPILOGUE_GELU_AUX_BIAS : CUBLASLT_EPILOGUE_GELU_AUX;
  }
  return s.bias ? CUBLASLT_EPILOGUE_BIAS : CUBLASLT_EPILOGUE_DEFAULT;
}

// Whether one epilogue says all that the shape wants.
bool has_epilogue(const MatmulShape& s) {
  if (s.sums_a) return s.end == MatmulEnd::none && !s.bias;
  return s.end == MatmulEnd::none || (s.gelu == Gelu::tanh && s.n % 8 == 0);
}

}  // namespace

// Lives as long as the process, and so do the library's objects in it.
struct LibraryProduct {
  const Library& lib;
  const std::string key;  // of the choice
  cublasLtMatmulDesc_t product = nullptr;
  cublasLtMatrixLayout_t left = nullptr, right = nullptr, result = nullptr;

  // Guards what follows and the pointers in `product`.
  mutable std::mutex mutex;
  mutable std::vector<Algorithm> candidates;
  mutable bool chosen = false;  // then there is one candidate, or none

  LibraryProduct(const Library& opened, std::string name) : lib(opened), key(std::move(name)) {}

  template <class T>
  bool set(cublasLtMatmulDescAttributes_t attribute, const T& value) const {
    return lib.cublasLtMatmulDescSetAttribute(product, attribute, &value, sizeof value) ==
           CUBLAS_STATUS_SUCCESS;
  }

  bool describe(const MatmulShape& s) {
    if (lib.cublasLtMatmulDescCreate(&product, CUBLAS_COMPUTE_32F, CUDA_R_32F) !=
        CUBLAS_STATUS_SUCCESS) {
      return false;
    }
    // A row-major matrix is the transpose of the column-major one in the same place.
    const cublasOperation_t turn_left = s.transpose_b ? CUBLAS_OP_T : CUBLAS_OP_N;
    const cublasOperation_t turn_right = s.transpose_a ? CUBLAS_OP_T : CUBLAS_OP_N;
    left = s.transpose_b ? layout(lib, s.dtype, s.k, s.n, s.batch, s.shared_b)
                         : layout(lib, s.dtype, s.n, s.k, s.batch, s.shared_b);
    right = s.transpose_a ? layout(lib, s.dtype, s.m, s.k, s.batch, s.shared_a)
                          : layout(lib, s.dtype, s.k, s.m, s.batch, s.shared_a);
    result = layout(lib, s.y_dtype, s.n, s.m, s.batch, false);
    return left != nullptr && right != nullptr && result != nullptr &&
           set(CUBLASLT_MATMUL_DESC_TRANSA, turn_left) &&
           set(CUBLASLT_MATMUL_DESC_TRANSB, turn_right) &&
           set(CUBLASLT_MATMUL_DESC_EPILOGUE, epilogue_of(s)) &&
           (s.end == MatmulEnd::none ||
            (set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_LD, s.n) &&
             set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, kSomewhere))) &&
           (!(s.bias || s.sums_a) || set(CUBLASLT_MATMUL_DESC_BIAS_DATA_TYPE, int32_t{CUDA_R_32F}));
  }

  bool propose() {
    cublasLtMatmulPreference_t preference = nullptr;
    if (lib.cublasLtMatmulPreferenceCreate(&preference) != CUBLAS_STATUS_SUCCESS) return false;
    const auto prefer = [&](cublasLtMatmulPreferenceAttributes_t attribute, auto value) {
      return lib.cublasLtMatmulPreferenceSetAttribute(preference, attribute, &value,
                                                      sizeof value) == CUBLAS_STATUS_SUCCESS;
    };
    int found = 0;
    cublasLtMatmulHeuristicResult_t proposals[kCandidates];
    const bool proposed = prefer(CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES, uint64_t{kWorkspace}) &&
                          prefer(CUBLASLT_MATMUL_PREF_REDUCTION_SCHEME_MASK,
                                 uint32_t{CUBLASLT_REDUCTION_SCHEME_COMPUTE_TYPE}) &&
                          prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_A_BYTES, uint32_t{16}) &&
                          prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_B_BYTES, uint32_t{16}) &&
                          prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_C_BYTES, uint32_t{16}) &&
                          prefer(CUBLASLT_MATMUL_PREF_MIN_ALIGNMENT_D_BYTES, uint32_t{16}) &&
                          lib.cublasLtMatmulAlgoGetHeuristic(
                              lib.handle, product, left, right, result, result, preference,
                              kCandidates, proposals, &found) == CUBLAS_STATUS_SUCCESS;
    lib.cublasLtMatmulPreferenceDestroy(preference);
    for (int i = 0; proposed && i < found; ++i) {
      if (proposals[i].state != CUBLAS_STATUS_SUCCESS) continue;
      candidates.push_back({proposals[i].algo, proposals[i].workspaceSize});
    }
    return !candidates.empty();
  }

  bool run(const Algorithm& candidate, void* y, const void* a, const void* b, void* scratch) const {
    const float one = 1, zero = 0;
    return lib.cublasLtMatmul(lib.handle, product, &one, b, left, a, right, &zero, y, result, y,
                              result, &candidate.steps, scratch, candidate.scratch_bytes,
                              stream()) == CUBLAS_STATUS_SUCCESS;
  }

  // The least time of a few runs, in milliseconds; infinite where the algorithm does not run.
  float time(const Algorithm& candidate, void* y, const void* a, const void* b,
             void* scratch) const {
    cudaEvent_t begin = nullptr, end = nullptr;
    check(cudaEventCreate(&begin), "matmul");
    check(cudaEventCreate(&end), "matmul");
    float least = INFINITY;
    for (int round = 0; round < kRounds; ++round) {
      check(cudaEventRecord(begin, stream()), "matmul");
      if (!run(candidate, y, a, b, scratch)) {
        least = INFINITY;
        break;
      }
      check(cudaEventRecord(end, stream()), "matmul");
      check(cudaEventSynchronize(end), "matmul");
      float elapsed = 0;
      check(cudaEventElapsedTime(&elapsed, begin, end), "matmul");
      if (round > 0) least = std::min(least, elapsed);
    }
    check(cudaEventDestroy(begin), "matmul");
    check(cudaEventDestroy(end), "matmul");
    return least;
  }

  size_t fastest(void* y, const void* a, const void* b, void* scratch) const {
    size_t best = 0;
    float to_beat = time(candidates[0], y, a, b, scratch) * kWorthwhile;
    for (size_t i = 1; i < candidates.size(); ++i) {
      const float elapsed = time(candidates[i], y, a, b, scratch);
      if (elapsed >= to_beat) continue;
      to_beat = elapsed;
      best = i;
    }
    return best;
  }

  // A choice in words, and the candidate that it means, if any.
  std::string named(size_t candidate) const { return text(candidate, " of ", candidates.size()); }
  std::optional<size_t> meant(const std::string& choice) const {
    for (size_t i = 0; i < candidates.size(); ++i) {
      if (choice == named(i)) return i;
    }
    return std::nullopt;
  }

  void choose(void* y, const void* a, const void* b, void* scratch) const {
    chosen = true;
    size_t best = 0;
    if (lib.timed && candidates.size() > 1) {
      const auto kept = choices().find(key);
      if (kept && meant(*kept)) {
        best = *meant(*kept);
      } else {
        if (!capturing()) best = fastest(y, a, b, scratch);
        best = meant(choices().agree(key, named(best))).value_or(best);
      }
    }
    candidates = {candidates[best]};
  }
};

std::shared_ptr<const LibraryProduct> library_product(const MatmulShape& s) {
  const Library* lib = library();
  if (lib == nullptr || s.batch > INT32_MAX || !has_epilogue(s)) return nullptr;
  using Key = std::array<int64_t, 14>;
  static std::mutex mutex;
  static auto* known = new std::map<Key, std::shared_ptr<const LibraryProduct>>;
  const Key key{s.batch,
                s.m,
                s.n,
                s.k,
                s.transpose_a,
                s.transpose_b,
                s.shared_a,
                s.shared_b,
                s.bias,
                s.sums_a,
                static_cast<int64_t>(s.end),
                static_cast<int64_t>(s.gelu),
                static_cast<int64_t>(s.dtype),
                static_cast<int64_t>(s.y_dtype)};
  std::lock_guard lock(mutex);
  const auto found = known->find(key);
  if (found != known->end()) return found->second;
  auto made = std::make_shared<LibraryProduct>(
      *lib, choice_key("cublaslt", lib->cublasLtGetVersion(), {key.begin(), key.end()}));
  if (!made->describe(s) || !made->propose()) made = nullptr;
  (*known)[key] = made;
  return made;
}

size_t library_scratch(const LibraryProduct& product) {
  std::lock_guard lock(product.mutex);
  size_t most = 0;
  for (const auto& candidate : product.candidates) most = std::max(most, candidate.scratch_bytes);
  return most;
}

bool library_matmul(const LibraryProduct& product, void* y, const void* a, const void* b,
                    const MatmulArrays& others, void* scratch) {
  std::lock_guard lock(product.mutex);
  if (product.candidates.empty()) return false;
  // The sums go where a bias would come from.
  const void* bias = others.sums != nullptr ? others.sums : others.bias;
  if (bias != nullptr && !product.set(CUBLASLT_MATMUL_DESC_BIAS_POINTER, bias)) return false;
  if (others.pre != nullptr &&
      !product.set(CUBLASLT_MATMUL_DESC_EPILOGUE_AUX_POINTER, others.pre)) {
    return false;
  }
  if (!product.chosen) product.choose(y, a, b, scratch);
  if (product.run(product.candidates[0], y, a, b, scratch)) return true;
  product.candidates.clear();
  return false;
}

}  // namespace graft::cuda

#else  // no library

namespace graft::cuda {

struct LibraryProduct {};
std::shared_ptr<const LibraryProduct> library_product(const MatmulShape&) { return nullptr; }
size_t library_scratch(const LibraryProduct&) { return 0; }
bool library_matmul(const LibraryProduct&, void*, const void*, const void*, const MatmulArrays&,
                    void*) {
  return false;
}

}  // namespace graft::cuda

#endif
