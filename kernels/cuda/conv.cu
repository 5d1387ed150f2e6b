// Dense convolution: cuDNN where it is there and takes the shape (cudnn.cu), else the implicit
// matrix products of conv_products.cuh, in f32 here, in bf16 on tensor cores (conv_bf16.cu).
//
// Layout: NHWC images, OHWI filters, contiguous; 16-byte copies where channel counts and alignment
// allow. Numerics: f32 multiply-adds, taps and channels ascending. bf16 images meet filters that
// were rounded to bf16 when they were packed; their sums are f32 and rounded once (cuDNN rounds
// them before bias and residual are added, too), and gradients of filters stay f32, which cuDNN
// does not offer. Determinism: a sum that is cut (few outputs, many terms) is cut by the shape
// alone and put together in order; each result has one writer. With cuDNN see there.
#include <algorithm>
#include <array>
#include <map>
#include <mutex>

#include "kernels/cuda/conv_bf16.h"
#include "kernels/cuda/conv_products.cuh"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// ---- plans

using cudnn::Pass;

// What LibraryPlan::primitive points to.
struct ConvPlan {
  ConvShape shape;
  ConvEpilogue epilogue;
  std::shared_ptr<const cudnn::Convolution> library;  // or null
};

const ConvPlan& conv_plan(const LibraryPlan& plan) {
  return *static_cast<const ConvPlan*>(plan.primitive.get());
}

// The tiles of a pass: Thin for very few columns or rows, Big for much work. Patches as rows take
// so many registers that 8 x 8 sums a thread would not leave enough.
struct ImageTiles {
  using Thin = TallTile;
  using Big = GemmTile<128, 64, 8, 8, 4, 2>;
};
struct WeightTiles {
  using Thin = FlatTile;
  using Big = LargeTile;
};

// Calls use(tile) with the tile for a product.
template <class Tiles, class Use>
auto with_tile(const Product& p, const Use& use) {
  using Thin = typename Tiles::Thin;
  if (Thin::kM < Thin::kN ? p.m <= Thin::kM : p.n <= Thin::kN) return use(Thin{});
  if (choose_tile(p.batch, p.m, p.n, p.k) == GemmTileKind::large) {
    return use(typename Tiles::Big{});
  }
  return use(MediumTile{});
}

template <class Tiles>
size_t partial_bytes(const Product& p) {
  return with_tile<Tiles>(p, [&](auto tile) {
    return static_cast<size_t>(cut_gemm<decltype(tile)>(p.batch, p.m, p.n, p.k).partials()) *
           sizeof(float);
  });
}

size_t own_scratch_bytes(Pass pass, const ConvShape& s) {
  if (s.dtype == Dtype::bf16) return conv_bf16_scratch(pass, s);
  if (pass == Pass::backward_weight) return most_scratch(pass, s, partial_bytes<WeightTiles>);
  return most_scratch(pass, s, partial_bytes<ImageTiles>);
}

LibraryPlan make_plan(Pass pass, const ConvShape& s, const ConvEpilogue& epilogue) {
  const int64_t inputs = s.batch * s.in_height * s.in_width;
  const int64_t outputs = s.batch * s.out_height * s.out_width;
  const int64_t weights =
      s.out_channels * s.kernel_height * s.kernel_width * (s.in_channels / s.groups);
  GRAFT_CHECK(std::max({inputs, outputs, weights}) <= INT32_MAX, "conv2d: ", inputs, " pixels to ",
              outputs, " with ", weights, " weights; only 2^31 of each fit, split the batch");
  LibraryPlan plan;
  auto made = std::make_shared<const ConvPlan>(ConvPlan{s, epilogue, cudnn::convolution(pass, s)});
  plan.scratch_bytes = own_scratch_bytes(pass, s);  // also with cuDNN: it may refuse a call yet
  if (made->library != nullptr) {
    plan.scratch_bytes = std::max(plan.scratch_bytes, cudnn::scratch_bytes(*made->library));
  }
  if (s.dtype == Dtype::bf16 && pass != Pass::backward_weight) {
    plan.packing = 1;  // rounded, as pack_weight() does it
    plan.packed_bytes = static_cast<size_t>(weights) * size_of(Dtype::bf16);
  }
  plan.primitive = std::move(made);
  return plan;
}

LibraryPlan cached_plan(Pass pass, const ConvShape& s, const ConvEpilogue& epilogue) {
  const int64_t after =
      epilogue.bias + 2 * epilogue.residual + 4 * static_cast<int64_t>(epilogue.activation);
  const std::array<int64_t, 21> key{static_cast<int64_t>(pass),
                                    after,
                                    s.batch,
                                    s.in_height,
                                    s.in_width,
                                    s.in_channels,
                                    s.out_height,
                                    s.out_width,
                                    s.out_channels,
                                    s.kernel_height,
                                    s.kernel_width,
                                    s.stride_height,
                                    s.stride_width,
                                    s.pad_top,
                                    s.pad_bottom,
                                    s.pad_left,
                                    s.pad_right,
                                    s.groups,
                                    s.dilation_height,
                                    s.dilation_width,
                                    static_cast<int64_t>(s.dtype)};
  static auto* mutex = new std::mutex;
  static auto* plans = new std::map<std::array<int64_t, 21>, LibraryPlan>;
  std::lock_guard lock(*mutex);
  const auto found = plans->find(key);
  if (found != plans->end()) return found->second;
  return plans->emplace(key, make_plan(pass, s, epilogue)).first->second;
}

// ---- the library's way

// What comes after the sums when the library made them.
template <int kWidth, class T>
__global__ void epilogue_kernel(ImageOutput<T> output, Divider by_channel, int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Divider::Result at = by_channel(static_cast<uint32_t>(i));
    output.template store<W>(0, at.quotient, at.rest, load_floats<W>(output.y + i));
  });
}

template <class T>
bool library_forward(const ConvPlan& plan, T* y, const T* x, const void* weight, const float* bias,
                     const T* residual, void* scratch) {
  if (plan.library == nullptr) return false;
  const ConvShape& s = plan.shape;
  const Activation activation = plan.epilogue.activation;
  if (bias != nullptr && activation == Activation::relu && residual != y && s.dtype == Dtype::f32 &&
      cudnn::forward_bias_relu(*plan.library, y, x, weight, bias, residual, scratch)) {
    return true;
  }
  const bool add = residual == y;
  if (!cudnn::forward(*plan.library, y, x, weight, add, scratch)) return false;
  if (add) residual = nullptr;
  if (bias == nullptr && residual == nullptr && activation == Activation::none) return true;
  constexpr int kWidth = kPackWidth<float>;
  const bool wide = s.out_channels % kWidth == 0 && aligned({y, bias, residual});
  const int channels = as_int(s.out_channels);
  const ImageOutput<T> output{y, bias, residual, activation, channels, channels, wide};
  const int64_t n = s.batch * s.out_height * s.out_width * s.out_channels;
  const Divider by_channel(s.out_channels);
  if (wide) {
    launch("conv2d", grid_for(n / kWidth), 0, epilogue_kernel<kWidth, T>, output, by_channel, n);
  } else {
    launch("conv2d", grid_for(n), 0, epilogue_kernel<1, T>, output, by_channel, n);
  }
  return true;
}

// ---- our own way, f32

template <class Tiles>
auto multiplier(const char* op, void* scratch) {
  return [=](const Product& p, const auto& a, const auto& b, const auto& output) {
    with_tile<Tiles>(p, [&](auto tile) {
      using Tile = decltype(tile);
      launch_gemm<Tile>(op, a, b, output, cut_gemm<Tile>(p.batch, p.m, p.n, p.k),
                        static_cast<float*>(scratch));
    });
  };
}

void own_forward(const ConvPlan& made, float* y, const float* x, const float* filters,
                 const float* bias, const float* residual, void* scratch) {
  visit_forward<1>(made.shape, y, x, filters, bias, residual, made.epilogue.activation,
                   multiplier<ImageTiles>("conv2d", scratch));
}

void own_backward_data(const ConvShape& s, float* dx, const float* g, const float* filters,
                       void* scratch) {
  const auto run = multiplier<ImageTiles>("conv2d backward", scratch);
  if (in_packs(4, s.in_channels, s.groups, {filters})) {
    visit_backward_data<1, 4>(s, dx, g, filters, run);
  } else {
    visit_backward_data<1, 1>(s, dx, g, filters, run);
  }
}

void own_backward_weight(const ConvShape& s, float* dw, const float* x, const float* g,
                         void* scratch) {
  const auto run = multiplier<WeightTiles>("conv2d backward", scratch);
  if (in_packs(4, s.in_channels, s.groups, {x}) && in_packs(4, s.out_channels, s.groups, {g})) {
    visit_backward_weight<4>(s, dw, x, g, run);
  } else {
    visit_backward_weight<1>(s, dw, x, g, run);
  }
}

}  // namespace

LibraryPlan conv_forward_plan(const ConvShape& s, const ConvEpilogue& epilogue) {
  return cached_plan(Pass::forward, s, epilogue);
}
LibraryPlan conv_backward_data_plan(const ConvShape& s) {
  return cached_plan(Pass::backward_data, s, {});
}
LibraryPlan conv_backward_weight_plan(const ConvShape& s) {
  return cached_plan(Pass::backward_weight, s, {});
}

void conv_forward(const LibraryPlan& plan, Reals y, ConstReals x, const void* weight,
                  const float* bias, ConstReals residual, void* scratch) {
  const ConvPlan& made = conv_plan(plan);
  if (made.shape.dtype == Dtype::bf16) {
    auto* out = y.as<Bf16>();
    const auto *in = x.as<Bf16>(), *more = residual.as<Bf16>();
    if (library_forward(made, out, in, weight, bias, more, scratch)) return;
    conv_bf16_forward(made.shape, out, in, static_cast<const Bf16*>(weight), bias, more,
                      made.epilogue.activation, scratch);
    return;
  }
  auto* out = y.as<float>();
  const auto *in = x.as<float>(), *more = residual.as<float>();
  if (library_forward(made, out, in, weight, bias, more, scratch)) return;
  own_forward(made, out, in, static_cast<const float*>(weight), bias, more, scratch);
}

void conv_backward_data(const LibraryPlan& plan, Reals dx, ConstReals g, const void* weight,
                        void* scratch) {
  const ConvPlan& made = conv_plan(plan);
  if (made.library != nullptr &&
      cudnn::backward_data(*made.library, dx.data, g.data, weight, scratch)) {
    return;
  }
  if (made.shape.dtype == Dtype::bf16) {
    conv_bf16_backward_data(made.shape, dx.as<Bf16>(), g.as<Bf16>(),
                            static_cast<const Bf16*>(weight), scratch);
  } else {
    own_backward_data(made.shape, dx.as<float>(), g.as<float>(), static_cast<const float*>(weight),
                      scratch);
  }
}

void conv_backward_weight(const LibraryPlan& plan, float* dw, ConstReals x, ConstReals g,
                          void* scratch) {
  const ConvPlan& made = conv_plan(plan);
  if (made.library != nullptr &&
      cudnn::backward_weight(*made.library, dw, x.data, g.data, scratch)) {
    return;
  }
  if (made.shape.dtype == Dtype::bf16) {
    conv_bf16_backward_weight(made.shape, dw, x.as<Bf16>(), g.as<Bf16>(), scratch);
  } else {
    own_backward_weight(made.shape, dw, x.as<float>(), g.as<float>(), scratch);
  }
}

}  // namespace graft::cuda
