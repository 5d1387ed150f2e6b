// Pooling over NHWC images: largest value or mean of a window, and their derivatives.
//
// Vectors run over the channels. Forward kernels own output rows; the derivatives own one image and
// one block of channels each, so that overlapping windows add up in a fixed order without atomics.
// The position of a maximum is found again from x instead of being stored: x is kept for other ops
// anyway.
//
// Numerics: f32; means add up each window row, then the rows, then divide once. Results do not
// depend on the number of threads.
#include "kernels/cpu/parallel.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

constexpr int64_t kBlock = 64;  // channels

struct Window {
  int64_t top, bottom, left, right;  // inside the image; bottom and right excluded
  float scale;                       // 1 / number of pixels that count
};

Window strided_window(const PoolShape& s, int64_t oh, int64_t ow) {
  const int64_t top = oh * s.stride_height - s.pad_top, left = ow * s.stride_width - s.pad_left;
  Window w{std::max<int64_t>(top, 0), std::min(top + s.kernel_height, s.in_height),
           std::max<int64_t>(left, 0), std::min(left + s.kernel_width, s.in_width), 0};
  w.scale =
      1.0f / static_cast<float>(s.count_include_pad ? s.kernel_height * s.kernel_width
                                                    : (w.bottom - w.top) * (w.right - w.left));
  return w;
}

Window adaptive_window(const PoolShape& s, int64_t oh, int64_t ow) {
  Window w{
      oh * s.in_height / s.out_height, ((oh + 1) * s.in_height + s.out_height - 1) / s.out_height,
      ow * s.in_width / s.out_width, ((ow + 1) * s.in_width + s.out_width - 1) / s.out_width, 0};
  w.scale = 1.0f / static_cast<float>((w.bottom - w.top) * (w.right - w.left));
  return w;
}

// body(n, first channel, number of channels) for every image and block of channels.
template <class Body>
void for_blocks(const PoolShape& s, int64_t pixels, const Body& body) {
  const int64_t blocks = (s.channels + kBlock - 1) / kBlock;
  parallel_for(s.batch * blocks, pixels * std::min(s.channels, kBlock),
               [&](int64_t begin, int64_t end) {
                 for (int64_t item = begin; item < end; ++item) {
                   const int64_t c = item % blocks * kBlock;
                   body(item / blocks, c, std::min(kBlock, s.channels - c));
                 }
               });
}

template <class WindowOf>
void mean(const PoolShape& s, float* y, const float* x, const WindowOf& window_of) {
  const auto image = [&](int64_t n, int64_t oh, int64_t c, int64_t count) {
    for (int64_t ow = 0; ow < s.out_width; ++ow) {
      const Window w = window_of(s, oh, ow);
      float total[kBlock] = {};
      for (int64_t ih = w.top; ih < w.bottom; ++ih) {
        float row[kBlock] = {};
        for (int64_t iw = w.left; iw < w.right; ++iw) {
          const float* from = x + ((n * s.in_height + ih) * s.in_width + iw) * s.channels + c;
          for (int64_t i = 0; i < count; ++i) row[i] += from[i];
        }
        for (int64_t i = 0; i < count; ++i) total[i] += row[i];
      }
      float* to = y + ((n * s.out_height + oh) * s.out_width + ow) * s.channels + c;
      for (int64_t i = 0; i < count; ++i) to[i] = total[i] * w.scale;
    }
  };
  const int64_t blocks = (s.channels + kBlock - 1) / kBlock;
  const int64_t cost = s.in_height * s.in_width * std::min(s.channels, kBlock) / s.out_height + 1;
  parallel_for(s.batch * s.out_height * blocks, cost, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t c = item % blocks * kBlock, row = item / blocks;
      const int64_t n = row / s.out_height, oh = row % s.out_height;
      // A constant count lets the block live in registers.
      if (s.channels - c >= kBlock) {
        image(n, oh, c, kBlock);
      } else {
        image(n, oh, c, s.channels - c);
      }
    }
  });
}

template <class WindowOf>
void mean_grad(const PoolShape& s, float* dx, const float* g, const WindowOf& window_of) {
  for_blocks(s, s.in_height * s.in_width, [&](int64_t n, int64_t c, int64_t count) {
    float* image = dx + n * s.in_height * s.in_width * s.channels + c;
    for (int64_t i = 0; i < s.in_height * s.in_width; ++i) {
      std::fill(image + i * s.channels, image + i * s.channels + count, 0.0f);
    }
    for (int64_t oh = 0; oh < s.out_height; ++oh) {
      for (int64_t ow = 0; ow < s.out_width; ++ow) {
        const Window w = window_of(s, oh, ow);
        const float* from = g + ((n * s.out_height + oh) * s.out_width + ow) * s.channels + c;
        for (int64_t ih = w.top; ih < w.bottom; ++ih) {
          for (int64_t iw = w.left; iw < w.right; ++iw) {
            float* to = image + (ih * s.in_width + iw) * s.channels;
            for (int64_t i = 0; i < count; ++i) to[i] += from[i] * w.scale;
          }
        }
      }
    }
  });
}

}  // namespace

void max_pool(const PoolShape& s, float* y, const float* x) {
  const int64_t cost = s.out_width * s.channels * s.kernel_height * s.kernel_width;
  parallel_for(s.batch * s.out_height, cost, [&](int64_t begin, int64_t end) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t n = item / s.out_height, oh = item % s.out_height;
      for (int64_t ow = 0; ow < s.out_width; ++ow) {
        const Window w = strided_window(s, oh, ow);
        float* to = y + (item * s.out_width + ow) * s.channels;
        bool first = true;
        for (int64_t ih = w.top; ih < w.bottom; ++ih) {
          for (int64_t iw = w.left; iw < w.right; ++iw) {
            const float* from = x + ((n * s.in_height + ih) * s.in_width + iw) * s.channels;
            if (first) {
              std::copy(from, from + s.channels, to);
            } else {
              for (int64_t c = 0; c < s.channels; ++c) {
                const float value = from[c];
                to[c] = value > to[c] || value != value ? value : to[c];
              }
            }
            first = false;
          }
        }
      }
    }
  });
}

void max_pool_grad(const PoolShape& s, float* dx, const float* x, const float* g) {
  for_blocks(s, s.in_height * s.in_width * 4, [&](int64_t n, int64_t c, int64_t count) {
    const int64_t base = n * s.in_height * s.in_width * s.channels + c;
    const float* in = x + base;
    float* image = dx + base;
    for (int64_t i = 0; i < s.in_height * s.in_width; ++i) {
      std::fill(image + i * s.channels, image + i * s.channels + count, 0.0f);
    }
    float best[kBlock];
    int32_t place[kBlock];  // pixel of the image
    for (int64_t oh = 0; oh < s.out_height; ++oh) {
      for (int64_t ow = 0; ow < s.out_width; ++ow) {
        const Window w = strided_window(s, oh, ow);
        for (int64_t ih = w.top; ih < w.bottom; ++ih) {
          for (int64_t iw = w.left; iw < w.right; ++iw) {
            const auto pixel = static_cast<int32_t>(ih * s.in_width + iw);
            const float* from = in + pixel * s.channels;
            const bool first = ih == w.top && iw == w.left;
            for (int64_t i = 0; i < count; ++i) {
              const float value = from[i];
              const bool wins = first || value > best[i] || value != value;
              best[i] = wins ? value : best[i];
              place[i] = wins ? pixel : place[i];
            }
          }
        }
        const float* from = g + ((n * s.out_height + oh) * s.out_width + ow) * s.channels + c;
        for (int64_t ih = w.top; ih < w.bottom; ++ih) {
          for (int64_t iw = w.left; iw < w.right; ++iw) {
            const auto pixel = static_cast<int32_t>(ih * s.in_width + iw);
            float* to = image + pixel * s.channels;
            for (int64_t i = 0; i < count; ++i) to[i] += place[i] == pixel ? from[i] : 0.0f;
          }
        }
      }
    }
  });
}

void avg_pool(const PoolShape& s, float* y, const float* x) { mean(s, y, x, strided_window); }
void avg_pool_grad(const PoolShape& s, float* dx, const float* g) {
  mean_grad(s, dx, g, strided_window);
}
void adaptive_avg_pool(const PoolShape& s, float* y, const float* x) {
  mean(s, y, x, adaptive_window);
}
void adaptive_avg_pool_grad(const PoolShape& s, float* dx, const float* g) {
  mean_grad(s, dx, g, adaptive_window);
}

}  // namespace graft::cpu::GRAFT_ISA
