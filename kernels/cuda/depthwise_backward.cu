// Depthwise convolution, derivative by the filter:
// dw[c,kh,kw] = sum over n, oh, ow of g[n,oh,ow,c] x[n, oh sh - pad_top + kh dh, ow sw - pad_left +
// kw dw, c].
//
// First pass: each block sums its share of the output pixels for 32 channels, all taps at once in
// registers (3x3 and 5x5 filters of stride 1 and 2: a thread walks over tiles of 2 x 4 gradients
// and loads each row of x that they meet once), then over its threads by shuffles and shared
// memory. Second pass: the partial sums of the blocks, added up in an order of their own. All other
// filters take one tap a block.
//
// Layout: NHWC, f32 or bf16; 4 channels a load for 3x3, 2 for 5x5 (whose taps would not fit the
// registers otherwise), one where the channels are not a multiple of 4 or the arrays not aligned to
// 16 bytes.
// Numerics: f32; padding counts as zeros. Deterministic: how the pixels are shared out depends on
// the shape alone.
#include "kernels/cuda/depthwise.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/cuda/shared.cuh"
#include "kernels/element.h"

namespace graft::cuda {
namespace {

using namespace depthwise;

constexpr int kWarps = static_cast<int>(kThreads) / 32;

// Gradients of a thread's tile: S = 2 meets more columns of x and has fewer registers left.
template <int S>
constexpr int kTileRows = S == 1 ? 2 : 1;

// Blocks of the first pass: enough to fill a large GPU a few times over.
constexpr int64_t kBlocks = 512;

// `parts` equal parts of the work items, for each block of channels (and each tap).
int64_t parts_of(int64_t items, int64_t across) {
  return std::clamp<int64_t>(kBlocks / std::max<int64_t>(1, across), 1,
                             std::max<int64_t>(1, items));
}

// Adds up sum[tap][w] over the slots of the block and writes partial[tap][channel]. Called by all
// threads.
template <int kTaps, int W>
__device__ void finish_block(const float (&sum)[kTaps][W], float* partial, int64_t channels,
                             int64_t block_channel) {
  GRAFT_SHARED(float, sums, [kWarps][kTaps][kChannels]);
  const int warp = static_cast<int>(threadIdx.x) / 32, lane = static_cast<int>(threadIdx.x) % 32;
#pragma unroll
  for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
    for (int w = 0; w < W; ++w) {
      float total = sum[tap][w];
      for (int distance = 16; distance >= kLanes<W>; distance /= 2) {
        total += __shfl_xor_sync(kFullWarp, total, distance);
      }
      if (lane < kLanes<W>) sums[warp][tap][lane * W + w] = total;
    }
  }
  __syncthreads();
  for (int i = static_cast<int>(threadIdx.x); i < kTaps * kChannels; i += kThreads) {
    const int tap = i / kChannels, c = i % kChannels;
    if (block_channel + c >= channels) continue;
    float total = sums[0][tap][c];
    for (int other = 1; other < kWarps; ++other) total += sums[other][tap][c];
    partial[tap * channels + block_channel + c] = total;
  }
}

template <class T, int K, int S, int W>
__global__ void __launch_bounds__(kThreads, 2)
    tiled_kernel(Image inputs, Image outputs, int pad_top, int pad_left, Tiles tiles,
                 int64_t rounds, float* partial, const T* x, const T* g) {
  using Reach = depthwise::Reach<K, S, false>;
  constexpr int kRows = kTileRows<S>;
  constexpr int kMetColumns = Reach::met(kTileColumns);
  const int64_t block_channel = int64_t{blockIdx.x} * kChannels;
  const int channel = static_cast<int>(block_channel + threadIdx.x % kLanes<W> * W);
  const int64_t begin = rounds * blockIdx.y / gridDim.y * kSlots<W>;
  const int64_t after = rounds * (blockIdx.y + 1) / gridDim.y * kSlots<W>;
  const int64_t end = channel < inputs.channels ? (after < tiles.count ? after : tiles.count) : 0;

  float sum[K * K][W] = {};
  for (int64_t next = begin + threadIdx.x / kLanes<W>; next < end; next += kSlots<W>) {
    const Tiles::Place place = tiles.at(next);
    float gradient[kRows][kTileColumns][W] = {};
#pragma unroll
    for (int t = 0; t < kRows; ++t) {
      if (place.row + t >= outputs.height) continue;
      load_row<W>(gradient[t], g, outputs, place.image, place.row + t, place.column, channel);
    }
#pragma unroll
    for (int j = 0; j < Reach::met(kRows); ++j) {
      const int row = Reach::first(place.row, pad_top) + j;
      // A branch, so that no more than one row waits in registers at a time.
      if (row < 0 || row >= inputs.height) continue;
      float met[kMetColumns][W];
      load_row<W>(met, x, inputs, place.image, row, Reach::first(place.column, pad_left), channel);
#pragma unroll
      for (int t = 0; t < kRows; ++t) {
        const int kh = j - t * S;
        if (kh < 0 || kh >= K) continue;
#pragma unroll
        for (int kw = 0; kw < K; ++kw) {
#pragma unroll
          for (int u = 0; u < kTileColumns; ++u) {
#pragma unroll
            for (int w = 0; w < W; ++w) {
              sum[kh * K + kw][w] += gradient[t][u][w] * met[u * S + kw][w];
            }
          }
        }
      }
    }
  }
  finish_block(sum, partial + blockIdx.y * K * K * inputs.channels, inputs.channels, block_channel);
}

// Any filter: one tap a block (blockIdx.x counts blocks of channels, then taps), one channel and
// every kSlots-th output pixel of the block's share a thread.
template <class T>
__global__ void any_kernel(ConvShape s, float* partial, const T* x, const T* g) {
  const int64_t across = channel_blocks(s.in_channels), tap = blockIdx.x / across;
  const int64_t kh = tap / s.kernel_width, kw = tap % s.kernel_width;
  const int64_t block_channel = blockIdx.x % across * kChannels;
  const int64_t channel = block_channel + threadIdx.x % kChannels;
  const int64_t pixels = s.batch * s.out_height * s.out_width;
  const int64_t end = channel < s.in_channels ? pixels * (blockIdx.y + 1) / gridDim.y : 0;

  float sum[1][1] = {};
  for (int64_t pixel = pixels * blockIdx.y / gridDim.y + threadIdx.x / kChannels; pixel < end;
       pixel += kSlots<1>) {
    const int64_t column =
        pixel % s.out_width * s.stride_width - s.pad_left + kw * s.dilation_width;
    const int64_t image_row = pixel / s.out_width, image = image_row / s.out_height;
    const int64_t row =
        image_row % s.out_height * s.stride_height - s.pad_top + kh * s.dilation_height;
    if (row < 0 || row >= s.in_height || column < 0 || column >= s.in_width) continue;
    const int64_t met = (image * s.in_height + row) * s.in_width + column;
    sum[0][0] += static_cast<float>(g[pixel * s.in_channels + channel]) *
                 static_cast<float>(x[met * s.in_channels + channel]);
  }
  const int64_t taps = s.kernel_height * s.kernel_width;
  finish_block(sum, partial + (blockIdx.y * taps + tap) * s.in_channels, s.in_channels,
               block_channel);
}

// dw[channel][tap] = sum of partial[part][tap][channel]: a warp adds up every kPartWarps-th part of
// 32 channels of one tap, then the warps' sums are added in turn.
constexpr unsigned kPartWarps = 16;
__global__ void sum_parts_kernel(float* dw, const float* partial, int64_t parts, int64_t taps,
                                 int64_t channels) {
  GRAFT_SHARED(float, sums, [kPartWarps][32]);
  const unsigned warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t across = channel_blocks(channels), tap = blockIdx.x / across;
  const int64_t channel = blockIdx.x % across * kChannels + lane;
  float sum = 0;
  if (channel < channels) {
#pragma unroll 8
    for (int64_t part = warp; part < parts; part += kPartWarps) {
      sum += partial[(part * taps + tap) * channels + channel];
    }
  }
  sums[warp][lane] = sum;
  __syncthreads();
  if (warp != 0 || channel >= channels) return;
  for (unsigned other = 1; other < kPartWarps; ++other) sum += sums[other][lane];
  dw[channel * taps + tap] = sum;
}

}  // namespace

void depthwise_backward_weight(const ConvShape& s, float* dw, ConstReals x, ConstReals g, float*) {
  constexpr const char* kOp = "depthwise_backward_weight";
  const int64_t channels = s.in_channels, taps = s.kernel_height * s.kernel_width;
  const int64_t across = channel_blocks(channels);
  const bool wide = channels % 4 == 0 && aligned({x.data, g.data});
  int64_t parts = 0;
  float* partial = nullptr;
  const auto cut = [&](int64_t items, int64_t blocks) -> Grid {
    parts = parts_of(items, blocks);
    partial = static_cast<float*>(
        scratch(kOp, sizeof(float) * static_cast<size_t>(parts * taps * channels)));
    return {blocks, kThreads, parts};
  };
  const bool tiled = visit_filter(s, [&]<int K, int S>() {
    constexpr int kWide = K == 3 ? 4 : 2;
    const Tiles tiles(s.batch, s.out_height, s.out_width, kTileRows<S>);
    const int64_t slots = wide ? kSlots<kWide> : kSlots<1>;
    const int64_t rounds = (tiles.count + slots - 1) / slots;
    const Grid grid = cut(rounds, across);
    visit_real(s.dtype, [&]<class T>(T) {
      launch(kOp, grid, 0, wide ? tiled_kernel<T, K, S, kWide> : tiled_kernel<T, K, S, 1>,
             image_of(s.in_height, s.in_width, channels),
             image_of(s.out_height, s.out_width, channels), s.pad_top, s.pad_left, tiles, rounds,
             partial, x.as<T>(), g.as<T>());
    });
  });
  if (!tiled) {
    // A thread should have some tens of pixels.
    const Grid grid = cut(s.batch * s.out_height * s.out_width / 256, across * taps);
    visit_real(s.dtype, [&]<class T>(T) {
      launch(kOp, grid, 0, any_kernel<T>, s, partial, x.as<T>(), g.as<T>());
    });
  }
  launch(kOp, {across * taps, kPartWarps * 32}, 0, sum_parts_kernel, dw, partial, parts, taps,
         channels);
}

}  // namespace graft::cuda
