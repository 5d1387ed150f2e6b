#include "kernels/simt/machine.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <numeric>
#include <random>
#include <vector>

#include "kernels/error.h"
#include "kernels/simt/fiber.h"
#include "kernels/simt/memory.h"
#include "kernels/simt/poison.h"
#include "kernels/simt/runtime.h"

namespace graft::simt {

Thread* running = nullptr;
Moment moment;
Range shared_memory{nullptr, nullptr}, stack_memory{nullptr, nullptr};

// A meeting of the lanes of one mask. Several can be under way in a warp, with disjoint masks.
struct Exchange {
  const char* name;
  unsigned mask, arrived = 0, left = 0;
  size_t bytes;
  Where where;
  alignas(16) unsigned char values[kWarpSize][kExchangeBytes];
};

namespace {

enum class State { fresh, ready, at_barrier, at_exchange, done };

struct Copy {
  char* target;
  const char* source;
  size_t bytes, source_bytes;
};

struct Slot {
  State state = State::fresh;
  std::unique_ptr<Fiber> fiber;
  Where where;
  bool value = false;        // brought to the barrier
  std::vector<Copy> copies;  // not waited for yet, oldest first
  std::vector<size_t> ends;  // of the committed groups among them
};

struct Variable {
  const void* key;
  char* data;
  size_t bytes;
};

// One block at a time; the callers in runtime.cpp hold the device's lock.
class Machine {
 public:
  Machine() : arena_(new (std::align_val_t{1024}) char[kArenaBytes]) {
    std::memset(arena_, 0xFF, kArenaBytes);
    shared_memory = {arena_, arena_ + kArenaBytes};
  }

  void run_grid(const Launch& launch);
  [[noreturn]] void violation(std::string what);

  BarrierResult barrier(bool value, const Where& where);
  Exchange* begin_exchange(const char* name, unsigned mask, const void* mine, size_t bytes,
                           const Where& where);
  void end_exchange(Exchange* exchange);
  void warp_barrier(unsigned mask, const Where& where);
  void* shared_variable(const void* key, size_t bytes, size_t alignment);
  char* dynamic_shared() const { return arena_; }

  void copy_async(void* target, const void* source, size_t bytes, size_t source_bytes);
  void commit_copies();
  void wait_copies(size_t groups);

  void set_order(Order order, uint64_t seed) {
    order_ = order;
    random_.seed(seed);
  }
  bool shared_owns(const char* data, size_t bytes) const;

 private:
  // Room for the red zones between variables.
  static constexpr size_t kArenaBytes = kSharedBytes + (size_t{64} << 10), kRedZone = 64;

  void run_block(uint3 block);
  void begin_slots(unsigned threads);
  void arrange(std::vector<unsigned>& indices);
  void make_ready(unsigned index);
  void run_thread(unsigned index);
  void release_barrier();
  std::string stuck() const;
  void begin_shared();
  void check_red_zones();

  const Launch* launch_ = nullptr;
  std::vector<Slot> slots_;
  std::vector<unsigned> ready_;  // taken from the front
  size_t next_ready_ = 0;
  std::vector<std::unique_ptr<Fiber>> idle_fibers_;
  std::vector<std::vector<std::unique_ptr<Exchange>>> exchanges_;  // by warp
  std::vector<std::unique_ptr<Exchange>> idle_exchanges_;
  std::vector<uint32_t> warp_epochs_;
  BarrierResult barrier_result_{};

  char* arena_;
  size_t arena_used_ = 0, static_bytes_ = 0, dirty_bytes_ = 0;
  std::vector<Variable> variables_;

  Order order_ = Order::forward;
  std::mt19937_64 random_;
  uint32_t last_run_ = 0;
  uint3 block_{};
  std::string problem_;
};

Machine& machine() {
  static auto* one = new Machine;
  return *one;
}

uint3 unravel(unsigned index, const dim3& sizes) {
  return {index % sizes.x, index / sizes.x % sizes.y, index / sizes.x / sizes.y};
}

// Prints as file:line. No string: an abandoned thread would not destroy it.
struct Place {
  const Where& where;
  friend std::ostream& operator<<(std::ostream& out, const Place& place) {
    return out << place.where.file_name() << ':' << place.where.line();
  }
};
Place place(const Where& where) { return {where}; }

// Mostly they are one literal.
bool same_text(const char* a, const char* b) { return a == b || std::strcmp(a, b) == 0; }

std::string name(const char* what, const uint3& at) {
  return text(what, " (", at.x, ", ", at.y, ", ", at.z, ")");
}

void Machine::arrange(std::vector<unsigned>& indices) {
  if (order_ == Order::reverse) std::reverse(indices.begin(), indices.end());
  if (order_ == Order::random) std::shuffle(indices.begin(), indices.end(), random_);
}

void Machine::run_grid(const Launch& launch) {
  launch_ = &launch;
  problem_.clear();
  moment.first_run = last_run_ + 1;
  std::vector<unsigned> blocks(launch.grid.x * launch.grid.y * launch.grid.z);
  std::iota(blocks.begin(), blocks.end(), 0u);
  arrange(blocks);
  for (unsigned block : blocks) {
    run_block(unravel(block, launch.grid));
    if (!problem_.empty()) break;
  }
  launch_ = nullptr;
}

void Machine::begin_shared() {
  __asan_unpoison_memory_region(arena_, kArenaBytes);
  std::memset(arena_, 0xFF, std::max(dirty_bytes_, launch_->dynamic_shared_bytes + kRedZone));
  note_fresh(arena_, std::max(dirty_bytes_, launch_->dynamic_shared_bytes));
  __asan_poison_memory_region(arena_, kArenaBytes);
  __asan_unpoison_memory_region(arena_, launch_->dynamic_shared_bytes);
  variables_.clear();
  static_bytes_ = 0;
  arena_used_ = launch_->dynamic_shared_bytes + kRedZone;
  dirty_bytes_ = arena_used_;
}

// AddressSanitizer reports what it sees at once; elsewhere a write into a red zone shows
// afterwards.
void Machine::check_red_zones() {
#ifndef __SANITIZE_ADDRESS__
  const auto intact = [](const char* zone) {
    return std::all_of(zone, zone + kRedZone, [](char c) { return c == '\xFF'; });
  };
  if (!intact(arena_ + launch_->dynamic_shared_bytes)) {
    problem_ = text(name("block", block_), " wrote past its ", launch_->dynamic_shared_bytes,
                    " bytes of dynamic shared memory");
  }
  for (const Variable& variable : variables_) {
    if (intact(variable.data + variable.bytes)) continue;
    problem_ = text(name("block", block_), " wrote past the end of a shared variable of ",
                    variable.bytes, " bytes");
  }
#endif
}

// As new, but with the memory that the last block's had.
void Machine::begin_slots(unsigned threads) {
  slots_.resize(threads);
  for (Slot& slot : slots_) {
    slot.state = State::fresh;
    slot.copies.clear();
    slot.ends.clear();
  }
  const size_t warps = (threads + kWarpSize - 1) / kWarpSize;
  exchanges_.resize(warps);
  for (auto& meetings : exchanges_) meetings.clear();
  warp_epochs_.assign(warps, 0);
}

void Machine::run_block(uint3 block) {
  const unsigned threads = launch_->block.x * launch_->block.y * launch_->block.z;
  block_ = block;
  moment.run = ++last_run_;
  moment.block_epoch = 0;
  begin_shared();
  begin_slots(threads);
  ready_.resize(threads);
  std::iota(ready_.begin(), ready_.end(), 0u);
  arrange(ready_);
  next_ready_ = 0;

  unsigned done = 0;
  while (problem_.empty()) {
    if (next_ready_ == ready_.size()) {
      if (done == threads) {
        check_red_zones();
        break;
      }
      const bool all = std::all_of(slots_.begin(), slots_.end(),
                                   [](const Slot& s) { return s.state == State::at_barrier; });
      if (all) {
        release_barrier();
        continue;
      }
      problem_ = stuck();
      break;
    }
    const unsigned index = ready_[next_ready_++];
    run_thread(index);
    Slot& slot = slots_[index];
    if (slot.state == State::done) {
      ++done;
      idle_fibers_.push_back(std::move(slot.fiber));
    }
  }
  if (problem_.empty()) return;
  // The other fibers are abandoned where they are.
  for (Slot& slot : slots_) {
    if (slot.fiber != nullptr) idle_fibers_.push_back(std::move(slot.fiber));
  }
  report_fault(text("simulated device: ", launch_->op, ": ", problem_));
}

void Machine::run_thread(unsigned index) {
  Slot& slot = slots_[index];
  if (slot.state == State::fresh) {
    if (idle_fibers_.empty()) idle_fibers_.push_back(std::make_unique<Fiber>());
    slot.fiber = std::move(idle_fibers_.back());
    idle_fibers_.pop_back();
    slot.fiber->start(
        [](void* launch) {
          const auto* self = static_cast<const Launch*>(launch);
          self->invoke(self->parameters.get());
        },
        const_cast<Launch*>(launch_));
    auto* context = new (slot.fiber->reserved()) Thread;
    context->thread = unravel(index, launch_->block);
    context->block = block_;
    context->block_size = launch_->block;
    context->grid_size = launch_->grid;
    context->index = index;
  }
  slot.state = State::ready;
  running = reinterpret_cast<Thread*>(slot.fiber->reserved());
  moment.thread = index;
  moment.warp_epoch = warp_epochs_[index / kWarpSize];
  stack_memory = {slot.fiber->memory(), slot.fiber->memory() + Fiber::kStackBytes};
  if (slot.fiber->resume()) slot.state = State::done;
  stack_memory = {nullptr, nullptr};
  running = nullptr;
}

void Machine::make_ready(unsigned index) {
  slots_[index].state = State::ready;
  // Forward: everybody gets a turn before anybody's second. Reverse: a warp that can go on does,
  // before the others have begun. A race between warps that shuffle shows in one of them.
  if (order_ == Order::reverse) {
    ready_[--next_ready_] = index;
    return;
  }
  ready_.push_back(index);
  if (order_ == Order::random) {
    std::swap(ready_.back(), ready_[next_ready_ + random_() % (ready_.size() - next_ready_)]);
  }
}

BarrierResult Machine::barrier(bool value, const Where& where) {
  Slot& slot = slots_[running->index];
  slot.state = State::at_barrier;
  slot.value = value;
  slot.where = where;
  slot.fiber->yield();
  return barrier_result_;
}

void Machine::release_barrier() {
  barrier_result_ = {0, true, false};
  const Where first = slots_[0].where;
  for (unsigned i = 0; i < slots_.size(); ++i) {
    const Slot& slot = slots_[i];
    if (slot.where.line() != first.line() ||
        !same_text(slot.where.file_name(), first.file_name())) {
      problem_ = text(name("thread", unravel(i, launch_->block)), " of ", name("block", block_),
                      " waits at the barrier of ", place(slot.where), ", thread 0 at that of ",
                      place(first), ": all threads must reach the same __syncthreads()");
      return;
    }
    barrier_result_.count += slot.value;
    barrier_result_.all = barrier_result_.all && slot.value;
    barrier_result_.any = barrier_result_.any || slot.value;
  }
  ++moment.block_epoch;
  ready_.clear();
  next_ready_ = 0;
  std::vector<unsigned> order(slots_.size());
  std::iota(order.begin(), order.end(), 0u);
  arrange(order);
  for (unsigned index : order) slots_[index].state = State::ready;
  ready_ = std::move(order);
}

std::string Machine::stuck() const {
  size_t waiting = 0, gone = 0;
  Where where;
  for (const Slot& slot : slots_) {
    if (slot.state == State::done) ++gone;
    if (slot.state != State::at_barrier) continue;
    ++waiting;
    where = slot.where;
  }
  std::string meetings;
  for (size_t warp = 0; warp < exchanges_.size(); ++warp) {
    for (const auto& exchange : exchanges_[warp]) {
      if (exchange->arrived == exchange->mask) continue;
      meetings += text("; ", exchange->name, " in warp ", warp, " at ", place(exchange->where),
                       " has mask 0x", std::hex, exchange->mask, " but only 0x", exchange->arrived,
                       " arrived");
    }
  }
  const std::string head = text(name("block", block_), " cannot go on: ");
  if (waiting == 0) return head + meetings.substr(std::min<size_t>(2, meetings.size()));
  return text(head, waiting, " of ", slots_.size(), " threads wait at the barrier of ",
              place(where), gone > 0 ? text(", ", gone, " have returned without it") : "",
              meetings);
}

Exchange* Machine::begin_exchange(const char* what, unsigned mask, const void* mine, size_t bytes,
                                  const Where& where) {
  const unsigned lane = running->lane(), warp = running->warp(), self = running->index;
  if ((mask >> lane & 1) == 0) {
    violation(text(what, " at ", place(where), ": lane ", lane, " is not in its mask 0x", std::hex,
                   mask));
  }
  auto& meetings = exchanges_[warp];
  Exchange* exchange = nullptr;
  for (auto& candidate : meetings) {
    if (candidate->arrived == candidate->mask) continue;  // over; its lanes are still reading
    if (candidate->mask == mask) exchange = candidate.get();
    if (candidate->mask != mask && (candidate->mask & mask) != 0) {
      violation(text(what, " at ", place(where), " with mask 0x", std::hex, mask, " meets ",
                     candidate->name, " with mask 0x", candidate->mask,
                     ": lanes that meet must name the same mask"));
    }
  }
  if (exchange == nullptr) {
    if (idle_exchanges_.empty()) idle_exchanges_.push_back(std::make_unique<Exchange>());
    meetings.push_back(std::move(idle_exchanges_.back()));
    idle_exchanges_.pop_back();
    exchange = meetings.back().get();
    exchange->arrived = exchange->left = 0;
    exchange->name = what;
    exchange->mask = mask;
    exchange->bytes = bytes;
    exchange->where = where;
  }
  if (!same_text(exchange->name, what) || exchange->bytes != bytes) {
    violation(text(what, " at ", place(where), " meets ", exchange->name, " at ",
                   place(exchange->where), ": lanes that meet must run the same operation"));
  }
  std::memcpy(exchange->values[lane], mine, bytes);
  exchange->arrived |= 1u << lane;
  if (exchange->arrived == mask) {
    for (unsigned other = 0; other < kWarpSize; ++other) {
      if (other != lane && (mask >> other & 1) != 0) make_ready(warp * kWarpSize + other);
    }
  } else {
    slots_[self].state = State::at_exchange;
    slots_[self].fiber->yield();
  }
  return exchange;
}

void Machine::end_exchange(Exchange* exchange) {
  exchange->left |= 1u << running->lane();
  if (exchange->left != exchange->mask) return;
  auto& meetings = exchanges_[running->warp()];
  const auto over = std::find_if(meetings.begin(), meetings.end(),
                                 [&](const auto& one) { return one.get() == exchange; });
  idle_exchanges_.push_back(std::move(*over));
  meetings.erase(over);
}

void Machine::warp_barrier(unsigned mask, const Where& where) {
  const char nothing = 0;
  Exchange* exchange = begin_exchange("__syncwarp", mask, &nothing, 1, where);
  const unsigned warp = running->warp();
  // The first lane to go on opens the warp's next epoch. A part of a warp orders only itself, which
  // the detector does not follow: then nothing counts as ordered.
  const unsigned first = static_cast<unsigned>(slots_.size()) - warp * kWarpSize;
  const unsigned whole = first >= kWarpSize ? ~0u : (1u << first) - 1;
  if (exchange->left == 0 && mask == whole) ++warp_epochs_[warp];
  moment.warp_epoch = warp_epochs_[warp];
  end_exchange(exchange);
}

void* Machine::shared_variable(const void* key, size_t bytes, size_t alignment) {
  for (const Variable& variable : variables_) {
    if (variable.key == key) return variable.data;
  }
  const size_t begin = (arena_used_ + alignment - 1) / alignment * alignment;
  static_bytes_ += bytes;
  if (static_bytes_ > kStaticSharedBytes) {
    violation(text("declares ", static_bytes_, " bytes of static shared memory, the limit is ",
                   kStaticSharedBytes));
  }
  const size_t most = launch_->more_shared_memory ? kSharedBytes : kStaticSharedBytes;
  if (static_bytes_ + launch_->dynamic_shared_bytes > most) {
    violation(text("uses ", static_bytes_, " bytes of static and ", launch_->dynamic_shared_bytes,
                   " of dynamic shared memory, the limit of both is ", most));
  }
  if (begin + bytes + kRedZone > kArenaBytes) violation("uses too much shared memory");
  char* data = arena_ + begin;
  arena_used_ = begin + bytes + kRedZone;
  __asan_unpoison_memory_region(data, bytes);
  std::memset(data, 0xFF, bytes);
  note_fresh(data, bytes);
#ifndef __SANITIZE_ADDRESS__
  std::memset(data + bytes, 0xFF, kRedZone);
#endif
  dirty_bytes_ = arena_used_;
  variables_.push_back({key, data, bytes});
  return data;
}

bool Machine::shared_owns(const char* data, size_t bytes) const {
  if (data + bytes <= arena_ + launch_->dynamic_shared_bytes) return true;
  return std::any_of(variables_.begin(), variables_.end(), [&](const Variable& variable) {
    return data >= variable.data && data + bytes <= variable.data + variable.bytes;
  });
}

void Machine::copy_async(void* target, const void* source, size_t bytes, size_t source_bytes) {
  auto* to = static_cast<char*>(target);
  if ((bytes != 4 && bytes != 8 && bytes != 16) || source_bytes > bytes) {
    violation(text("cp.async of ", bytes, " bytes; 4, 8 and 16 exist"));
  }
  if (reinterpret_cast<uintptr_t>(to) % bytes != 0 ||
      reinterpret_cast<uintptr_t>(source) % bytes != 0) {
    violation(text("cp.async of ", bytes, " bytes between addresses that are not aligned to them"));
  }
  if (!shared_memory.holds(to)) violation("cp.async whose target is not in shared memory");
  note_pending(to, bytes);
  std::memset(to, 0xFF, bytes);
  slots_[running->index].copies.push_back(
      {to, static_cast<const char*>(source), bytes, source_bytes});
}

void Machine::commit_copies() {
  Slot& slot = slots_[running->index];
  slot.ends.push_back(slot.copies.size());
}

void Machine::wait_copies(size_t groups) {
  Slot& slot = slots_[running->index];
  if (slot.ends.size() <= groups) return;
  const auto over = static_cast<std::ptrdiff_t>(slot.ends.size() - groups);
  const size_t arrived = slot.ends[static_cast<size_t>(over) - 1];
  for (size_t i = 0; i < arrived; ++i) {
    const Copy& copy = slot.copies[i];
    note_arrived(copy.target, copy.source, copy.bytes, copy.source_bytes);
    std::memset(copy.target, 0, copy.bytes);
    if (copy.source_bytes > 0) std::memcpy(copy.target, copy.source, copy.source_bytes);
  }
  slot.copies.erase(slot.copies.begin(),
                    slot.copies.begin() + static_cast<std::ptrdiff_t>(arrived));
  slot.ends.erase(slot.ends.begin(), slot.ends.begin() + over);
  for (size_t& end : slot.ends) end -= arrived;
}

void Machine::violation(std::string what) {
  if (problem_.empty()) {
    problem_ = std::move(what);
    problem_ += " (" + position() + ")";
  }
  std::string().swap(what);
  slots_[running->index].state = State::at_exchange;  // never made ready again
  slots_[running->index].fiber->yield();
  __builtin_unreachable();
}

// For as long as the simulator's own code runs on a thread of the kernel.
class Inside {
 public:
  Inside() : thread_(*running) { ++thread_.inside; }
  ~Inside() { --thread_.inside; }
  Inside(const Inside&) = delete;
  Inside& operator=(const Inside&) = delete;

 private:
  Thread& thread_;
};

}  // namespace

void run_grid(const Launch& launch) { machine().run_grid(launch); }
void violation(std::string what) {
  const Inside inside;
  machine().violation(std::move(what));
}
void misaligned(size_t bytes) {
  const Inside inside;

  violation(text("accesses ", bytes, " bytes at an address that is not a multiple of that"));
}
void bad_width(const char* shuffle, int width) {
  const Inside inside;

  violation(text(shuffle, " of width ", width, "; 1, 2, 4, 8, 16 and 32 exist"));
}
std::string position() {
  const Thread& at = here();
  return name("block", at.block) + " " + name("thread", at.thread);
}
BarrierResult barrier(bool value, const Where& where) {
  const Inside inside;
  return machine().barrier(value, where);
}
Exchange* begin_exchange(const char* what, unsigned mask, const void* mine, size_t bytes,
                         const Where& where) {
  const Inside inside;
  return machine().begin_exchange(what, mask, mine, bytes, where);
}
const unsigned char* brought_by(const Exchange* exchange, unsigned lane) {
  const Inside inside;

  if (lane >= kWarpSize || (exchange->mask >> lane & 1) == 0) {
    violation(text(exchange->name, " at ", place(exchange->where), " reads lane ", lane,
                   ", which is not in its mask 0x", std::hex, exchange->mask));
  }
  return exchange->values[lane];
}
void end_exchange(Exchange* exchange) {
  const Inside inside;
  machine().end_exchange(exchange);
}
void warp_barrier(unsigned mask, const Where& where) {
  const Inside inside;
  machine().warp_barrier(mask, where);
}
void* shared_variable(const void* key, size_t bytes, size_t alignment) {
  const Inside inside;

  return machine().shared_variable(key, bytes, alignment);
}
void* dynamic_shared() { return machine().dynamic_shared(); }
void copy_async(void* target, const void* source, size_t bytes, size_t source_bytes) {
  const Inside inside;

  machine().copy_async(target, source, bytes, source_bytes);
}
void commit_copies() {
  const Inside inside;
  machine().commit_copies();
}
void wait_copies(size_t groups) {
  const Inside inside;
  machine().wait_copies(groups);
}
void set_order(Order order, uint64_t seed) {
  machine().set_order(order, seed);
  seed_streams(seed);
}
bool shared_owns(const void* data, size_t bytes) {
  return machine().shared_owns(static_cast<const char*>(data), bytes);
}

}  // namespace graft::simt
