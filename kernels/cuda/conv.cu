// Dense convolution, f32: cuDNN where it is there and takes the shape (cudnn.cu), else implicit
// matrix products, by group:
//
//   y  (pixels, out)          = patches of x (pixels, taps x in)   filters^T
//   dx (pixels, in)           = patches of g (pixels, taps x out)  filters
//   dw (out, taps x in)       = g^T (out, pixels)                  patches of x (pixels, taps x in)
//
// The patches are never stored: the panels of gemm.cuh are read from the images, zeros from outside
// (S. Chetlur et al., "cuDNN: efficient primitives for deep learning", 2014). Under 1x1 filters of
// stride 1 patches are pixels and the operands plain matrices. For dx under a stride s the pixels
// of one residue mod s see the same taps: each residue is a product of its own, without the
// multiplications by zero of a stretched gradient.
//
// Layout: NHWC images, OHWI filters, contiguous; 16-byte copies where channel counts and alignment
// allow. Numerics: f32 multiply-adds, taps and channels ascending. Determinism: a sum that is cut
// (few outputs, many terms) is cut by the shape alone and put together in order; each result has
// one writer. With cuDNN see there.
//
// bf16 images are computed with as f32 copies, in scratch memory; a result is rounded once.
#include <algorithm>
#include <array>
#include <map>
#include <mutex>
#include <numeric>

#include "kernels/cuda/conv_operands.cuh"
#include "kernels/cuda/cudnn.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

// Sizes that make_plan() has found to fit.
int as_int(int64_t size) { return static_cast<int>(size); }

// ---- plans

using cudnn::Pass;

// What LibraryPlan::primitive points to.
struct ConvPlan {
  ConvShape shape;
  ConvEpilogue epilogue;
  std::shared_ptr<const cudnn::Convolution> library;  // or null
  size_t copies = 0;                                  // where in the scratch memory
};

// Of the f32 copies of bf16 images, whole lines.
size_t copy_bytes(int64_t elements) {
  return (static_cast<size_t>(elements) * sizeof(float) + 255) / 256 * 256;
}
size_t image_bytes(const ConvShape& s) {
  return copy_bytes(s.batch * s.in_height * s.in_width * s.in_channels);
}
size_t result_bytes(const ConvShape& s) {
  return copy_bytes(s.batch * s.out_height * s.out_width * s.out_channels);
}

const ConvPlan& conv_plan(const LibraryPlan& plan) {
  return *static_cast<const ConvPlan*>(plan.primitive.get());
}

struct Product {
  int64_t batch, m, n, k;
};

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

template <class Tiles, class A, class B, class Output>
void multiply(const char* op, const Product& p, const A& a, const B& b, const Output& output,
              void* scratch) {
  with_tile<Tiles>(p, [&](auto tile) {
    using Tile = decltype(tile);
    launch_gemm<Tile>(op, a, b, output, cut_gemm<Tile>(p.batch, p.m, p.n, p.k),
                      static_cast<float*>(scratch));
  });
}

Product forward_product(const ConvShape& s) {
  return {s.groups, s.batch * s.out_height * s.out_width, s.out_channels / s.groups,
          s.kernel_height * s.kernel_width * (s.in_channels / s.groups)};
}

Product weight_product(const ConvShape& s) {
  return {s.groups, s.out_channels / s.groups,
          s.kernel_height * s.kernel_width * (s.in_channels / s.groups),
          s.batch * s.out_height * s.out_width};
}

// One direction of backward-data for the input pixels residue, residue + stride, ...: the filter's
// taps that reach them, and where those find their gradients.
struct Phase {
  ConvAxis axis;
  int first_tap = 0, tap_step = 1;
};

Phase phase_of(int64_t residue, int64_t size, int64_t stride, int64_t dilation, int64_t pad,
               int64_t kernel) {
  // Input pixel residue + i stride is reached by tap t from output (residue + i stride + pad - t
  // dilation) / stride, where that is whole.
  const int64_t step = stride / std::gcd(stride, dilation), candidates = std::min(step, kernel);
  int64_t first = 0;
  while (first < candidates && (residue + pad - first * dilation) % stride != 0) ++first;
  Phase phase;
  phase.axis.grid = (size - residue + stride - 1) / stride;
  phase.first_tap = static_cast<int>(first);
  phase.tap_step = static_cast<int>(step);
  if (first == candidates) return phase;
  phase.axis.taps = (kernel - 1 - first) / step + 1;
  phase.axis.shift = static_cast<int>((residue + pad - first * dilation) / stride);
  phase.axis.step = -static_cast<int>(step * dilation / stride);
  return phase;
}

// Calls use(residue down, residue across, phase down, phase across, product) for every product of
// backward-data.
template <class Use>
void for_phases(const ConvShape& s, const Use& use) {
  for (int64_t row = 0; row < std::min(s.stride_height, s.in_height); ++row) {
    const Phase down =
        phase_of(row, s.in_height, s.stride_height, s.dilation_height, s.pad_top, s.kernel_height);
    for (int64_t column = 0; column < std::min(s.stride_width, s.in_width); ++column) {
      const Phase across = phase_of(column, s.in_width, s.stride_width, s.dilation_width,
                                    s.pad_left, s.kernel_width);
      use(row, column, down, across,
          Product{s.groups, s.batch * down.axis.grid * across.axis.grid, s.in_channels / s.groups,
                  down.axis.taps * across.axis.taps * (s.out_channels / s.groups)});
    }
  }
}

size_t own_scratch_bytes(Pass pass, const ConvShape& s) {
  if (pass == Pass::forward) return partial_bytes<ImageTiles>(forward_product(s));
  if (pass == Pass::backward_weight) return partial_bytes<WeightTiles>(weight_product(s));
  size_t most = 0;
  for_phases(s, [&](int64_t, int64_t, const Phase&, const Phase&, const Product& p) {
    most = std::max(most, partial_bytes<ImageTiles>(p));
  });
  return most;
}

LibraryPlan make_plan(Pass pass, const ConvShape& s, const ConvEpilogue& epilogue) {
  const int64_t inputs = s.batch * s.in_height * s.in_width;
  const int64_t outputs = s.batch * s.out_height * s.out_width;
  const int64_t weights =
      s.out_channels * s.kernel_height * s.kernel_width * (s.in_channels / s.groups);
  GRAFT_CHECK(std::max({inputs, outputs, weights}) <= INT32_MAX, "conv2d: ", inputs, " pixels to ",
              outputs, " with ", weights, " weights; only 2^31 of each fit, split the batch");
  LibraryPlan plan;
  auto made = std::make_shared<ConvPlan>(ConvPlan{s, epilogue, cudnn::convolution(pass, s), 0});
  plan.scratch_bytes = own_scratch_bytes(pass, s);  // also with cuDNN: it may refuse a call yet
  if (made->library != nullptr) {
    plan.scratch_bytes = std::max(plan.scratch_bytes, cudnn::scratch_bytes(*made->library));
  }
  if (s.dtype == Dtype::bf16) {
    // The copies lie behind: x's (or dx's) and y's (or g's), and the residual's.
    made->copies = (plan.scratch_bytes + 255) / 256 * 256;
    plan.scratch_bytes =
        made->copies + image_bytes(s) + (epilogue.residual ? 2 : 1) * result_bytes(s);
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
template <int kWidth>
__global__ void epilogue_kernel(ImageOutput output, Divider by_channel, int64_t n) {
  for_packs<kWidth>(n, [&]<int W>(int64_t i) {
    const Divider::Result at = by_channel(static_cast<uint32_t>(i));
    output.template store<W>(0, at.quotient, at.rest, load<W>(output.y + i));
  });
}

bool library_forward(const ConvPlan& plan, float* y, const float* x, const void* weight,
                     const float* bias, const float* residual, void* scratch) {
  if (plan.library == nullptr) return false;
  const ConvShape& s = plan.shape;
  const Activation activation = plan.epilogue.activation;
  if (bias != nullptr && activation == Activation::relu && residual != y &&
      cudnn::forward_bias_relu(*plan.library, y, x, weight, bias, residual, scratch)) {
    return true;
  }
  const bool add = residual == y;
  if (!cudnn::forward(*plan.library, y, x, weight, add, scratch)) return false;
  if (add) residual = nullptr;
  if (bias == nullptr && residual == nullptr && activation == Activation::none) return true;
  const bool wide = s.out_channels % kPackWidth<float> == 0 && aligned({y, bias, residual});
  const int channels = as_int(s.out_channels);
  const ImageOutput output{y, bias, residual, activation, channels, channels, wide};
  const int64_t n = s.batch * s.out_height * s.out_width * s.out_channels;
  const Divider by_channel(s.out_channels);
  if (wide) {
    launch("conv2d", grid_for(n / kPackWidth<float>), 0, epilogue_kernel<kPackWidth<float>>, output,
           by_channel, n);
  } else {
    launch("conv2d", grid_for(n), 0, epilogue_kernel<1>, output, by_channel, n);
  }
  return true;
}

// ---- our own way

// Whether patches are pixels.
bool plain(const ConvShape& s) {
  return s.groups == 1 && s.kernel_height == 1 && s.kernel_width == 1 && s.stride_height == 1 &&
         s.stride_width == 1 && s.out_height == s.in_height && s.out_width == s.in_width &&
         s.pad_top == 0 && s.pad_left == 0;
}

// Whether the channels of a group come in aligned groups of 4.
bool in_fours(int64_t channels, int64_t groups, std::initializer_list<const void*> arrays) {
  return channels / groups % 4 == 0 && aligned(arrays);
}

Patches forward_patches(const ConvShape& s, const float* x) {
  return Patches(x, s.batch, s.in_height, s.in_width, s.in_channels, s.groups,
                 ConvAxis{s.out_height, s.kernel_height, as_int(s.stride_height),
                          -as_int(s.pad_top), as_int(s.dilation_height)},
                 ConvAxis{s.out_width, s.kernel_width, as_int(s.stride_width), -as_int(s.pad_left),
                          as_int(s.dilation_width)});
}

template <int kPack>
void own_backward_data(const ConvShape& s, float* dx, const float* g, const float* weight,
                       void* scratch) {
  const int64_t in = s.in_channels / s.groups, out = s.out_channels / s.groups;
  for_phases(s, [&](int64_t row, int64_t column, const Phase& down, const Phase& across,
                    const Product& product) {
    const PatchRows gradients{Patches(g, s.batch, s.out_height, s.out_width, s.out_channels,
                                      s.groups, down.axis, across.axis)};
    const FilterTaps<kPack> filters{.filters = weight,
                                    .in = as_int(in),
                                    .out = as_int(out),
                                    .kernel_height = as_int(s.kernel_height),
                                    .kernel_width = as_int(s.kernel_width),
                                    .depth = as_int(product.k),
                                    .first_down = down.first_tap,
                                    .step_down = down.tap_step,
                                    .first_across = across.first_tap,
                                    .step_across = across.tap_step,
                                    .by_out = Divider(out),
                                    .by_tap_row = gradients.patches.by_tap_row};
    const GridOutput output{.images = dx,
                            .height = as_int(s.in_height),
                            .width = as_int(s.in_width),
                            .channels = as_int(s.in_channels),
                            .group_channels = as_int(in),
                            .first_row = as_int(row),
                            .stride_down = as_int(s.stride_height),
                            .first_column = as_int(column),
                            .stride_across = as_int(s.stride_width),
                            .by_grid = gradients.patches.by_grid,
                            .by_grid_row = gradients.patches.by_grid_row,
                            .wide = in_fours(s.in_channels, s.groups, {dx})};
    multiply<ImageTiles>("conv2d backward", product, gradients, filters, output, scratch);
  });
}

template <int kPack>
void own_backward_weight(const ConvShape& s, float* dw, const float* x, const float* g,
                         void* scratch) {
  const Product p = weight_product(s);
  const FilterOutput output{dw, p.m, p.n, p.n % 4 == 0 && aligned({dw})};
  const PixelColumns<kPack> gradients{g, p.k, s.out_channels, p.m};
  if (plain(s)) {
    multiply<WeightTiles>("conv2d backward", p, gradients,
                          PixelColumns<kPack>{x, p.k, s.in_channels, p.n}, output, scratch);
  } else {
    multiply<WeightTiles>("conv2d backward", p, gradients,
                          PatchColumns<kPack>{forward_patches(s, x)}, output, scratch);
  }
}

void own_or_library_forward(const ConvPlan& made, float* y, const float* x, const void* weight,
                            const float* bias, const float* residual, void* scratch) {
  if (library_forward(made, y, x, weight, bias, residual, scratch)) return;
  const ConvShape& s = made.shape;
  const Product p = forward_product(s);
  const bool wide = in_fours(s.out_channels, s.groups, {y, bias, residual});
  const ImageOutput output{
      y, bias, residual, made.epilogue.activation, as_int(s.out_channels), as_int(p.n), wide};
  const MatrixOperand<false> filters{static_cast<const float*>(weight), p.n, as_int(p.k),
                                     p.n * p.k};
  if (plain(s)) {
    multiply<ImageTiles>("conv2d", p, MatrixOperand<false>{x, p.m, as_int(p.k)}, filters, output,
                         scratch);
  } else {
    multiply<ImageTiles>("conv2d", p, PatchRows{forward_patches(s, x)}, filters, output, scratch);
  }
}

void own_or_library_backward_data(const ConvPlan& made, float* dx, const float* g,
                                  const void* weight, void* scratch) {
  if (made.library != nullptr && cudnn::backward_data(*made.library, dx, g, weight, scratch)) {
    return;
  }
  const ConvShape& s = made.shape;
  const auto* filters = static_cast<const float*>(weight);
  if (!in_fours(s.in_channels, s.groups, {filters})) {
    own_backward_data<1>(s, dx, g, filters, scratch);
  } else if (!plain(s)) {
    own_backward_data<4>(s, dx, g, filters, scratch);
  } else {
    const Product p{1, s.batch * s.out_height * s.out_width, s.in_channels, s.out_channels};
    const ImageOutput output{
        dx, nullptr, nullptr, Activation::none, as_int(s.in_channels), as_int(p.n), aligned({dx})};
    multiply<ImageTiles>("conv2d backward", p, MatrixOperand<false>{g, p.m, as_int(p.k)},
                         MatrixOperand<true, 4>{filters, p.n, as_int(p.k)}, output, scratch);
  }
}

void own_or_library_backward_weight(const ConvPlan& made, float* dw, const float* x, const float* g,
                                    void* scratch) {
  if (made.library != nullptr && cudnn::backward_weight(*made.library, dw, x, g, scratch)) return;
  const ConvShape& s = made.shape;
  if (in_fours(s.in_channels, s.groups, {x}) && in_fours(s.out_channels, s.groups, {g})) {
    own_backward_weight<4>(s, dw, x, g, scratch);
  } else {
    own_backward_weight<1>(s, dw, x, g, scratch);
  }
}

// An array as f32: itself, or its copy at `place`.
const float* widened(ConstReals array, void* place, int64_t n) {
  if (array == nullptr || array.dtype == Dtype::f32) return array.as<float>();
  cast(place, Dtype::f32, array.data, Dtype::bf16, n);
  return static_cast<float*>(place);
}
// The array that stands in for a result, and back.
float* wide_target(Reals array, void* place) {
  return array.dtype == Dtype::f32 ? array.as<float>() : static_cast<float*>(place);
}
void narrow(Reals array, const float* wide, int64_t n) {
  if (array.dtype == Dtype::bf16) cast(array.data, Dtype::bf16, wide, Dtype::f32, n);
}

// The places of the copies.
struct ConvCopies {
  int64_t images, results;  // elements
  char *image, *result, *residual;
  ConvCopies(const ConvPlan& made, void* scratch)
      : images(made.shape.batch * made.shape.in_height * made.shape.in_width *
               made.shape.in_channels),
        results(made.shape.batch * made.shape.out_height * made.shape.out_width *
                made.shape.out_channels),
        image(static_cast<char*>(scratch) + made.copies),
        result(image + image_bytes(made.shape)),
        residual(result + result_bytes(made.shape)) {}
};

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
  const ConvCopies copies(made, scratch);
  float* wide = wide_target(y, copies.result);
  own_or_library_forward(made, wide, widened(x, copies.image, copies.images), weight, bias,
                         widened(residual, copies.residual, copies.results), scratch);
  narrow(y, wide, copies.results);
}

void conv_backward_data(const LibraryPlan& plan, Reals dx, ConstReals g, const void* weight,
                        void* scratch) {
  const ConvPlan& made = conv_plan(plan);
  const ConvCopies copies(made, scratch);
  float* wide = wide_target(dx, copies.image);
  own_or_library_backward_data(made, wide, widened(g, copies.result, copies.results), weight,
                               scratch);
  narrow(dx, wide, copies.images);
}

void conv_backward_weight(const LibraryPlan& plan, float* dw, ConstReals x, ConstReals g,
                          void* scratch) {
  const ConvPlan& made = conv_plan(plan);
  const ConvCopies copies(made, scratch);
  own_or_library_backward_weight(made, dw, widened(x, copies.image, copies.images),
                                 widened(g, copies.result, copies.results), scratch);
}

}  // namespace graft::cuda
