// Ctrl-C and SIGTERM for commands that save what they have. The first signal asks for a stop, which
// the command makes at the next safe point; the second ends the process at once.
#pragma once

namespace graft {

void catch_stop_signals();
// The signal that asked for a stop; 0: none did.
int stop_signal();
// The exit code of a command that stopped with everything saved: 130 after Ctrl-C, 143 after
// SIGTERM.
int stopped_exit_code();

}  // namespace graft
