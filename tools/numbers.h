// Parts and gains in per cent, as the experiments' tables show them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "kernels/error.h"
#include "tools/progress.h"
#include "transfer/measure/statistics.h"

namespace graft {

inline std::string percent(double part) { return fixed(part * 100, 1); }

// "+3.2 (-0.4 to +6.8)"
inline std::string points(const Interval& gain) {
  const auto sign = [](double x) { return (x < 0 ? "" : "+") + percent(x); };
  return text(sign(gain.value), " (", sign(gain.low), " to ", sign(gain.high), ")");
}

inline nlohmann::ordered_json as_json(const Interval& gain) {
  return {{"value", gain.value}, {"low", gain.low}, {"high", gain.high}};
}

}  // namespace graft
