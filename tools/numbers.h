// Parts, gains and intervals as the program prints them.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

#include "kernels/error.h"
#include "tools/progress.h"
#include "transfer/measure/statistics.h"

namespace graft {

// "81.5" for a table, "81.5 %" for a sentence.
inline std::string in_percent(double part) { return fixed(part * 100, 1); }
inline std::string percent(double part) { return in_percent(part) + " %"; }

// "81.5 (78.0 to 84.6)"
inline std::string in_percent(const Interval& part) {
  return text(in_percent(part.value), " (", in_percent(part.low), " to ", in_percent(part.high),
              ")");
}

// Differences, in points of a hundred: "+3.2", "+3.2 (-0.4 to +6.8)".
inline std::string points(double gain) { return (gain < 0 ? "" : "+") + in_percent(gain); }
inline std::string points(const Interval& gain) {
  return text(points(gain.value), " (", points(gain.low), " to ", points(gain.high), ")");
}

inline nlohmann::ordered_json json_of(const Interval& interval) {
  return {{"value", interval.value}, {"low", interval.low}, {"high", interval.high}};
}

}  // namespace graft
