// Fibers: the simulated GPU threads of a block take turns on one host thread. A switch is a dozen
// instructions (swapcontext costs ten times as much, because it saves the signal mask).
#pragma once

#include <cstddef>

namespace graft::simt {

// One stack with a guard page below it, and the registers of whoever is not running.
class Fiber {
 public:
  using Entry = void (*)(void* argument);

  Fiber();
  ~Fiber();
  Fiber(const Fiber&) = delete;
  Fiber& operator=(const Fiber&) = delete;

  // Makes the next resume() call entry(argument) on a fresh stack. A fiber whose entry has not
  // returned is abandoned: destructors of its frames do not run.
  void start(Entry entry, void* argument);
  // From the host: runs the fiber until it yields or its entry returns; true when it returned.
  bool resume();
  // From the fiber: back to resume().
  void yield();

  // The stack's memory. The kReserved bytes at reserved() are never used as stack, but are the
  // owner's.
  static constexpr size_t kStackBytes = size_t{128} << 10, kReserved = 256;
  char* memory() const { return memory_; }
  char* reserved() const { return top_; }

 private:
  static void run(Fiber* fiber);

  char *memory_ = nullptr, *top_ = nullptr;
  void* stack_pointer_ = nullptr;  // of the fiber while it waits
  void* host_pointer_ = nullptr;   // of the host while the fiber runs
  Entry entry_ = nullptr;
  void* argument_ = nullptr;
  bool done_ = true;
  // What AddressSanitizer wants to know about stacks.
  void* fake_stack_ = nullptr;
  const void* host_stack_ = nullptr;
  size_t host_stack_bytes_ = 0;
};

}  // namespace graft::simt
