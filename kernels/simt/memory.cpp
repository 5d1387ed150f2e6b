#include "kernels/simt/memory.h"

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <deque>
#include <map>
#include <sys/mman.h>

#include "kernels/error.h"
#include "kernels/simt/poison.h"
#include "kernels/simt/runtime.h"

namespace graft::simt {
namespace {

constexpr size_t kRangeBytes = size_t{64} << 30, kAlignment = 256;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kQuarantineBytes = size_t{8} << 20;

class Heap {
 public:
  Heap() {
    void* range =
        mmap(nullptr, kRangeBytes, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    GRAFT_CHECK(range != MAP_FAILED, "simulated device: no address space for its memory");
    madvise(range, kRangeBytes, MADV_DONTDUMP);
    // Huge pages: mprotect() then changes few entries of the page table.
    madvise(range, kRangeBytes, MADV_HUGEPAGE);
    const auto address = reinterpret_cast<uintptr_t>(range);
    base_ = static_cast<char*>(range) + (kHugePage - address % kHugePage) % kHugePage;
  }

  void* allocate(size_t bytes) {
    const size_t room = room_of(bytes);
    if (in_use_ + room > limit_) return nullptr;
    char* data = reused(room);
    if (data == nullptr) {
      if (top_ + room > kRangeBytes - kHugePage) return nullptr;
      data = base_ + top_;
      top_ += room;
      if (unlocked_ > 0) protect(PROT_READ | PROT_WRITE);
    }
    live_.emplace(data, bytes);
    in_use_ += room;
    const Unlocked unlocked;
    __asan_unpoison_memory_region(data, room);
    std::memset(data, 0xFF, room);
    note_fresh(data, bytes);
    __asan_poison_memory_region(data, room);
    __asan_unpoison_memory_region(data, bytes);
    return data;
  }

  bool free(void* data) {
    const auto found = live_.find(static_cast<char*>(data));
    if (found == live_.end()) return false;
    const size_t bytes = found->second, room = room_of(bytes);
    bool intact = true;
    live_.erase(found);
    in_use_ -= room;
    {
      const Unlocked unlocked;
      const auto* begin = static_cast<const unsigned char*>(data);
      __asan_unpoison_memory_region(data, room);
      intact = std::all_of(begin + bytes, begin + room, [](auto b) { return b == 0xFF; });
      std::memset(data, 0xFF, bytes);  // who still reads it reads NaN
      __asan_poison_memory_region(data, room);
    }
    quarantine_.emplace_back(static_cast<char*>(data), room);
    quarantined_ += room;
    while (quarantined_ > kQuarantineBytes) {
      const auto [oldest, size] = quarantine_.front();
      quarantine_.pop_front();
      quarantined_ -= size;
      free_.emplace(size, oldest);
    }
    if (!intact) {
      report_fault(
          text("simulated device: something wrote past the end of a block of ", bytes, " bytes"));
    }
    return true;
  }

  bool owns(const void* data, size_t bytes) const {
    const auto* begin = static_cast<const char*>(data);
    auto after = live_.upper_bound(const_cast<char*>(begin));
    if (after == live_.begin()) return false;
    const auto& [start, size] = *--after;
    return begin + bytes <= start + size;
  }
  bool in_range(const void* data) const {
    const auto* p = static_cast<const char*>(data);
    return p >= base_ && p < base_ + kRangeBytes - kHugePage;
  }

  void unlock() {
    if (unlocked_++ == 0) protect(PROT_READ | PROT_WRITE);
  }
  void lock() {
    if (--unlocked_ == 0) protect(PROT_NONE);
  }

  size_t in_use() const { return in_use_; }
  size_t live_blocks() const { return live_.size(); }
  size_t limit() const { return limit_; }
  void set_limit(size_t bytes) { limit_ = bytes; }

 private:
  static size_t room_of(size_t bytes) {
    // At least 64 bytes that belong to nobody.
    return (std::max<size_t>(bytes, 1) + 64 + kAlignment - 1) / kAlignment * kAlignment;
  }
  char* reused(size_t room) {
    const auto found = free_.find(room);
    if (found == free_.end()) return nullptr;
    char* data = found->second;
    free_.erase(found);
    return data;
  }
  void protect(int protection) {
    const size_t bytes = (top_ + kHugePage - 1) / kHugePage * kHugePage;
    if (bytes > 0) mprotect(base_, bytes, protection);
  }

  char* base_;
  size_t top_ = 0, in_use_ = 0, limit_ = size_t{4} << 30, quarantined_ = 0;
  int unlocked_ = 0;
  std::map<char*, size_t> live_;
  std::deque<std::pair<char*, size_t>> quarantine_;
  std::multimap<size_t, char*> free_;
};

Heap& heap() {
  static auto* one = new Heap;
  return *one;
}

}  // namespace

void* device_allocate(size_t bytes) { return heap().allocate(bytes); }
bool device_free(void* data) { return heap().free(data); }
bool device_owns(const void* data, size_t bytes) { return heap().owns(data, bytes); }
bool in_device_range(const void* data) { return heap().in_range(data); }
size_t device_bytes_in_use() { return heap().in_use(); }
size_t device_memory_limit() { return heap().limit(); }
size_t device_live_blocks() { return heap().live_blocks(); }
void set_device_memory_limit(size_t bytes) { heap().set_limit(bytes); }

Unlocked::Unlocked() { heap().unlock(); }
Unlocked::~Unlocked() { heap().lock(); }

}  // namespace graft::simt
