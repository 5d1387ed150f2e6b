// Dense convolution on cuDNN 9: NHWC images, OHWI filters, f32 or bf16.
//
// The library is looked for when the first convolution is planned; without it (or built without its
// headers, or with GRAFT_CUDNN=0 in the environment) conv.cu uses its own kernels.
//
// API: cudnnConvolutionForward and its kin, which version 9 keeps beside the graph API: a tenth of
// the calls, one algorithm enum a pass, and each algorithm says whether it is deterministic. What
// the graph API has more, fusions with normalisation, nothing here uses.
//
// Numerics: products and sums in f32 (CUDNN_FMA_MATH: no TF32), of bf16 on tensor cores with f32
// sums; only algorithms that sum the products themselves, not Winograd or FFT, which lose digits.
// Gradients of filters would be bf16, too, under bf16 images: that pass is left to our own kernel.
//
// Determinism: deterministic algorithms only. cuDNN's own proposal stands unless timing, once a
// shape, shows another to be faster by more than what timing is off by; while a graph is being
// recorded nothing is timed. That choice stands for this and later processes (kernels/choices.h).
#include "kernels/cuda/cudnn.h"

#if defined(GRAFT_HAS_CUDNN_HEADERS) && !defined(GRAFT_SIMT)
#include <cudnn.h>
#if CUDNN_MAJOR == 9
#define GRAFT_CUDNN_HERE
#endif
#endif

#ifdef GRAFT_CUDNN_HERE
#include <algorithm>
#include <cstdlib>
#include <dlfcn.h>
#include <limits>
#include <mutex>
#include <string>
#include <string_view>

#include "kernels/choices.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/library_choice.h"

namespace graft::cuda::cudnn {
namespace {

#define GRAFT_CUDNN_FUNCTIONS(X)              \
  X(GetVersion)                               \
  X(GetErrorString)                           \
  X(Create)                                   \
  X(SetStream)                                \
  X(CreateTensorDescriptor)                   \
  X(SetTensor4dDescriptor)                    \
  X(DestroyTensorDescriptor)                  \
  X(CreateFilterDescriptor)                   \
  X(SetFilter4dDescriptor)                    \
  X(DestroyFilterDescriptor)                  \
  X(CreateActivationDescriptor)               \
  X(SetActivationDescriptor)                  \
  X(DestroyActivationDescriptor)              \
  X(CreateConvolutionDescriptor)              \
  X(SetConvolution2dDescriptor)               \
  X(SetConvolutionGroupCount)                 \
  X(SetConvolutionMathType)                   \
  X(DestroyConvolutionDescriptor)             \
  X(GetConvolutionForwardAlgorithm_v7)        \
  X(FindConvolutionForwardAlgorithm)          \
  X(ConvolutionForward)                       \
  X(ConvolutionBiasActivationForward)         \
  X(GetConvolutionBackwardDataAlgorithm_v7)   \
  X(FindConvolutionBackwardDataAlgorithm)     \
  X(ConvolutionBackwardData)                  \
  X(GetConvolutionBackwardFilterAlgorithm_v7) \
  X(FindConvolutionBackwardFilterAlgorithm)   \
  X(ConvolutionBackwardFilter)

struct Library {
#define GRAFT_MEMBER(name) decltype(&::cudnn##name) name = nullptr;
  GRAFT_CUDNN_FUNCTIONS(GRAFT_MEMBER)
#undef GRAFT_MEMBER
  cudnnHandle_t handle = nullptr;
  bool timed = true;
  std::mutex mutex;  // a handle serves one thread at a time
};

// Null without a complete cuDNN 9. Never unloaded: plans live as long as the process.
Library* load() {
  const char* wish = std::getenv("GRAFT_CUDNN");
  if (wish != nullptr && std::string_view(wish) == "0") return nullptr;
  void* file = dlopen("libcudnn.so.9", RTLD_NOW | RTLD_LOCAL);
  if (file == nullptr) return nullptr;
  auto library = std::make_unique<Library>();
#define GRAFT_FIND(name)                                                                 \
  library->name = reinterpret_cast<decltype(library->name)>(dlsym(file, "cudnn" #name)); \
  if (library->name == nullptr) return nullptr;
  GRAFT_CUDNN_FUNCTIONS(GRAFT_FIND)
#undef GRAFT_FIND
  if (library->GetVersion() / 10000 != 9) return nullptr;
  if (library->Create(&library->handle) != CUDNN_STATUS_SUCCESS) return nullptr;
  library->timed = choice_setting().timed;
  return library.release();
}

Library* library() {
  static Library* const one = load();
  return one;
}

// The one place where a status of cuDNN is looked at: true when the call was carried out, false
// when cuDNN cannot do what was asked (bad parameter, not supported, internal). Throws when it
// failed on the way.
bool accepted(cudnnStatus_t status, const char* op) {
  if (status == CUDNN_STATUS_SUCCESS) return true;
  if (status >= CUDNN_STATUS_BAD_PARAM && status < CUDNN_STATUS_EXECUTION_FAILED) return false;
  throw Error(text(op, ": cuDNN reports ", library()->GetErrorString(status), " (", int{status},
                   "). Run again with CUDA_LAUNCH_BLOCKING=1 to see in which operation it begins, "
                   "or with GRAFT_CUDNN=0 to do without cuDNN."));
}

}  // namespace

struct Convolution {
  cudnnTensorDescriptor_t x = nullptr, y = nullptr, bias = nullptr;
  cudnnFilterDescriptor_t weight = nullptr;
  cudnnConvolutionDescriptor_t convolution = nullptr;
  cudnnActivationDescriptor_t relu = nullptr;
  int algorithm = 0;  // of the pass's own enum
  size_t scratch_bytes = 0;

  Convolution() = default;
  Convolution(const Convolution&) = delete;
  Convolution& operator=(const Convolution&) = delete;
  ~Convolution() {
    const Library& dnn = *library();
    for (cudnnTensorDescriptor_t tensor : {x, y, bias}) {
      if (tensor != nullptr) dnn.DestroyTensorDescriptor(tensor);
    }
    if (weight != nullptr) dnn.DestroyFilterDescriptor(weight);
    if (convolution != nullptr) dnn.DestroyConvolutionDescriptor(convolution);
    if (relu != nullptr) dnn.DestroyActivationDescriptor(relu);
  }
};

namespace {

// Algorithms that add up the products as they are.
bool direct(cudnnConvolutionFwdAlgo_t algorithm) {
  return algorithm <= CUDNN_CONVOLUTION_FWD_ALGO_GEMM;
}
bool direct(cudnnConvolutionBwdDataAlgo_t algorithm) {
  return algorithm <= CUDNN_CONVOLUTION_BWD_DATA_ALGO_1;
}
bool direct(cudnnConvolutionBwdFilterAlgo_t algorithm) {
  return algorithm <= CUDNN_CONVOLUTION_BWD_FILTER_ALGO_1;
}

constexpr int kMostAlgorithms = 16;
constexpr size_t kMostScratch = size_t{1} << 30;

// A choice in words.
template <class Results>
std::string name(const Results& one) {
  return text("algorithm ", int{one.algo});
}

template <class Results>
struct Algorithms {
  Results all[kMostAlgorithms];
  int count = 0;

  // Best first: those that may be used.
  void keep_allowed() {
    const auto refused = [](const Results& one) {
      return one.status != CUDNN_STATUS_SUCCESS || one.determinism != CUDNN_DETERMINISTIC ||
             !direct(one.algo) || one.memory > kMostScratch;
    };
    count = static_cast<int>(std::remove_if(all, all + count, refused) - all);
  }
  // Null where it is not among them.
  const Results* find(const std::string& choice) const {
    const auto is_meant = [&](const Results& one) { return name(one) == choice; };
    const Results* found = std::find_if(all, all + count, is_meant);
    return found == all + count ? nullptr : found;
  }
};

bool recording() {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  if (cudaStreamIsCapturing(stream(), &status) == cudaSuccess) {
    return status != cudaStreamCaptureStatusNone;
  }
  cudaGetLastError();
  return true;
}

// Chooses made.algorithm, by the choice under the key if there is one. propose() asks cuDNN's
// heuristics, measure() runs every algorithm; both are functions of the handle, three descriptors
// and a list to fill.
template <class Results, class Query, class A, class B, class C>
bool choose(Convolution& made, const std::string& key, Query* propose, Query* measure, A a, B b,
            C c) {
  constexpr double kClearlyFaster = 1.2;
  cudnnHandle_t handle = library()->handle;
  Algorithms<Results> proposed;
  if (!accepted(propose(handle, a, b, made.convolution, c, kMostAlgorithms, &proposed.count,
                        proposed.all),
                "conv2d")) {
    return false;
  }
  proposed.keep_allowed();
  if (proposed.count == 0) return false;
  const Results* chosen = proposed.all;
  if (library()->timed && proposed.count > 1) {
    const auto kept = choices().find(key);
    const Results* known = kept ? proposed.find(*kept) : nullptr;
    if (known != nullptr) {
      chosen = known;
    } else {
      Algorithms<Results> measured;
      if (!recording() && accepted(measure(handle, a, b, made.convolution, c, kMostAlgorithms,
                                           &measured.count, measured.all),
                                   "conv2d")) {
        measured.keep_allowed();
        const Results* same = measured.find(name(*chosen));
        const Results* fastest =
            measured.count == 0 ? nullptr : proposed.find(name(measured.all[0]));
        if (fastest != nullptr &&
            (same == nullptr || same->time > kClearlyFaster * measured.all[0].time)) {
          chosen = fastest;
        }
      }
      const Results* agreed = proposed.find(choices().agree(key, name(*chosen)));
      if (agreed != nullptr) chosen = agreed;
    }
  }
  made.algorithm = chosen->algo;
  made.scratch_bytes = chosen->memory;
  return true;
}

bool choose(Convolution& made, Pass pass, const ConvShape& s) {
  const Library& dnn = *library();
  const std::string key =
      choice_key("cudnn", dnn.GetVersion(),
                 {static_cast<int64_t>(pass), s.batch, s.in_height, s.in_width, s.in_channels,
                  s.out_height, s.out_width, s.out_channels, s.kernel_height, s.kernel_width,
                  s.stride_height, s.stride_width, s.pad_top, s.pad_left, s.dilation_height,
                  s.dilation_width, s.groups, static_cast<int64_t>(s.dtype)});
  switch (pass) {
    case Pass::forward:
      return choose<cudnnConvolutionFwdAlgoPerf_t>(made, key, dnn.GetConvolutionForwardAlgorithm_v7,
                                                   dnn.FindConvolutionForwardAlgorithm, made.x,
                                                   made.weight, made.y);
    case Pass::backward_data:
      return choose<cudnnConvolutionBwdDataAlgoPerf_t>(
          made, key, dnn.GetConvolutionBackwardDataAlgorithm_v7,
          dnn.FindConvolutionBackwardDataAlgorithm, made.weight, made.y, made.x);
    case Pass::backward_weight:
      return choose<cudnnConvolutionBwdFilterAlgoPerf_t>(
          made, key, dnn.GetConvolutionBackwardFilterAlgorithm_v7,
          dnn.FindConvolutionBackwardFilterAlgorithm, made.x, made.y, made.weight);
  }
  return false;
}

// cuDNN pads both sides alike. What is missing or too much on the far side is fine as long as no
// output comes or goes with it.
bool symmetric(int64_t in, int64_t before, int64_t kernel, int64_t stride, int64_t dilation,
               int64_t out) {
  return (in + 2 * before - (kernel - 1) * dilation - 1) / stride + 1 == out;
}

bool representable(const ConvShape& s) {
  for (const int64_t elements : {s.batch * s.in_height * s.in_width * s.in_channels,
                                 s.batch * s.out_height * s.out_width * s.out_channels}) {
    if (elements > std::numeric_limits<int>::max()) return false;
  }
  return symmetric(s.in_height, s.pad_top, s.kernel_height, s.stride_height, s.dilation_height,
                   s.out_height) &&
         symmetric(s.in_width, s.pad_left, s.kernel_width, s.stride_width, s.dilation_width,
                   s.out_width);
}

bool describe(Convolution& made, const ConvShape& s) {
  const Library& dnn = *library();
  const auto as_int = [](int64_t size) { return static_cast<int>(size); };
  const bool narrow = s.dtype == Dtype::bf16;
  const cudnnDataType_t type = narrow ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
  const auto image = [&](cudnnTensorDescriptor_t& tensor, int64_t batch, int64_t channels,
                         int64_t height, int64_t width) {
    return accepted(dnn.CreateTensorDescriptor(&tensor), "conv2d") &&
           accepted(dnn.SetTensor4dDescriptor(tensor, CUDNN_TENSOR_NHWC, type, as_int(batch),
                                              as_int(channels), as_int(height), as_int(width)),
                    "conv2d");
  };
  return image(made.x, s.batch, s.in_channels, s.in_height, s.in_width) &&
         image(made.y, s.batch, s.out_channels, s.out_height, s.out_width) &&
         image(made.bias, 1, s.out_channels, 1, 1) &&
         accepted(dnn.CreateFilterDescriptor(&made.weight), "conv2d") &&
         accepted(
             dnn.SetFilter4dDescriptor(made.weight, type, CUDNN_TENSOR_NHWC, as_int(s.out_channels),
                                       as_int(s.in_channels / s.groups), as_int(s.kernel_height),
                                       as_int(s.kernel_width)),
             "conv2d") &&
         accepted(dnn.CreateActivationDescriptor(&made.relu), "conv2d") &&
         accepted(dnn.SetActivationDescriptor(made.relu, CUDNN_ACTIVATION_RELU, CUDNN_PROPAGATE_NAN,
                                              0.0),
                  "conv2d") &&
         accepted(dnn.CreateConvolutionDescriptor(&made.convolution), "conv2d") &&
         accepted(dnn.SetConvolution2dDescriptor(
                      made.convolution, as_int(s.pad_top), as_int(s.pad_left),
                      as_int(s.stride_height), as_int(s.stride_width), as_int(s.dilation_height),
                      as_int(s.dilation_width), CUDNN_CROSS_CORRELATION, CUDNN_DATA_FLOAT),
                  "conv2d") &&
         accepted(dnn.SetConvolutionGroupCount(made.convolution, as_int(s.groups)), "conv2d") &&
         accepted(dnn.SetConvolutionMathType(made.convolution,
                                             narrow ? CUDNN_TENSOR_OP_MATH : CUDNN_FMA_MATH),
                  "conv2d");
}

// Runs call(library) with the handle on our stream.
template <class Call>
bool run(const char* op, const Call& call) {
  Library& dnn = *library();
  std::lock_guard lock(dnn.mutex);
  return accepted(dnn.SetStream(dnn.handle, stream()), op) && accepted(call(dnn), op);
}

constexpr float kOne = 1.0f, kZero = 0.0f;

}  // namespace

std::shared_ptr<const Convolution> convolution(Pass pass, const ConvShape& shape) {
  Library* dnn = library();
  if (dnn == nullptr || !representable(shape)) return nullptr;
  if (shape.dtype == Dtype::bf16 && pass == Pass::backward_weight) return nullptr;
  std::lock_guard lock(dnn->mutex);
  auto made = std::make_shared<Convolution>();
  if (!accepted(dnn->SetStream(dnn->handle, stream()), "conv2d")) return nullptr;
  if (!describe(*made, shape) || !choose(*made, pass, shape)) return nullptr;
  return made;
}

size_t scratch_bytes(const Convolution& made) { return made.scratch_bytes; }

bool forward(const Convolution& made, void* y, const void* x, const void* weight, bool add,
             void* scratch) {
  return run("conv2d", [&](const Library& dnn) {
    return dnn.ConvolutionForward(dnn.handle, &kOne, made.x, x, made.weight, weight,
                                  made.convolution,
                                  static_cast<cudnnConvolutionFwdAlgo_t>(made.algorithm), scratch,
                                  made.scratch_bytes, add ? &kOne : &kZero, made.y, y);
  });
}

bool forward_bias_relu(const Convolution& made, void* y, const void* x, const void* weight,
                       const float* bias, const void* residual, void* scratch) {
  return run("conv2d", [&](const Library& dnn) {
    return dnn.ConvolutionBiasActivationForward(
        dnn.handle, &kOne, made.x, x, made.weight, weight, made.convolution,
        static_cast<cudnnConvolutionFwdAlgo_t>(made.algorithm), scratch, made.scratch_bytes,
        residual != nullptr ? &kOne : &kZero, made.y, residual != nullptr ? residual : y, made.bias,
        bias, made.relu, made.y, y);
  });
}

bool backward_data(const Convolution& made, void* dx, const void* g, const void* weight,
                   void* scratch) {
  return run("conv2d backward", [&](const Library& dnn) {
    return dnn.ConvolutionBackwardData(dnn.handle, &kOne, made.weight, weight, made.y, g,
                                       made.convolution,
                                       static_cast<cudnnConvolutionBwdDataAlgo_t>(made.algorithm),
                                       scratch, made.scratch_bytes, &kZero, made.x, dx);
  });
}

bool backward_weight(const Convolution& made, float* dw, const void* x, const void* g,
                     void* scratch) {
  return run("conv2d backward", [&](const Library& dnn) {
    return dnn.ConvolutionBackwardFilter(
        dnn.handle, &kOne, made.x, x, made.y, g, made.convolution,
        static_cast<cudnnConvolutionBwdFilterAlgo_t>(made.algorithm), scratch, made.scratch_bytes,
        &kZero, made.weight, dw);
  });
}

}  // namespace graft::cuda::cudnn

#else

namespace graft::cuda::cudnn {

struct Convolution {};
std::shared_ptr<const Convolution> convolution(Pass, const ConvShape&) { return nullptr; }
size_t scratch_bytes(const Convolution&) { return 0; }
bool forward(const Convolution&, void*, const void*, const void*, bool, void*) { return false; }
bool forward_bias_relu(const Convolution&, void*, const void*, const void*, const float*,
                       const void*, void*) {
  return false;
}
bool backward_data(const Convolution&, void*, const void*, const void*, void*) { return false; }
bool backward_weight(const Convolution&, float*, const void*, const void*, void*) { return false; }

}  // namespace graft::cuda::cudnn

#endif
