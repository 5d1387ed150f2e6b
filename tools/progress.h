// Progress on stderr: a bar that is redrawn on a terminal, plain lines elsewhere.
#pragma once

#include <chrono>
#include <string>

namespace graft {

class ProgressBar {
 public:
  ProgressBar();
  ~ProgressBar() { clear(); }
  ProgressBar(const ProgressBar&) = delete;
  ProgressBar& operator=(const ProgressBar&) = delete;

  // `part` in [0, 1]; `before` and `after` stand left and right of the bar. A terminal is redrawn
  // at most ten times a second, elsewhere a line is printed every half minute.
  void show(double part, const std::string& before, const std::string& after);
  // Takes the bar off the terminal.
  void clear();
  // A line of its own, above the bar.
  void line(const std::string& text);

 private:
  using Clock = std::chrono::steady_clock;
  bool terminal_;
  bool drawn_ = false;
  Clock::time_point last_;
};

// "4:05", "1:02:03"
std::string clock_time(double seconds);
// "0.867"; "71.3 images/s"
std::string fixed(double value, int digits);

}  // namespace graft
