#include "tools/progress.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <sys/ioctl.h>
#include <unistd.h>

namespace graft {
namespace {

bool is_terminal() {
  const char* term = std::getenv("TERM");
  return isatty(STDERR_FILENO) != 0 && term != nullptr && std::strcmp(term, "dumb") != 0;
}

size_t terminal_width() {
  winsize size{};
  const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0;
  return known ? size.ws_col : 80;
}

}  // namespace

ProgressBar::ProgressBar() : terminal_(is_terminal()), last_(Clock::now()) {}

void ProgressBar::show(double part, const std::string& before, const std::string& after) {
  const Clock::time_point now = Clock::now();
  const double pause = terminal_ ? 0.1 : 30;
  const bool first = terminal_ && !drawn_;
  if (!first && std::chrono::duration<double>(now - last_).count() < pause) return;
  last_ = now;
  const double share = std::isfinite(part) ? std::clamp(part, 0.0, 1.0) : 0.0;
  if (!terminal_) {
    std::fprintf(stderr, "%s %3.0f%% %s\n", before.c_str(), share * 100, after.c_str());
    return;
  }
  const size_t width = terminal_width(), words = before.size() + after.size() + 5;
  const size_t room = width > words + 8 ? std::min<size_t>(width - words, 40) : 0;
  const size_t filled = static_cast<size_t>(share * static_cast<double>(room));
  std::string bar;
  for (size_t i = 0; i < room; ++i) bar += i < filled ? "━" : "─";
  std::string text = before + " " + bar + " " + after;
  if (room == 0) text = (before + " " + after).substr(0, width - 1);
  std::fprintf(stderr, "\r\033[K%s", text.c_str());
  std::fflush(stderr);
  drawn_ = true;
}

void ProgressBar::clear() {
  if (!drawn_) return;
  std::fprintf(stderr, "\r\033[K");
  std::fflush(stderr);
  drawn_ = false;
}

void ProgressBar::line(const std::string& text) {
  clear();
  std::fprintf(stderr, "%s\n", text.c_str());
}

std::string clock_time(double seconds) {
  const long whole = std::lround(std::max(seconds, 0.0));
  char buffer[40];
  if (whole >= 3600) {
    std::snprintf(buffer, sizeof buffer, "%ld:%02ld:%02ld", whole / 3600, whole / 60 % 60,
                  whole % 60);
  } else {
    std::snprintf(buffer, sizeof buffer, "%ld:%02ld", whole / 60, whole % 60);
  }
  return buffer;
}

std::string fixed(double value, int digits) {
  char buffer[64];
  std::snprintf(buffer, sizeof buffer, "%.*f", digits, value);
  return buffer;
}

}  // namespace graft
