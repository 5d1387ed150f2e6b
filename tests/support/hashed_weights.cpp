#include "tests/support/hashed_weights.h"

#include <cmath>

namespace graft::test {
namespace {

bool ends_with(const std::string& name, const std::string& suffix) {
  return name.size() >= suffix.size() &&
         name.compare(name.size() - suffix.size(), suffix.size(), suffix) == 0;
}

double scale_of(const Shape& shape) {
  const int64_t fan_in = numel_of(shape) / shape[0];
  return std::sqrt(3.0) * std::sqrt((shape.size() == 4 ? 2.0 : 1.0) / static_cast<double>(fan_in));
}

}  // namespace

std::vector<double> hashed(const std::string& name, int64_t count) {
  uint32_t seed = 0x811C9DC5u;
  for (const char c : name) seed = (seed ^ static_cast<uint8_t>(c)) * 0x01000193u;
  std::vector<double> values(static_cast<size_t>(count));
  for (size_t i = 0; i < values.size(); ++i) {
    uint32_t x = seed + static_cast<uint32_t>(i) * 0x9E3779B9u;
    x = (x ^ (x >> 16)) * 0x85EBCA6Bu;
    x = (x ^ (x >> 13)) * 0xC2B2AE35u;
    x ^= x >> 16;
    values[i] = static_cast<double>(x >> 8) * 0x1p-23 - 1.0;
  }
  return values;
}

void fill_with_hashed_weights(Module& module, const std::map<std::string, double>& damped) {
  StateDict state;
  for (const NamedTensor& entry : module.named_tensors()) {
    const Shape shape = file_shape(entry);
    if (entry.layout == FileLayout::counter) {
      state[entry.name] = Tensor::zeros({}, Dtype::i64);
      continue;
    }
    const std::vector<double> u = hashed(entry.name, numel_of(shape));
    double base = 0, factor = 0.2, last = 1;
    if (shape.size() > 1) {
      factor = scale_of(shape);
    } else if (ends_with(entry.name, ".weight") || ends_with(entry.name, "running_var")) {
      base = 1.0, factor = 0.25;
      for (const auto& [suffix, smaller] : damped) {
        if (ends_with(entry.name, suffix)) last = smaller;
      }
    }
    std::vector<float> values(u.size());
    for (size_t i = 0; i < u.size(); ++i)
      values[i] = static_cast<float>((base + factor * u[i]) * last);
    state[entry.name] = Tensor::of(values, shape);
  }
  module.load_strict(state, "hashed weights");
}

}  // namespace graft::test
