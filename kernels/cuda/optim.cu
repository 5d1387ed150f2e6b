// Optimizer steps over many parameters in one launch. Formulas are PyTorch's (torch.optim.SGD and
// AdamW; AdamW after Loshchilov and Hutter 2019); those of each kernel stand in
// kernels/list/optim.h.
//
// Layout: a list of flat arrays, cut into chunks of kChunk elements, one block each. The list
// travels by value among the kernel's parameters, of which CUDA keeps a copy with the launch: no
// upload, no staging memory whose life somebody must watch, and a captured graph owns its list. 4
// KB of parameters hold kMost tensors; longer lists take several launches. A chunk whose arrays are
// aligned to 16 bytes moves 16 bytes at a time. Memory-bound: each array is read and written once.
// Numerics: f32, bias corrections come from the caller in double; the sum of squares is taken in
// double. Deterministic: elementwise; the sum adds in a tree within each chunk and then over the
// chunks, and both depend on the sizes alone.
#include <cstdint>

#include "kernels/clip.h"
#include "kernels/cuda/launch.cuh"
#include "kernels/cuda/pack.cuh"
#include "kernels/cuda/reduce.cuh"
#include "kernels/cuda/scratch.h"
#include "kernels/device.h"
#include "kernels/kernels.h"

namespace graft::cuda {
namespace {

constexpr int64_t kChunk = 4096;
constexpr int kMost = 64;
constexpr int kWide = kPackWidth<float>;

struct Batch {
  int count = 0;
  int first_block[kMost + 1] = {};  // of each tensor, and how many there are
  OptimTensor tensors[kMost];
};
static_assert(sizeof(Batch) <= 4096 - 64, "kernel parameters, with room for the others");

// Calls body.operator()<width>(tensor, start) for every pack of this block's chunk.
template <class Body>
__device__ void for_chunk(const Batch& batch, const Body& body) {
  const int block = static_cast<int>(blockIdx.x);
  int low = 0, high = batch.count;  // low begins at or before this block, high behind it
  while (high - low > 1) {
    const int middle = (low + high) / 2;
    (batch.first_block[middle] <= block ? low : high) = middle;
  }
  const OptimTensor& t = batch.tensors[low];
  const int64_t begin = (block - batch.first_block[low]) * kChunk;
  const int64_t end = min(begin + kChunk, t.n);
  const uintptr_t addresses = reinterpret_cast<uintptr_t>(t.p) | reinterpret_cast<uintptr_t>(t.g) |
                              reinterpret_cast<uintptr_t>(t.m) | reinterpret_cast<uintptr_t>(t.v);
  int64_t done = begin;
  if (addresses % 16 == 0) {
    done = end - (end - begin) % kWide;
    for (int64_t i = begin + threadIdx.x * kWide; i < done; i += kThreads * kWide) {
      body.template operator()<kWide>(t, i);
    }
  }
  for (int64_t i = done + threadIdx.x; i < end; i += kThreads) body.template operator()<1>(t, i);
}

// Gradients with the clipping factor on them. The product is rounded by itself, never contracted
// with what follows: a factor of 1 changes no bit.
template <int W>
__device__ Pack<float, W> load_clipped(const float* g, float clip) {
  Pack<float, W> d = load<W>(g);
  for (float& value : d.v) value = __fmul_rn(value, clip);
  return d;
}
__device__ float clip_at(const float* clip) { return clip != nullptr ? *clip : 1.0f; }

__global__ void __launch_bounds__(kThreads)
    sgd_kernel(const __grid_constant__ Batch batch, OptimRates rates, const float* clip_place,
               float momentum, float weight_decay, bool nesterov) {
  const float clip = clip_at(clip_place);
  const float learning_rate = (rates.at != nullptr ? *rates.at : rates).learning_rate;
  for_chunk(batch, [=]<int W>(const OptimTensor& t, int64_t i) {
    Pack<float, W> p = load<W>(t.p + i);
    Pack<float, W> d = load_clipped<W>(t.g + i, clip);
    for (int k = 0; k < W; ++k) d.v[k] += weight_decay * p.v[k];
    if (t.m != nullptr) {
      // A first step copies the gradient into the buffer, which nobody has written yet.
      Pack<float, W> m = d;
      if (!t.first_step) {
        m = load<W>(t.m + i);
        for (int k = 0; k < W; ++k) m.v[k] = momentum * m.v[k] + d.v[k];
      }
      store(t.m + i, m);
      for (int k = 0; k < W; ++k) d.v[k] = nesterov ? d.v[k] + momentum * m.v[k] : m.v[k];
    }
    for (int k = 0; k < W; ++k) p.v[k] -= learning_rate * d.v[k];
    store(t.p + i, p);
  });
}

__global__ void __launch_bounds__(kThreads)
    adamw_kernel(const __grid_constant__ Batch batch, OptimRates rates, const float* clip_place,
                 float beta1, float beta2, float epsilon) {
  const float clip = clip_at(clip_place);
  if (rates.at != nullptr) rates = *rates.at;
  const float shrink = 1.0f - rates.decay, share1 = 1.0f - beta1, share2 = 1.0f - beta2;
  for_chunk(batch, [=]<int W>(const OptimTensor& t, int64_t i) {
    Pack<float, W> p = load<W>(t.p + i), m = load<W>(t.m + i), v = load<W>(t.v + i);
    const Pack<float, W> g = load_clipped<W>(t.g + i, clip);
    for (int k = 0; k < W; ++k) {
      const float d = g.v[k];
      m.v[k] += share1 * (d - m.v[k]);
      v.v[k] = beta2 * v.v[k] + share2 * d * d;
      p.v[k] = p.v[k] * shrink -
               rates.step_size * m.v[k] / (std::sqrt(v.v[k]) * rates.root_scale + epsilon);
    }
    store(t.m + i, m);
    store(t.v + i, v);
    store(t.p + i, p);
  });
}

__global__ void __launch_bounds__(kThreads)
    scale_kernel(const __grid_constant__ Batch batch, float factor) {
  for_chunk(batch, [=]<int W>(const OptimTensor& t, int64_t i) {
    Pack<float, W> p = load<W>(t.p + i);
    for (float& value : p.v) value *= factor;
    store(t.p + i, p);
  });
}

// partial[block] = sum of g^2 over the block's chunk.
__global__ void __launch_bounds__(kThreads)
    square_sum_kernel(double* partial, const __grid_constant__ Batch batch) {
  double sum = 0;
  for_chunk(batch, [&]<int W>(const OptimTensor& t, int64_t i) {
    const Pack<float, W> g = load<W>(t.g + i);
    for (float value : g.v) sum += static_cast<double>(value) * static_cast<double>(value);
  });
  sum = block_reduce(sum, Sum());
  if (threadIdx.x == 0) partial[blockIdx.x] = sum;
}

// The sum of all partial sums, for thread 0. One block.
__device__ double total_of(const double* partial, int64_t n) {
  double sum = 0;
  for (int64_t i = threadIdx.x; i < n; i += blockDim.x) sum += partial[i];
  return block_reduce(sum, Sum());
}
__global__ void total_kernel(double* total, const double* partial, int64_t n) {
  const double sum = total_of(partial, n);
  if (threadIdx.x == 0) *total = sum;
}
__global__ void clip_kernel(float* factor, const double* partial, int64_t n, double max_norm) {
  const double sum = total_of(partial, n);
  if (threadIdx.x == 0) *factor = clip_factor_of(sum, max_norm);
}

int64_t blocks_of(const OptimTensor& tensor) { return (tensor.n + kChunk - 1) / kChunk; }

// Calls use(grid, batch) for the tensors in turn, up to kMost at a time.
template <class Use>
void each_batch(const char* op, const OptimTensor* tensors, int64_t count, const Use& use) {
  Batch batch;
  int64_t blocks = 0;
  const auto flush = [&] {
    if (batch.count > 0) use(Grid{blocks}, batch);
    batch.count = 0;
    blocks = 0;
  };
  for (int64_t t = 0; t < count; ++t) {
    if (tensors[t].n == 0) continue;
    GRAFT_CHECK(blocks_of(tensors[t]) <= INT32_MAX, op, ": a tensor of ", tensors[t].n,
                " elements is more than a grid can have");
    if (batch.count == kMost || blocks + blocks_of(tensors[t]) > INT32_MAX) flush();
    batch.tensors[batch.count] = tensors[t];
    blocks += blocks_of(tensors[t]);
    batch.first_block[++batch.count] = static_cast<int>(blocks);
  }
  flush();
}

// The partial sums of squares, in scratch memory behind one number of room for their total.
struct Partials {
  double *total, *partial;
  int64_t count;
};
Partials square_sums(const char* op, const OptimTensor* tensors, int64_t count) {
  int64_t blocks = 0;
  for (int64_t t = 0; t < count; ++t) blocks += blocks_of(tensors[t]);
  auto* total = static_cast<double*>(scratch(op, static_cast<size_t>(blocks + 1) * sizeof(double)));
  double* next = total + 1;
  each_batch(op, tensors, count, [&](Grid grid, const Batch& batch) {
    launch(op, grid, 0, square_sum_kernel, next, batch);
    next += grid.blocks;
  });
  return {total, total + 1, blocks};
}

}  // namespace

void sgd_step(const OptimTensor* tensors, int64_t count, OptimRates rates, const float* clip,
              float momentum, float weight_decay, bool nesterov) {
  each_batch("sgd", tensors, count, [=](Grid grid, const Batch& batch) {
    launch("sgd", grid, 0, sgd_kernel, batch, rates, clip, momentum, weight_decay, nesterov);
  });
}

void adamw_step(const OptimTensor* tensors, int64_t count, OptimRates rates, const float* clip,
                float beta1, float beta2, float epsilon) {
  each_batch("adamw", tensors, count, [=](Grid grid, const Batch& batch) {
    launch("adamw", grid, 0, adamw_kernel, batch, rates, clip, beta1, beta2, epsilon);
  });
}

void scale_tensors(const OptimTensor* tensors, int64_t count, float factor) {
  each_batch("scale_tensors", tensors, count, [=](Grid grid, const Batch& batch) {
    launch("scale_tensors", grid, 0, scale_kernel, batch, factor);
  });
}

void gradient_square_sum(double* sum, const OptimTensor* tensors, int64_t count) {
  constexpr const char* kOp = "gradient_square_sum";
  const Partials sums = square_sums(kOp, tensors, count);
  launch(kOp, {1, 1024}, 0, total_kernel, sums.total, sums.partial, sums.count);
  copy(sum, kCpu, sums.total, {Device::Kind::cuda, 0}, sizeof *sum);
}

void clip_factor(float* factor, const OptimTensor* tensors, int64_t count, float max_norm) {
  constexpr const char* kOp = "clip_factor";
  const Partials sums = square_sums(kOp, tensors, count);
  launch(kOp, {1, 1024}, 0, clip_kernel, factor, sums.partial, sums.count,
         static_cast<double>(max_norm));
}

}  // namespace graft::cuda
