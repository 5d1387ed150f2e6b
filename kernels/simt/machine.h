// The simulated multiprocessor: runs the blocks of a grid one after another, each thread of a block
// as a fiber, in an order that can be chosen; barriers and warp collectives with their rules
// checked.
//
// Everything here that kernels call is compiled without instrumentation, also in the build with the
// race detector.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <source_location>
#include <string>

#include "kernels/simt/vector_types.h"

namespace graft::simt {

constexpr int kWarpSize = 32;
constexpr unsigned kMostThreads = 1024;
constexpr size_t kStaticSharedBytes = size_t{48} << 10, kSharedBytes = size_t{227} << 10;
constexpr size_t kExchangeBytes = 64;  // largest value of a warp collective

// Who is running: what threadIdx and its kin read. Lives on the thread's own stack.
struct Thread {
  uint3 thread{}, block{};
  dim3 block_size, grid_size;
  unsigned index = 0;   // within the block, x fastest
  unsigned inside = 0;  // calls of the simulator's own functions under way
  unsigned lane() const { return index % kWarpSize; }
  unsigned warp() const { return index / kWarpSize; }
};
extern Thread* running;  // null between threads
// Not instrumented by the race detector's build: these functions touch the simulator's own memory.
#define GRAFT_SIMT_PLAIN __attribute__((no_sanitize_thread)) inline
GRAFT_SIMT_PLAIN const Thread& here() { return *running; }
// Whether a kernel is running, that is, whether the caller is device code.
GRAFT_SIMT_PLAIN bool in_kernel() { return running != nullptr; }
// ... and not in the simulator's own functions, which may call a copy of the standard library's
// that the linker took from a kernel's file.
GRAFT_SIMT_PLAIN bool in_kernel_code() { return in_kernel() && running->inside == 0; }

struct Launch {
  std::string op;  // for messages
  dim3 grid, block;
  size_t dynamic_shared_bytes = 0;
  // One thread's work: invoke(parameters.get()).
  void (*invoke)(const void* parameters) = nullptr;
  std::shared_ptr<const void> parameters;
  const void* kernel = nullptr;     // whose cudaFuncSetAttribute counts
  bool more_shared_memory = false;  // asked for with it; set by enqueue_launch()
};
// Runs a whole grid. A violated rule ends it and becomes the device's sticky error (runtime.h).
void run_grid(const Launch& launch);

// Ends the running grid because device code broke a rule. By value: the frames of an abandoned
// thread are never unwound, so nothing there may own memory.
[[noreturn]] void violation(std::string what);
[[noreturn]] void misaligned(size_t bytes);
[[noreturn]] void bad_width(const char* shuffle, int width);
// "block (1, 0, 0) thread (32, 0, 0)": where we are.
std::string position();

using Where = std::source_location;

// All threads of the block meet; gives the sum, the conjunction and the disjunction of `value`.
struct BarrierResult {
  int count;
  bool all, any;
};
BarrierResult barrier(bool value, const Where& where);

// The lanes of `mask` meet, each with `bytes` bytes. Gives what every lane brought, kExchangeBytes
// apart, until end_exchange().
struct Exchange;
Exchange* begin_exchange(const char* name, unsigned mask, const void* mine, size_t bytes,
                         const Where& where);
const unsigned char* brought_by(const Exchange* exchange, unsigned lane);
void end_exchange(Exchange* exchange);
// The lanes of `mask` meet and see each other's memory.
void warp_barrier(unsigned mask, const Where& where);

// The block's shared variable that `key` names, made at its first use in the block and filled with
// NaN patterns.
void* shared_variable(const void* key, size_t bytes, size_t alignment);
void* dynamic_shared();

// cp.async: copies to shared memory that happen only when they are waited for. Until then the
// target holds NaN patterns. A copy of no bytes from `source` fills with zeros.
void copy_async(void* target, const void* source, size_t bytes, size_t source_bytes);
void commit_copies();
// Until at most `groups` of this thread's committed groups are still under way.
void wait_copies(size_t groups);

// The order in which blocks, and threads within a block, take their turns; the seed also draws the
// order between streams. A kernel that synchronises as it should gives the same result in every
// order.
enum class Order { forward, reverse, random };
void set_order(Order order, uint64_t seed);

// What the race detector knows of the running thread: accesses of two threads are ordered when a
// barrier that both passed lies between them.
struct Moment {
  uint32_t run = 0;        // serial number of the block's run; never repeats
  uint32_t first_run = 0;  // of the same launch
  uint32_t block_epoch = 0, warp_epoch = 0;
  uint32_t thread = 0;
};
extern Moment moment;
// The memory of the running block's shared variables and of the running thread's stack, the latter
// null between threads. Variables, because the detector asks at every load.
struct Range {
  const char *begin, *end;
  bool holds(const void* p) const { return p >= begin && p < end; }
};
extern Range shared_memory, stack_memory;
// Whether all of it lies in one shared variable of the running block, or in its dynamic part.
bool shared_owns(const void* data, size_t bytes);

}  // namespace graft::simt
