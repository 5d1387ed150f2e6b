// The race and uninitialised-read detector. The kernels' files are compiled with -fsanitize=thread
// but linked without its library: every load and store of a kernel calls a function of this file.
//
// For every four bytes of device and shared memory a Note says who wrote and who read them last;
// for every byte where smaller types were moved. Two accesses to the same bytes by different
// threads, at least one a write and not both atomic, race
//   in one block    unless a __syncthreads() lies between them, or a __syncwarp() of their warp;
//   in two blocks   of one launch: always.
// The rule does not depend on the order in which the simulator runs the threads, so one run tells.
// Reading bytes that nobody has written since they were allocated (shared memory: since the block
// began) is reported too, and so is an address that is not the device's.
#include <algorithm>
#include <array>
#include <cstdint>
#include <cstring>
#include <sys/mman.h>
#include <unistd.h>
#include <unordered_map>
#include <vector>

#include "kernels/error.h"
#include "kernels/simt/machine.h"
#include "kernels/simt/memory.h"

namespace graft::simt {

#ifndef GRAFT_SIMT_DETECT

bool detector_present() { return false; }
void note_written(const void*, size_t) {}
void note_copied(void*, const void*, size_t) {}
bool note_taken(const void*, size_t) { return true; }
void note_fresh(const void*, size_t) {}
void note_pending(const void*, size_t) {}
void note_arrived(const void*, const void*, size_t, size_t) {}
void note_atomic(const void*, size_t) {}

#else

namespace {

struct Note {
  uint32_t write_run, read_run;  // block runs (Moment::run); 0: nobody yet
  uint32_t write_epoch, read_epoch;
  uint32_t write_warp_epoch, read_warp_epoch;
  uint16_t write_thread, read_thread;
  uint8_t written;  // one bit a byte
  bool split;       // part of the four bytes was accessed: each has its own note now
  bool write_atomic;
  bool read_by_blocks;   // more than one block of the launch read it
  bool read_by_threads;  // more than one thread of the epoch read it, at the same warp epoch
  bool read_by_warps;    // threads of more than one warp
  bool pending;          // an asynchronous copy will write here
  bool read_atomic;
};

constexpr uint32_t kWarp = 32;

// Notes by page of 4096, made at the first touch. Each is for 2^shift bytes.
class Notes {
 public:
  explicit Notes(int shift) : shift_(shift) {}
  Note& at(uintptr_t address) {
    const uintptr_t cell = address >> shift_, page = cell >> kPageBits;
    Recent& recent = recent_[page % kRecent];
    if (page != recent.page) {
      std::vector<Note>& found = pages_[page];
      if (found.empty()) found.resize(size_t{1} << kPageBits);
      recent = {page, found.data()};
    }
    return recent.notes[cell & ((uintptr_t{1} << kPageBits) - 1)];
  }

 private:
  static constexpr int kPageBits = 12;
  static constexpr size_t kRecent = 64;
  struct Recent {
    uintptr_t page = ~uintptr_t{0};
    Note* notes = nullptr;
  };
  int shift_;
  std::unordered_map<uintptr_t, std::vector<Note> > pages_;
  std::array<Recent, kRecent> recent_;
};

Notes& word_notes() {
  static auto* one = new Notes(2);
  return *one;
}
Notes& byte_notes() {
  static auto* one = new Notes(0);
  return *one;
}

// Calls use(note, mask) for every note of a range; mask has a bit for every byte of it.
template <class Use>
void each_note(const void* data, size_t bytes, const Use& use) {
  auto begin = reinterpret_cast<uintptr_t>(data);
  const uintptr_t end = begin + bytes;
  while (begin < end) {
    const uintptr_t word = begin & ~uintptr_t{3}, last = std::min(word + 4, end);
    Note& note = word_notes().at(word);
    if (!note.split && last - begin < 4) {
      for (uintptr_t byte = 0; byte < 4; ++byte) byte_notes().at(word + byte) = note;
      note.split = true;
    }
    if (!note.split) {
      use(note, uint8_t{0xF});
    } else {
      for (uintptr_t byte = begin; byte < last; ++byte) {
        use(byte_notes().at(byte), static_cast<uint8_t>(1u << (byte & 3)));
      }
    }
    begin = last;
  }
}

// Where in the source, as file:line, from an address within the program.
std::string source_line(const void* address) {
  char program[4096];
  const ssize_t length = readlink("/proc/self/exe", program, sizeof program - 1);
  if (length <= 0) return "";
  program[length] = 0;
  // Position-independent programs are loaded at an offset, which is where their first page is.
  uintptr_t base = 0;
  if (FILE* maps = fopen("/proc/self/maps", "r")) {
    unsigned long begin = 0;
    if (fscanf(maps, "%lx", &begin) == 1) base = begin;
    fclose(maps);
  }
  const std::string command = text("addr2line -ie '", program, "' ", std::hex,
                                   reinterpret_cast<uintptr_t>(address) - base - 1);
  std::string line;
  if (FILE* pipe = popen((command + " 2>/dev/null").c_str(), "r")) {
    char part[512];
    if (fgets(part, sizeof part, pipe) != nullptr) line = part;
    while (fgets(part, sizeof part, pipe) != nullptr) {
    }
    pclose(pipe);
  }
  while (!line.empty() && (line.back() == '\n' || line.back() == ' ')) line.pop_back();
  return line.empty() || line[0] == '?' ? "" : " at " + line;
}

// The launch (its first_run) that a report has ended: it is watched no longer. Making the message
// calls functions of the standard library, of which the linker may have kept a watched copy.
uint32_t reported_launch = 0;

[[noreturn]] __attribute__((noinline)) void report(const char* what, const void* data,
                                                   const void* code) {
  reported_launch = moment.first_run;
  violation(text("detector: ", what,
                 shared_memory.holds(data) ? " in shared memory"
                 : in_device_range(data)   ? " in device memory"
                                           : "",
                 source_line(code)));
}

// Whether an earlier access by `thread` at these epochs may run at the same time as ours.
bool unordered(uint32_t thread, uint32_t epoch, uint32_t warp_epoch, const Moment& now) {
  if (thread == now.thread || epoch != now.block_epoch) return false;
  return thread / kWarp != now.thread / kWarp || warp_epoch == now.warp_epoch;
}

void check_against_write(const Note& note, bool atomic, const Moment& now, const void* data,
                         const void* code, const char* both) {
  if (note.write_run < now.first_run || (atomic && note.write_atomic)) return;
  if (note.write_run != now.run) report("race between two blocks", data, code);
  if (unordered(note.write_thread, note.write_epoch, note.write_warp_epoch, now)) {
    report(both, data, code);
  }
}

void on_read(Note& note, uint8_t mask, bool atomic, const Moment& now, const void* data,
             const void* code) {
  if (note.pending) report("read before cp.async was waited for", data, code);
  if ((note.written & mask) != mask) report("read of what nobody has written", data, code);
  check_against_write(note, atomic, now, data, code,
                      "race: a read of what another thread writes, no barrier between,");
  if (note.read_run < now.first_run) {
    note.read_by_blocks = false;
  } else if (note.read_run != now.run) {
    note.read_by_blocks = true;
  }
  const bool same_epoch = note.read_run == now.run && note.read_epoch == now.block_epoch;
  if (!same_epoch) {
    note.read_by_threads = note.read_by_warps = false;
  } else if (note.read_thread / kWarp != now.thread / kWarp) {
    note.read_by_warps = true;
  } else if (note.read_warp_epoch != now.warp_epoch) {
    note.read_by_threads = false;
  } else if (note.read_thread != now.thread) {
    note.read_by_threads = true;
  }
  note.read_run = now.run;
  note.read_epoch = now.block_epoch;
  note.read_warp_epoch = now.warp_epoch;
  note.read_thread = static_cast<uint16_t>(now.thread);
  note.read_atomic = atomic;
}

void on_write(Note& note, uint8_t mask, bool atomic, const Moment& now, const void* data,
              const void* code) {
  if (note.pending) report("write where cp.async has not finished", data, code);
  check_against_write(note, atomic, now, data, code,
                      "race: two threads write the same place, no barrier between,");
  if (note.read_run >= now.first_run && !(atomic && note.read_atomic)) {
    if (note.read_run != now.run || note.read_by_blocks) {
      report("race between two blocks", data, code);
    }
    const bool same_epoch = note.read_epoch == now.block_epoch;
    if (same_epoch && (note.read_by_warps ||
                       unordered(note.read_thread, note.read_epoch, note.read_warp_epoch, now) ||
                       (note.read_by_threads && note.read_warp_epoch == now.warp_epoch))) {
      report("race: a write over what another thread reads, no barrier between,", data, code);
    }
  }
  note.write_run = now.run;
  note.write_epoch = now.block_epoch;
  note.write_warp_epoch = now.warp_epoch;
  note.write_thread = static_cast<uint16_t>(now.thread);
  note.write_atomic = atomic;
  note.written |= mask;
}

// The program's own constants: tables that kernels may read. Its variables begin behind them.
bool is_constant(const void* data) {
  extern const char program_begin __asm__("__executable_start");
  extern const char variables_begin __asm__("__data_start");
  const auto* p = static_cast<const char*>(data);
  return p >= &program_begin && p < &variables_begin;
}

enum class Kind { read, write };

void on_access(const void* data, size_t bytes, Kind kind, bool atomic, const void* code) {
  if (!in_kernel() || moment.first_run == reported_launch) return;
  const bool shared = shared_memory.holds(data);
  if (!shared && !in_device_range(data)) {
    if (stack_memory.holds(data) || (kind == Kind::read && is_constant(data))) return;
    report("an address that is not the device's", data, code);
  }
  if (shared ? !shared_owns(data, bytes) : !device_owns(data, bytes)) {
    report(shared ? "an address outside every variable" : "an address outside every block", data,
           code);
  }
  const Moment& now = moment;
  each_note(data, bytes, [&](Note& note, uint8_t mask) {
    if (kind == Kind::read || atomic) on_read(note, mask, atomic, now, data, code);
    if (kind == Kind::write || atomic) on_write(note, mask, atomic, now, data, code);
  });
}

// Most accesses are to the thread's own stack, or are the host's: nothing to watch.
bool is_private(const void* data) {
  return stack_memory.begin == nullptr || stack_memory.holds(data);
}

// An access that the compiler takes to be aligned to its size.
void on_aligned(const void* data, size_t bytes, Kind kind, const void* code) {
  if (is_private(data) || !in_kernel_code()) return;
  if (moment.first_run != reported_launch && reinterpret_cast<uintptr_t>(data) % bytes != 0) {
    report("a misaligned address", data, code);
  }
  on_access(data, bytes, kind, false, code);
}

void on_any(const void* data, size_t bytes, Kind kind, const void* code) {
  if (!is_private(data) && in_kernel_code()) on_access(data, bytes, kind, false, code);
}

}  // namespace

bool detector_present() { return true; }
bool note_taken(const void* data, size_t bytes) {
  bool whole = true;
  each_note(data, bytes,
            [&](Note& note, uint8_t mask) { whole = whole && (note.written & mask) == mask; });
  return whole;
}
void note_written(const void* data, size_t bytes) {
  each_note(data, bytes, [](Note& note, uint8_t mask) {
    note.written |= mask;
    note.write_run = note.read_run = 0;
  });
}
void note_copied(void* target, const void* source, size_t bytes) {
  const auto* from = static_cast<const char*>(source);
  auto* to = static_cast<char*>(target);
  const auto odd = (reinterpret_cast<uintptr_t>(from) | reinterpret_cast<uintptr_t>(to)) & 3;
  size_t step = 0;
  for (size_t i = 0; i < bytes; i += step) {
    step = odd == 0 && bytes - i >= 4 ? 4 : 1;
    uint8_t written = 0;
    each_note(from + i, step, [&](Note& note, uint8_t mask) { written |= note.written & mask; });
    if (step == 1 && written != 0) written = 0xF;
    each_note(to + i, step, [=](Note& note, uint8_t mask) {
      note.write_run = note.read_run = 0;
      note.written = static_cast<uint8_t>((note.written & ~mask) | (written & mask));
    });
  }
}
void note_fresh(const void* data, size_t bytes) {
  each_note(data, bytes, [](Note& note, uint8_t) { note = {}; });
}
void note_pending(const void* data, size_t bytes) {
  on_access(data, bytes, Kind::write, false, __builtin_return_address(0));
  each_note(data, bytes, [](Note& note, uint8_t) { note.pending = true; });
}
void note_arrived(const void* target, const void* source, size_t bytes, size_t source_bytes) {
  each_note(target, bytes, [](Note& note, uint8_t) { note.pending = false; });
  if (source_bytes > 0) {
    on_access(source, source_bytes, Kind::read, false, __builtin_return_address(0));
  }
  on_access(target, bytes, Kind::write, false, __builtin_return_address(0));
}
void note_atomic(const void* data, size_t bytes) {
  on_access(data, bytes, Kind::write, true, __builtin_return_address(0));
}

#endif

}  // namespace graft::simt

#ifdef GRAFT_SIMT_DETECT

// What the compiler calls. Names and signatures: GCC's tsan pass.
#define GRAFT_CODE __builtin_return_address(0)
extern "C" {
using graft::simt::Kind;
using graft::simt::on_aligned;
using graft::simt::on_any;

#define GRAFT_ACCESS(size)                                                                  \
  void __tsan_read##size(void* p) { on_aligned(p, size, Kind::read, GRAFT_CODE); }          \
  void __tsan_write##size(void* p) { on_aligned(p, size, Kind::write, GRAFT_CODE); }        \
  void __tsan_volatile_read##size(void* p) { on_aligned(p, size, Kind::read, GRAFT_CODE); } \
  void __tsan_volatile_write##size(void* p) { on_aligned(p, size, Kind::write, GRAFT_CODE); }
GRAFT_ACCESS(1)
GRAFT_ACCESS(2)
GRAFT_ACCESS(4)
GRAFT_ACCESS(8)
GRAFT_ACCESS(16)
#undef GRAFT_ACCESS
#define GRAFT_ACCESS(size)                                                               \
  void __tsan_unaligned_read##size(void* p) { on_any(p, size, Kind::read, GRAFT_CODE); } \
  void __tsan_unaligned_write##size(void* p) { on_any(p, size, Kind::write, GRAFT_CODE); }
GRAFT_ACCESS(2)
GRAFT_ACCESS(4)
GRAFT_ACCESS(8)
GRAFT_ACCESS(16)
#undef GRAFT_ACCESS
void __tsan_read_range(void* p, size_t n) { on_any(p, n, Kind::read, GRAFT_CODE); }
void __tsan_write_range(void* p, size_t n) { on_any(p, n, Kind::write, GRAFT_CODE); }
void __tsan_init() {}
void __tsan_func_entry(void*) {}
void __tsan_func_exit() {}
void __tsan_vptr_update(void**, void*) {}
void __tsan_vptr_read(void**) {}
// Host code in the kernels' files: reference counts.
int __tsan_atomic32_fetch_add(volatile int* at, int value, int) {
  return __atomic_fetch_add(at, value, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_fetch_sub(volatile int* at, int value, int) {
  return __atomic_fetch_sub(at, value, __ATOMIC_SEQ_CST);
}
int __tsan_atomic32_load(const volatile int* at, int) {
  return __atomic_load_n(at, __ATOMIC_SEQ_CST);
}
}
#endif
