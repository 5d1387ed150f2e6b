// Batch normalisation (Ioffe and Szegedy 2015) with a fused residual and activation, and its
// gradient.
//
//   y  = act(xhat weight + bias + residual),  xhat = (x - mean) invstd
//   dz = g act'(z);  dbias = sum dz;  dweight = sum dz xhat
//   dx = weight invstd (dz - mean(dz) - xhat mean(dz xhat)),  or weight invstd dz when frozen
//
// Layout: x is (rows, channels), f32 or bf16, NHWC seen as a matrix; no alignment assumed. Narrow
// matrices are folded: k rows side by side make one row of k * channels columns, a whole number of
// vectors, and the k copies of a channel are merged at the end. Memory-bound: two passes over x
// forward, two over x and g backward, one when frozen.
//
// What the backward pass reads: x and the statistics. The activation's mask is made again from x,
// with the forward pass's own arithmetic, so that y need not be read; with a residual, or when a
// frozen layer needs nothing else of x, it comes from y, which the next layer keeps anyway.
//
// Numerics: variance by shifted sums (see columns.h), f32 within blocks of 256 rows, double across;
// the mean's rounding error is kept and corrected for, so that mean 1e4 with deviation 1 is
// harmless. Deterministic: the number of partial sums depends on the shape only.
#include <cmath>
#include <type_traits>

#include "kernels/cpu/parallel.h"
#include "kernels/cpu/scratch.h"
#include "kernels/cpu/vector/columns.h"
#include "kernels/kernels.h"

namespace graft::cpu::GRAFT_ISA {
namespace {

struct Fold {
  int64_t copies, width, rows, tail;  // tail: rows left over, `channels` wide
};

Fold fold(int64_t rows, int64_t channels) {
  int64_t copies = 1;
  if (channels < 256) {
    while (copies < 64 && (copies * channels % 16 != 0 || copies * channels < 64)) copies *= 2;
    if (rows < 8 * copies) copies = 1;
  }
  return {copies, copies * channels, rows / copies, rows % copies};
}

// At least 65536 elements a chunk, and enough chunks for many cores.
int64_t chunk_count(const Fold& f) {
  const int64_t wanted = f.rows * f.width / 65536;
  return wanted < 1 ? 1 : (wanted > 64 ? 64 : wanted);
}

// The working memory of one call: doubles first, then floats.
struct Workspace {
  double* doubles;
  float* floats;
  Workspace(int64_t double_count, int64_t float_count) {
    doubles = static_cast<double*>(scratch(static_cast<size_t>(double_count) * sizeof(double) +
                                           static_cast<size_t>(float_count) * sizeof(float)));
    floats = reinterpret_cast<float*>(doubles + double_count);
  }
};

// center, scale and offset of the affine map, repeated over the folded width.
void fill_affine(float* table, const float* stats, const float* weight, const float* bias,
                 int64_t channels, const Fold& f) {
  float *center = table, *scale = table + f.width, *offset = table + 2 * f.width;
  for (int64_t j = 0; j < channels; ++j) {
    const float a = (weight ? weight[j] : 1.0f) * stats[channels + j];
    center[j] = stats[j];
    scale[j] = a;
    offset[j] = (bias ? bias[j] : 0.0f) - stats[2 * channels + j] * a;
  }
  for (int64_t j = channels; j < f.width; ++j) {
    center[j] = center[j - channels];
    scale[j] = scale[j - channels];
    offset[j] = offset[j - channels];
  }
}

template <Activation act, bool has_residual, class T>
void apply(T* y, const T* x, const T* residual, const float* table, int64_t channels,
           const Fold& f) {
  const float *center = table, *scale = table + f.width, *offset = table + 2 * f.width;
  const auto run = [&](int64_t at, int64_t rows, int64_t width) {
    affine_matrix<act, has_residual>(y + at, x + at, has_residual ? residual + at : nullptr, center,
                                     scale, offset, rows, width);
  };
  parallel_for(f.rows, f.width,
               [&](int64_t begin, int64_t end) { run(begin * f.width, end - begin, f.width); });
  run(f.rows * f.width, f.tail, channels);
}

template <Activation act, class T>
void apply(T* y, const T* x, const T* residual, const float* table, int64_t channels,
           const Fold& f) {
  if (residual != nullptr) {
    apply<act, true>(y, x, residual, table, channels, f);
  } else {
    apply<act, false>(y, x, residual, table, channels, f);
  }
}

template <class T>
ColumnGradRows<T> rows_of(const BatchNormGrad& p, int64_t at) {
  const auto from = [at](const auto& array) -> decltype(array.template as<T>()) {
    return array == nullptr ? nullptr : array.template as<T>() + at;
  };
  return {from(p.g), from(p.x), from(p.y), from(p.dz), from(p.dx)};
}

// The first pass: sums into totals (2, width) a chunk, the last one for the tail; dz and dx.
template <class T, Mask mask, bool sums, bool writes_dz, bool writes_dx>
void first_pass(const BatchNormGrad& p, const Fold& f, int64_t chunks, double* totals, float* work,
                const float* table, float high) {
  const float *center = table, *scale = table + f.width, *offset = table + 2 * f.width;
  const auto run = [&](int64_t chunk, int64_t at, int64_t rows, int64_t width) {
    double* total = totals + 2 * f.width * chunk;
    if constexpr (sums) {
      for (int64_t j = 0; j < 2 * f.width; ++j) total[j] = 0;
    }
    grad_matrix<mask, sums, writes_dz, writes_dx>(rows_of<T>(p, at), total, total + f.width,
                                                  work + 2 * f.width * chunk, center, scale, offset,
                                                  high, rows, width);
  };
  parallel_chunks(f.rows, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    run(chunk, begin * f.width, end - begin, f.width);
  });
  run(chunks, f.rows * f.width, f.tail, p.channels);
}

template <class T, Mask mask>
void first_pass(const BatchNormGrad& p, const Fold& f, int64_t chunks, double* totals, float* work,
                const float* table, float high, bool sums, bool writes_dz, bool writes_dx) {
  const auto call = [&](auto with_sums, auto with_dz, auto with_dx) {
    first_pass<T, mask, decltype(with_sums)::value, decltype(with_dz)::value,
               decltype(with_dx)::value>(p, f, chunks, totals, work, table, high);
  };
  using Yes = std::true_type;
  using No = std::false_type;
  const auto choose = [&](auto with_sums) {
    if (writes_dz && writes_dx) return call(with_sums, Yes{}, Yes{});
    if (writes_dz) return call(with_sums, Yes{}, No{});
    if (writes_dx) return call(with_sums, No{}, Yes{});
    if constexpr (decltype(with_sums)::value) call(with_sums, No{}, No{});
  };
  return sums ? choose(Yes{}) : choose(No{});
}

template <class T, Mask mask>
void second_pass(const BatchNormGrad& p, const Fold& f, const float* table, float high) {
  const float *center = table, *scale = table + f.width, *offset = table + 2 * f.width;
  const float *slope = table + 3 * f.width, *constant = table + 4 * f.width;
  parallel_for(f.rows, f.width, [&](int64_t begin, int64_t end) {
    center_grad_matrix<mask>(rows_of<T>(p, begin * f.width), center, scale, offset, slope, constant,
                             high, end - begin, f.width);
  });
  center_grad_matrix<mask>(rows_of<T>(p, f.rows * f.width), center, scale, offset, slope, constant,
                           high, f.tail, p.channels);
}

template <class T>
void statistics(float* stats, float* running_mean, float* running_var, const T* x, int64_t rows,
                int64_t channels, float momentum, float epsilon) {
  const Fold f = fold(rows, channels);
  const int64_t chunks = f.rows < chunk_count(f) ? f.rows : chunk_count(f);
  const Workspace w(2 * channels + 2 * f.width * chunks, 3 * f.width * chunks);
  double *mean = w.doubles, *m2 = mean + channels, *partial = m2 + channels;
  parallel_chunks(f.rows, chunks, [&](int64_t chunk, int64_t begin, int64_t end) {
    double* own = partial + 2 * f.width * chunk;
    column_moments(own, own + f.width, w.floats + 3 * f.width * chunk, x + begin * f.width,
                   end - begin, f.width);
  });

  // All partial means first, then the deviations from the common one.
  const T* tail = x + f.rows * f.width;
  for (int64_t j = 0; j < channels; ++j) mean[j] = m2[j] = 0;
  const auto each_part = [&](auto use) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk) {
      const int64_t n = f.rows * (chunk + 1) / chunks - f.rows * chunk / chunks;
      for (int64_t copy = 0; copy < f.copies; ++copy) {
        const double* own = partial + 2 * f.width * chunk + copy * channels;
        use(static_cast<double>(n), own, own + f.width);
      }
    }
  };
  each_part([&](double n, const double* part, const double*) {
    for (int64_t j = 0; j < channels; ++j) mean[j] += n * part[j];
  });
  for (int64_t r = 0; r < f.tail; ++r) {
    for (int64_t j = 0; j < channels; ++j) mean[j] += static_cast<float>(tail[r * channels + j]);
  }
  const double count = static_cast<double>(rows);
  for (int64_t j = 0; j < channels; ++j) mean[j] /= count;
  each_part([&](double n, const double* part, const double* part_m2) {
    for (int64_t j = 0; j < channels; ++j) {
      const double delta = part[j] - mean[j];
      m2[j] += part_m2[j] + n * delta * delta;
    }
  });
  for (int64_t r = 0; r < f.tail; ++r) {
    for (int64_t j = 0; j < channels; ++j) {
      const double delta = static_cast<float>(tail[r * channels + j]) - mean[j];
      m2[j] += delta * delta;
    }
  }

  for (int64_t j = 0; j < channels; ++j) {
    const double square = m2[j] < 0 ? 0.0 : m2[j];
    stats[j] = static_cast<float>(mean[j]);
    stats[channels + j] =
        static_cast<float>(1 / std::sqrt(square / count + static_cast<double>(epsilon)));
    stats[2 * channels + j] = static_cast<float>(mean[j] - static_cast<double>(stats[j]));
    const double keep = 1 - static_cast<double>(momentum);
    running_mean[j] = static_cast<float>(keep * running_mean[j] + momentum * mean[j]);
    running_var[j] = static_cast<float>(keep * running_var[j] + momentum * (square / (count - 1)));
  }
}

template <class T>
void grad(const BatchNormGrad& args) {
  BatchNormGrad p = args;
  const int64_t c = p.channels;
  const Fold f = fold(p.rows, c);
  const int64_t chunks = chunk_count(f);
  const bool active = p.activation != Activation::none;
  const Mask mask = !active ? Mask::none : (p.y != nullptr ? Mask::from_y : Mask::from_x);
  const float high = p.activation == Activation::relu6 ? 6.0f : __builtin_inff();
  const bool two_passes = p.batch_statistics && p.dx != nullptr;
  const bool sums = two_passes || p.dweight != nullptr || p.dbias != nullptr;

  const Workspace w(2 * c + 2 * f.width * (chunks + 1), 5 * f.width + 2 * f.width * (chunks + 1));
  double *sum = w.doubles, *product = sum + c, *totals = product + c;
  float *table = w.floats, *work = table + 5 * f.width;
  fill_affine(table, p.stats, p.weight, p.bias, c, f);

  // Frozen and without gradients of weight and bias, this pass is all there is.
  const bool writes_dz = p.dz != nullptr, writes_dx = p.dx != nullptr && !two_passes;
  const auto run = [&](auto tag) {
    first_pass<T, decltype(tag)::value>(p, f, chunks, totals, work, table, high, sums, writes_dz,
                                        writes_dx);
  };
  if (mask == Mask::none) {
    run(std::integral_constant<Mask, Mask::none>{});
  } else if (mask == Mask::from_x) {
    run(std::integral_constant<Mask, Mask::from_x>{});
  } else {
    run(std::integral_constant<Mask, Mask::from_y>{});
  }
  if (!sums) return;

  for (int64_t j = 0; j < c; ++j) sum[j] = product[j] = 0;
  const int64_t parts = f.rows > 0 ? chunks : 0;
  for (int64_t part = 0; part <= parts; ++part) {
    // The tail's sums stand behind the chunks' and are one copy wide.
    const bool tail = part == parts;
    const double* total = totals + 2 * f.width * (tail ? chunks : part);
    for (int64_t copy = 0; copy < (tail ? 1 : f.copies); ++copy) {
      for (int64_t j = 0; j < c; ++j) {
        sum[j] += total[copy * c + j];
        product[j] += total[f.width + copy * c + j];
      }
    }
  }
  const double inverse = 1 / static_cast<double>(p.rows);
  float *slope = table + 3 * f.width, *constant = table + 4 * f.width;
  for (int64_t j = 0; j < c; ++j) {
    const double invstd = p.stats[c + j], rest = p.stats[2 * c + j];
    const double dweight = (product[j] - rest * sum[j]) * invstd;
    if (p.dbias != nullptr) p.dbias[j] = static_cast<float>(sum[j]);
    if (p.dweight != nullptr) p.dweight[j] = static_cast<float>(dweight);
    const double scale = table[f.width + j], tilt = scale * invstd * dweight * inverse;
    slope[j] = static_cast<float>(tilt);
    constant[j] = static_cast<float>(scale * sum[j] * inverse - rest * tilt);
  }
  if (!two_passes) return;
  for (int64_t j = c; j < f.width; ++j) {
    slope[j] = slope[j - c];
    constant[j] = constant[j - c];
  }
  if (p.dz != nullptr) {
    p.g = ConstReals(p.dz);
    second_pass<T, Mask::none>(p, f, table, high);
  } else if (mask == Mask::none) {
    second_pass<T, Mask::none>(p, f, table, high);
  } else if (mask == Mask::from_x) {
    second_pass<T, Mask::from_x>(p, f, table, high);
  } else {
    second_pass<T, Mask::from_y>(p, f, table, high);
  }
}

}  // namespace

void batch_norm_statistics(float* stats, float* running_mean, float* running_var, ConstReals x,
                           int64_t rows, int64_t channels, float momentum, float epsilon) {
  visit_real(x.dtype, [&]<class T>(T) {
    statistics(stats, running_mean, running_var, x.as<T>(), rows, channels, momentum, epsilon);
  });
}

void batch_norm_frozen_statistics(float* stats, const float* mean, const float* variance,
                                  int64_t channels, float epsilon) {
  for (int64_t j = 0; j < channels; ++j) {
    stats[j] = mean[j];
    stats[channels + j] = 1 / std::sqrt(variance[j] + epsilon);
    stats[2 * channels + j] = 0;
  }
}

void batch_norm_apply(Reals y, ConstReals x, ConstReals residual, const float* stats,
                      const float* weight, const float* bias, Activation activation, int64_t rows,
                      int64_t channels) {
  const Fold f = fold(rows, channels);
  const Workspace w(0, 3 * f.width);
  fill_affine(w.floats, stats, weight, bias, channels, f);
  const auto run = [&]<Activation act>(std::integral_constant<Activation, act>) {
    visit_real(y.dtype, [&]<class T>(T) {
      apply<act>(y.as<T>(), x.as<T>(), residual.as<T>(), w.floats, channels, f);
    });
  };
  switch (activation) {
    case Activation::none:
      return run(std::integral_constant<Activation, Activation::none>{});
    case Activation::relu:
      return run(std::integral_constant<Activation, Activation::relu>{});
    case Activation::relu6:
      return run(std::integral_constant<Activation, Activation::relu6>{});
  }
}

void batch_norm_grad(const BatchNormGrad& args) {
  visit_real(args.g.dtype, [&]<class T>(T) { grad<T>(args); });
}

}  // namespace graft::cpu::GRAFT_ISA
