#include "tools/chart.h"

#include <algorithm>
#include <cmath>

#include "kernels/error.h"
#include "tools/progress.h"

namespace graft {
namespace {

// What the axes show: all x, and y from its least to what leaves out a diverging end.
struct Frame {
  double x_low, x_high, y_low, y_high;  // x as logarithms
  explicit Frame(const Chart& chart) {
    GRAFT_CHECK(!chart.x.empty() && chart.x.size() == chart.y.size(),
                "chart: expected as many x as y, at least one, got ", chart.x.size(), " and ",
                chart.y.size());
    x_low = std::log10(chart.x.front());
    x_high = std::max(std::log10(chart.x.back()), x_low + 1e-6);
    y_low = *std::min_element(chart.y.begin(), chart.y.end());
    for (const double dot : chart.dots) y_low = std::min(y_low, dot);
    for (const auto& [name, curve] : chart.others) {
      GRAFT_CHECK(curve.size() == chart.x.size(), "chart: ", name, " has ", curve.size(),
                  " values over ", chart.x.size());
      y_low = std::min(y_low, *std::min_element(curve.begin(), curve.end()));
    }
    std::vector<double> sorted = chart.y;
    std::sort(sorted.begin(), sorted.end());
    y_high = std::min(sorted.back(), sorted[sorted.size() * 3 / 4] * 2 - y_low);
    for (const auto& [name, curve] : chart.others) {
      y_high = std::max(y_high, *std::max_element(curve.begin(), curve.end()));
    }
    const double room = std::max((y_high - y_low) * 0.05, 1e-6);
    y_low -= room;
    y_high += room;
  }
  double across(double x) const { return (std::log10(x) - x_low) / (x_high - x_low); }
  double up(double y) const { return std::clamp((y - y_low) / (y_high - y_low), 0.0, 1.0); }
};

std::string power_of_ten(int exponent) { return text("1e", exponent); }

std::string escaped(const std::string& raw) {
  std::string clean;
  for (const char c : raw) clean += c == '<' ? "&lt;" : c == '&' ? "&amp;" : std::string(1, c);
  return clean;
}

}  // namespace

std::string to_svg(const Chart& chart) {
  constexpr double kWidth = 720, kHeight = 420, kLeft = 64, kRight = 24, kTop = 44, kBottom = 52;
  const Frame frame(chart);
  const auto px = [&](double x) { return kLeft + frame.across(x) * (kWidth - kLeft - kRight); };
  const auto py = [&](double y) {
    return kHeight - kBottom - frame.up(y) * (kHeight - kTop - kBottom);
  };
  const auto at = [](double value) { return fixed(value, 1); };
  std::string svg = text(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 720 420\" width=\"720\" "
      "height=\"420\" "
      "font-family=\"sans-serif\" font-size=\"12\">\n"
      "<rect width=\"720\" height=\"420\" fill=\"white\"/>\n");
  const auto words = [&](double x, double y, const char* anchor, const std::string& content,
                         const std::string& more = "") {
    svg += text("<text x=\"", at(x), "\" y=\"", at(y), "\" text-anchor=\"", anchor, "\" ", more,
                ">", escaped(content), "</text>\n");
  };
  const auto line = [&](double x1, double y1, double x2, double y2, const char* style) {
    svg += text("<line x1=\"", at(x1), "\" y1=\"", at(y1), "\" x2=\"", at(x2), "\" y2=\"", at(y2),
                "\" ", style, "/>\n");
  };
  words(kWidth / 2, 22, "middle", chart.title, "font-size=\"15\"");
  words(kWidth / 2, kHeight - 12, "middle", chart.x_title);
  words(16, kHeight / 2, "middle", chart.y_title,
        text("transform=\"rotate(-90 16 ", at(kHeight / 2), ")\""));
  for (int e = static_cast<int>(std::ceil(frame.x_low - 1e-9));
       e <= static_cast<int>(std::floor(frame.x_high + 1e-9)); ++e) {
    const double x = px(std::pow(10.0, e));
    line(x, kTop, x, kHeight - kBottom, "stroke=\"#e4e4e4\"");
    words(x, kHeight - kBottom + 18, "middle", power_of_ten(e));
  }
  for (int i = 0; i <= 4; ++i) {
    const double y = frame.y_low + (frame.y_high - frame.y_low) * i / 4;
    line(kLeft, py(y), kWidth - kRight, py(y), "stroke=\"#e4e4e4\"");
    words(kLeft - 6, py(y) + 4, "end", fixed(y, 2));
  }
  for (size_t i = 0; i < chart.dots.size(); ++i) {
    if (!std::isfinite(chart.dots[i]) || chart.dots[i] > frame.y_high) continue;
    svg += text("<circle cx=\"", at(px(chart.x[i])), "\" cy=\"", at(py(chart.dots[i])),
                "\" r=\"1.6\" fill=\"#b9c6d8\"/>\n");
  }
  svg += "<polyline fill=\"none\" stroke=\"#1f5fa8\" stroke-width=\"2\" points=\"";
  for (size_t i = 0; i < chart.x.size(); ++i) {
    svg += text(i ? " " : "", at(px(chart.x[i])), ",", at(py(chart.y[i])));
  }
  svg += "\"/>\n";
  double height = kTop + 12;
  static constexpr const char* kColours[] = {"#c0392b", "#2e8b57", "#8e5ea2", "#d68910"};
  for (size_t k = 0; k < chart.others.size(); ++k) {
    const auto& [name, curve] = chart.others[k];
    const char* colour = kColours[k % std::size(kColours)];
    svg += text("<polyline fill=\"none\" stroke=\"", colour, "\" stroke-width=\"2\" points=\"");
    for (size_t i = 0; i < chart.x.size(); ++i) {
      svg += text(i ? " " : "", at(px(chart.x[i])), ",", at(py(curve[i])));
    }
    svg += "\"/>\n";
    words(px(chart.x.back()) - 4, py(curve.back()) - 6, "end", name, text("fill=\"", colour, "\""));
  }
  for (const auto& [name, x] : chart.marks) {
    line(px(x), kTop, px(x), kHeight - kBottom, "stroke=\"#c0392b\" stroke-dasharray=\"4 3\"");
    const bool right = frame.across(x) > 0.7;
    words(px(x) + (right ? -4 : 4), height, right ? "end" : "start", name, "fill=\"#c0392b\"");
    height += 16;
  }
  line(kLeft, kHeight - kBottom, kWidth - kRight, kHeight - kBottom, "stroke=\"black\"");
  line(kLeft, kTop, kLeft, kHeight - kBottom, "stroke=\"black\"");
  return svg + "</svg>\n";
}

std::string to_text(const Chart& chart, size_t width, size_t height) {
  constexpr size_t kLabel = 8;
  const Frame frame(chart);
  const size_t columns = width - kLabel - 1, lines = height - 2;
  std::vector<std::string> grid(lines, std::string(columns, ' '));
  const auto column = [&](double x) {
    return static_cast<size_t>(
        std::lround(std::clamp(frame.across(x), 0.0, 1.0) * static_cast<double>(columns - 1)));
  };
  for (const auto& [name, x] : chart.marks) {
    for (std::string& row : grid) row[column(x)] = ':';
  }
  const auto plot = [&](const std::vector<double>& curve, char sign) {
    for (size_t i = 0; i < chart.x.size(); ++i) {
      const auto up =
          static_cast<size_t>(std::lround(frame.up(curve[i]) * static_cast<double>(lines - 1)));
      grid[lines - 1 - up][column(chart.x[i])] = sign;
    }
  };
  for (const auto& [name, curve] : chart.others) plot(curve, name.at(0));
  plot(chart.y, '*');
  std::string all;
  for (size_t r = 0; r < lines; ++r) {
    std::string label;
    if (r == 0) label = fixed(frame.y_high, 2);
    if (r == lines - 1) label = fixed(frame.y_low, 2);
    all += std::string(kLabel - std::min(kLabel, label.size()), ' ') + label + "|" + grid[r] + "\n";
  }
  all += std::string(kLabel, ' ') + "+" + std::string(columns, '-') + "\n";
  std::string axis(width, ' ');
  for (int e = static_cast<int>(std::ceil(frame.x_low - 1e-9));
       e <= static_cast<int>(std::floor(frame.x_high + 1e-9)); ++e) {
    const std::string label = power_of_ten(e);
    const size_t at = std::min(kLabel + 1 + column(std::pow(10.0, e)), width - label.size());
    axis.replace(at, label.size(), label);
  }
  return all + axis + "\n";
}

}  // namespace graft
