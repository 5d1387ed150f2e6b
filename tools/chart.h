// Curves over a logarithmic axis: as an SVG picture and as text for a terminal.
#pragma once

#include <string>
#include <utility>
#include <vector>

namespace graft {

struct Chart {
  std::string title, x_title, y_title;
  std::vector<double> x;                              // positive, ascending
  std::vector<double> y;                              // the curve
  std::vector<double> dots;                           // further values at x, or empty
  std::vector<std::pair<std::string, double>> marks;  // names of places on the x axis
  // Further curves over the same x, by name; in text their points are their names' first letters.
  std::vector<std::pair<std::string, std::vector<double>>> others;
};

std::string to_svg(const Chart& chart);
// `width` by `height` characters, axes included.
std::string to_text(const Chart& chart, size_t width = 72, size_t height = 16);

}  // namespace graft
