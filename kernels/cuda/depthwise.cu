// Depthwise convolution: y[n,oh,ow,c] = act(bias[c] + sum over kh, kw of
// x[n, oh sh - pad_top + kh dh, ow sw - pad_left + kw dw, c] w[c,kh,kw]), and its derivative by x:
// dx[n,ih,iw,c] = sum over the kh, kw, oh, ow that meet in ih, iw of g[n,oh,ow,c] w[c,kh,kw].
//
// 3x3 and 5x5 filters of stride 1 and 2 take the tiled kernel: a thread makes 2 x 4 neighbouring
// pixels of 4 channels. Each row that they meet is loaded once into registers and feeds all of
// them; the overlap with neighbouring tiles comes from the first-level cache, so that images cross
// the memory bus about once. The derivative is the same kernel with another table of which tap ties
// which pixels (Reach in depthwise.cuh). All other filters take a kernel with one pixel a thread.
//
// Layout: NHWC, f32 or bf16, filters (c, kh, kw) in f32; 4 channels a load where the channels are a
// multiple of 4 and the arrays aligned to 16 bytes, else one. Numerics: f32 sums in a fixed order;
// the tiled kernel counts padding as zeros. Each element has one writer, so results are
// deterministic.
#include <limits>

#include "kernels/cuda/depthwise.cuh"
#include "kernels/cuda/shared.cuh"
#include "kernels/element.h"

namespace graft::cuda {
namespace {

using namespace depthwise;

constexpr int kWide = 4;
// Rows of a thread's tile. Transposed stencils of stride 2 need an even number; the others of
// stride 2 read too many columns a row to keep the sums of two.
template <int S, bool kTransposed>
constexpr int kTileRows = S == 2 && !kTransposed ? 1 : 2;
constexpr float kInfinity = std::numeric_limits<float>::infinity();

// y = clamp(sum + bias): every activation that there is. The comparisons let NaN through.
struct Finish {
  const float* bias = nullptr;
  float low = -kInfinity, high = kInfinity;

  __device__ float operator()(float sum, float bias_value) const {
    const float y = sum + bias_value;
    return y < low ? low : (y > high ? high : y);
  }
};

// One axis of the work: `to` pixels are written, `from` pixels read.
struct Axis {
  int64_t to, from, kernel, stride, dilation, pad;
};
struct Work {
  int64_t batch, channels;
  Axis rows, columns;
};
Work work_of(const ConvShape& s, bool transposed) {
  Work work{
      s.batch,
      s.in_channels,
      {s.out_height, s.in_height, s.kernel_height, s.stride_height, s.dilation_height, s.pad_top},
      {s.out_width, s.in_width, s.kernel_width, s.stride_width, s.dilation_width, s.pad_left}};
  if (transposed) {
    std::swap(work.rows.to, work.rows.from);
    std::swap(work.columns.to, work.columns.from);
  }
  return work;
}

// Where a transposed stencil's first tile begins, pixels before the image: so that every tile
// begins at a pixel that tap 0 ties to an output.
int lead_of(int64_t pad, int64_t stride, bool transposed) {
  return transposed ? static_cast<int>(pad % stride) : 0;
}

// What the tiled kernel needs of the work.
struct Tiling {
  Image to, from;
  int pad_top, pad_left, lead_rows, lead_columns;
  Tiles tiles;

  Tiling(const Work& work, bool transposed, int tile_rows)
      : to(image_of(work.rows.to, work.columns.to, work.channels)),
        from(image_of(work.rows.from, work.columns.from, work.channels)),
        pad_top(static_cast<int>(work.rows.pad)),
        pad_left(static_cast<int>(work.columns.pad)),
        lead_rows(lead_of(pad_top, work.rows.stride, transposed)),
        lead_columns(lead_of(pad_left, work.columns.stride, transposed)),
        tiles(work.batch, to.height + lead_rows, to.width + lead_columns, tile_rows) {}
};

template <class T, int K, int S, bool kTransposed, int W>
__global__ void __launch_bounds__(kThreads, 2)
    tiled_kernel(Tiling tiling, Finish finish, T* to, const T* from, const float* weight) {
  using Reach = depthwise::Reach<K, S, kTransposed>;
  constexpr int kRows = kTileRows<S, kTransposed>;
  constexpr int kMetRows = Reach::met(kRows), kMetColumns = Reach::met(kTileColumns);
  // The filters of the block's channels, channels innermost.
  GRAFT_SHARED(float, taps, [K * K][kChannels]);
  const int channels = tiling.to.channels;
  // The channels of the same pixels are in flight together: blocks next to each other.
  const unsigned across = static_cast<unsigned>(channel_blocks(channels));
  const int block_channel = static_cast<int>(blockIdx.x % across) * kChannels;
  for (int i = static_cast<int>(threadIdx.x); i < K * K * kChannels; i += kThreads) {
    const int tap = i / kChannels, c = block_channel + i % kChannels;
    taps[tap][i % kChannels] = c < channels ? weight[c * K * K + tap] : 0.0f;
  }
  __syncthreads();

  const int lane = static_cast<int>(threadIdx.x) % kLanes<W> * W, channel = block_channel + lane;
  const int64_t tile = blockIdx.x / across * kSlots<W> + threadIdx.x / kLanes<W>;
  if (channel >= channels || tile >= tiling.tiles.count) return;

  const Tiles::Place place = tiling.tiles.at(tile);
  const int row = place.row - tiling.lead_rows, column = place.column - tiling.lead_columns;
  if (row >= tiling.to.height) return;
  const int from_row = Reach::first(row, tiling.pad_top);
  const int from_column = Reach::first(column, tiling.pad_left);
  float sum[kRows][kTileColumns][W] = {};
#pragma unroll
  for (int j = 0; j < kMetRows; ++j) {
    // A branch, so that no more than one row waits in registers at a time.
    if (from_row + j < 0 || from_row + j >= tiling.from.height) continue;
    float met[kMetColumns][W];
    load_row<W>(met, from, tiling.from, place.image, from_row + j, from_column, channel);
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
#pragma unroll
      for (int k = 0; k < K * K; ++k) {
        const int kh = k / K, kw = k % K;
        if (Reach::source(t, kh) != j) continue;
        const Pack<float, W> tap = load<W>(&taps[k][lane]);
#pragma unroll
        for (int u = 0; u < kTileColumns; ++u) {
          const int source = Reach::source(u, kw);
          if (source < 0) continue;
#pragma unroll
          for (int w = 0; w < W; ++w) sum[t][u][w] += met[source][w] * tap.v[w];
        }
      }
    }
  }
  Pack<float, W> bias{};
  if (finish.bias != nullptr) bias = load<W>(finish.bias + channel);
#pragma unroll
  for (int t = 0; t < kRows; ++t) {
    if (row + t < 0 || row + t >= tiling.to.height) continue;
    T* const first = at(to, tiling.to, place.image, row + t, column) + channel;
#pragma unroll
    for (int u = 0; u < kTileColumns; ++u) {
      if (column + u < 0 || column + u >= tiling.to.width) continue;
      Pack<T, W> result;
#pragma unroll
      for (int w = 0; w < W; ++w) result.v[w] = static_cast<T>(finish(sum[t][u][w], bias.v[w]));
      store(first + u * channels, result);
    }
  }
}

// The pixel that tap k gives to pixel i, or -1.
template <bool kTransposed>
__device__ int64_t source(const Axis& axis, int64_t i, int64_t k) {
  const int64_t at = kTransposed ? i + axis.pad - k * axis.dilation
                                 : i * axis.stride - axis.pad + k * axis.dilation;
  if (at < 0) return -1;
  if (kTransposed && at % axis.stride != 0) return -1;
  const int64_t pixel = kTransposed ? at / axis.stride : at;
  return pixel < axis.from ? pixel : -1;
}

// Any filter: one pixel of W channels a thread.
template <class T, bool kTransposed, int W>
__global__ void any_kernel(Work work, Finish finish, T* to, const T* from, const float* weight) {
  const int64_t packs = work.channels / W, taps = work.rows.kernel * work.columns.kernel;
  const int64_t count = work.batch * work.rows.to * work.columns.to * packs;
  const int64_t step = int64_t{gridDim.x} * blockDim.x;
  for (int64_t i = int64_t{blockIdx.x} * blockDim.x + threadIdx.x; i < count; i += step) {
    const int64_t pixel = i / packs, channel = i % packs * W;
    const int64_t column = pixel % work.columns.to, image_row = pixel / work.columns.to;
    const int64_t row = image_row % work.rows.to, image = image_row / work.rows.to;
    float sum[W] = {};
    for (int64_t kh = 0; kh < work.rows.kernel; ++kh) {
      const int64_t from_row = source<kTransposed>(work.rows, row, kh);
      if (from_row < 0) continue;
      for (int64_t kw = 0; kw < work.columns.kernel; ++kw) {
        const int64_t from_column = source<kTransposed>(work.columns, column, kw);
        if (from_column < 0) continue;
        const int64_t met = (image * work.rows.from + from_row) * work.columns.from + from_column;
        const Pack<T, W> values = load<W>(from + met * work.channels + channel);
        const float* tap = weight + channel * taps + kh * work.columns.kernel + kw;
#pragma unroll
        for (int w = 0; w < W; ++w) {
          sum[w] += static_cast<float>(values.v[w]) * tap[w * taps];
        }
      }
    }
    Pack<T, W> result;
#pragma unroll
    for (int w = 0; w < W; ++w) {
      const float bias = finish.bias == nullptr ? 0.0f : finish.bias[channel + w];
      result.v[w] = static_cast<T>(finish(sum[w], bias));
    }
    store(to + i * W, result);
  }
}

template <class T, bool kTransposed, int W>
void convolve(const char* op, const ConvShape& s, const Finish& finish, T* to, const T* from,
              const float* weight) {
  const Work work = work_of(s, kTransposed);
  const bool tiled = visit_filter(s, [&]<int K, int S>() {
    const Tiling tiling(work, kTransposed, kTileRows<S, kTransposed>);
    const int64_t blocks = (tiling.tiles.count + kSlots<W> - 1) / kSlots<W>;
    launch(op, {blocks * channel_blocks(work.channels)}, 0, tiled_kernel<T, K, S, kTransposed, W>,
           tiling, finish, to, from, weight);
  });
  if (tiled) return;
  const int64_t pixels = work.batch * work.rows.to * work.columns.to;
  launch(op, grid_for(pixels * (work.channels / W)), 0, any_kernel<T, kTransposed, W>, work, finish,
         to, from, weight);
}

template <bool kTransposed>
void convolve(const char* op, const ConvShape& s, const Finish& finish, Reals to, ConstReals from,
              const float* weight) {
  const bool wide = s.in_channels % kWide == 0 && aligned({to.data, from.data, finish.bias});
  visit_real(s.dtype, [&]<class T>(T) {
    const auto kernel = wide ? convolve<T, kTransposed, kWide> : convolve<T, kTransposed, 1>;
    kernel(op, s, finish, to.as<T>(), from.as<T>(), weight);
  });
}

}  // namespace

void depthwise_forward(const ConvShape& s, Reals y, ConstReals x, const float* weight,
                       const float* bias, Activation activation, float*) {
  Finish finish{bias};
  if (activation != Activation::none) finish.low = 0;
  if (activation == Activation::relu6) finish.high = 6;
  convolve<false>("depthwise_forward", s, finish, y, x, weight);
}

void depthwise_backward_data(const ConvShape& s, Reals dx, ConstReals g, const float* weight,
                             float*) {
  convolve<true>("depthwise_backward_data", s, {}, dx, g, weight);
}

}  // namespace graft::cuda
