#include "tools/stop_signal.h"

#include <csignal>
#include <unistd.h>

namespace graft {
namespace {

volatile std::sig_atomic_t pending_signal = 0;

extern "C" void on_stop_signal(int signal) {
  if (pending_signal != 0) _exit(128 + signal);
  pending_signal = signal;
}

}  // namespace

void catch_stop_signals() {
  struct sigaction action {};
  action.sa_handler = on_stop_signal;
  sigaction(SIGINT, &action, nullptr);
  sigaction(SIGTERM, &action, nullptr);
}

int stop_signal() { return static_cast<int>(pending_signal); }

int stopped_exit_code() { return 128 + (pending_signal != 0 ? stop_signal() : SIGINT); }

}  // namespace graft
