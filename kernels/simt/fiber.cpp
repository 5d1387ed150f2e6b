#include "kernels/simt/fiber.h"

#include <atomic>
#include <cstdint>
#include <sys/mman.h>
#include <unistd.h>

#include "kernels/error.h"

#ifndef __x86_64__
#error "the simulated device switches fibers with x86-64 instructions"
#endif

#ifdef __SANITIZE_ADDRESS__
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

// Pushes the registers that a call must keep (System V ABI), stores the stack pointer at *from,
// and continues where the stack `to` was left.
asm(R"(
.text
.globl graft_simt_switch
.type graft_simt_switch, @function
graft_simt_switch:
  pushq %rbp
  pushq %rbx
  pushq %r12
  pushq %r13
  pushq %r14
  pushq %r15
  movq %rsp, (%rdi)
  movq %rsi, %rsp
  popq %r15
  popq %r14
  popq %r13
  popq %r12
  popq %rbx
  popq %rbp
  ret
.size graft_simt_switch, .-graft_simt_switch
)");
extern "C" void graft_simt_switch(void** from, void* to);

namespace graft::simt {
namespace {

size_t guard_bytes() { return static_cast<size_t>(sysconf(_SC_PAGESIZE)); }

constexpr size_t kPlaces = 16;

thread_local Fiber* starting = nullptr;

}  // namespace

Fiber::Fiber() {
  const size_t guard = guard_bytes();
  void* block = mmap(nullptr, kStackBytes + guard, PROT_READ | PROT_WRITE,
                     MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  GRAFT_CHECK(block != MAP_FAILED, "simulated device: no memory for a thread's stack");
  mprotect(block, guard, PROT_NONE);
  memory_ = static_cast<char*>(block) + guard;
  // Stacks that all begin at the same place of a page would share few lines of the cache.
  static std::atomic<size_t> made{0};
  top_ = memory_ + kStackBytes - kReserved - made++ % kPlaces * kReserved;
}

Fiber::~Fiber() {
  const size_t guard = guard_bytes();
  munmap(memory_ - guard, kStackBytes + guard);
}

void Fiber::start(Entry entry, void* argument) {
#ifdef __SANITIZE_ADDRESS__
  // An abandoned run leaves its frames poisoned.
  if (!done_) __asan_unpoison_memory_region(memory_, kStackBytes);
  fake_stack_ = nullptr;
#endif
  entry_ = entry;
  argument_ = argument;
  done_ = false;
  // The frame that graft_simt_switch pops: six registers and the address to return to. At that
  // address the stack must be 8 off a multiple of 16, as after a call.
  auto* top = reinterpret_cast<void**>(top_) - 1;
  *top = nullptr;
  *--top = reinterpret_cast<void*>(+[] { run(starting); });
  stack_pointer_ = top - 6;
}

void Fiber::run(Fiber* fiber) {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(nullptr, &fiber->host_stack_, &fiber->host_stack_bytes_);
#endif
  fiber->entry_(fiber->argument_);
  fiber->done_ = true;
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(nullptr, fiber->host_stack_, fiber->host_stack_bytes_);
#endif
  graft_simt_switch(&fiber->stack_pointer_, fiber->host_pointer_);
  __builtin_unreachable();
}

bool Fiber::resume() {
  starting = this;
#ifdef __SANITIZE_ADDRESS__
  void* host_fake_stack = nullptr;
  __sanitizer_start_switch_fiber(&host_fake_stack, memory_, kStackBytes);
#endif
  graft_simt_switch(&host_pointer_, stack_pointer_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(host_fake_stack, nullptr, nullptr);
#endif
  return done_;
}

void Fiber::yield() {
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_start_switch_fiber(&fake_stack_, host_stack_, host_stack_bytes_);
#endif
  graft_simt_switch(&stack_pointer_, host_pointer_);
#ifdef __SANITIZE_ADDRESS__
  __sanitizer_finish_switch_fiber(fake_stack_, &host_stack_, &host_stack_bytes_);
#endif
}

}  // namespace graft::simt
