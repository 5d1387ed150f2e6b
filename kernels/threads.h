// How the CPU threads of a program wait for work.
#pragma once

namespace graft::cpu {

// libgomp's waiting threads spin for milliseconds before they sleep, and starve whatever else runs
// on the machine. It reads its settings before main(), so this starts the program once more with a
// short spin (a third of a millisecond); call it first in main(). Does nothing where the user has
// set OMP_WAIT_POLICY or GOMP_SPINCOUNT, and carries on as before where /proc is not there.
void sleep_when_idle(char** argv);

}  // namespace graft::cpu
