// The caching allocator. Training allocates the same sizes every step, so freed blocks are kept and
// handed out again: no page faults after the first step.
#include "engine/storage.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <sys/mman.h>
#include <unordered_map>

#include "kernels/device.h"
#include "kernels/error.h"

namespace graft {
namespace {

constexpr size_t kAlignment = 64;
constexpr size_t kHugePage = size_t{2} << 20;
constexpr size_t kGuardBytes = 64;
constexpr unsigned char kGuardValue = 0xA5;

// Block sizes: an eighth of the next power of two, so that at most 12.5% of a block is wasted and
// nearly equal requests share a class.
size_t block_size(size_t bytes) {
  const size_t step = std::max<size_t>(kAlignment, std::bit_ceil(bytes) / 8);
  return (bytes + step - 1) / step * step;
}

std::atomic<int64_t> allocations_until_failure{0};
std::atomic<bool> poison{false};
std::atomic<int64_t> damaged{0};

class Allocator {
 public:
  explicit Allocator(Device device) : device_(device) {}

  void* allocate(size_t bytes) {
    const bool guarded = poison.load(std::memory_order_relaxed);
    const size_t size = block_size(std::max<size_t>(bytes, 1) + (guarded ? kGuardBytes : 0));
    std::lock_guard lock(mutex_);
    void* data = nullptr;
    const auto found = free_.find(size);
    if (found != free_.end() && !found->second.empty()) {
      data = found->second.back();
      found->second.pop_back();
      stats_.cached -= size;
    } else if ((data = fresh(size)) == nullptr) {
      release_cached();
      data = fresh(size);
    }
    const bool injected =
        allocations_until_failure.load() > 0 && allocations_until_failure.fetch_sub(1) == 1;
    if (data == nullptr || injected) {
      if (data != nullptr) give_back(data, size);
      fail("out of memory on ", device_, ": ", bytes, " bytes wanted, ", stats_.in_use,
           " in use by tensors, ", stats_.cached,
           " cached. Try a smaller batch, a smaller image size or a smaller model.");
    }
    stats_.in_use += size;
    stats_.peak_in_use = std::max(stats_.peak_in_use, stats_.in_use);
    live_.emplace(data, Block{size, guarded ? bytes : kUnguarded});
    if (guarded && device_.is_cpu()) {
      std::memset(data, 0xFF, size);
      std::memset(static_cast<char*>(data) + bytes, kGuardValue, kGuardBytes);
    }
    return data;
  }

  void release(void* data) {
    std::lock_guard lock(mutex_);
    const auto found = live_.find(data);
    const Block block = found->second;
    live_.erase(found);
    if (block.guarded_bytes != kUnguarded && device_.is_cpu()) {
      const auto* guard = static_cast<unsigned char*>(data) + block.guarded_bytes;
      if (!std::all_of(guard, guard + kGuardBytes, [](auto b) { return b == kGuardValue; })) {
        ++damaged;
      }
    }
    stats_.in_use -= block.size;
    give_back(data, block.size);
  }

  MemoryStats stats() {
    std::lock_guard lock(mutex_);
    return stats_;
  }
  void reset_peak() {
    std::lock_guard lock(mutex_);
    stats_.peak_in_use = stats_.in_use;
  }
  void release_all_cached() {
    std::lock_guard lock(mutex_);
    release_cached();
  }

 private:
  static constexpr size_t kUnguarded = ~size_t{0};
  struct Block {
    size_t size;
    size_t guarded_bytes;
  };

  void* fresh(size_t size) {
    if (!device_.is_cpu()) {
      if constexpr (kHasCuda) return cuda::allocate(size, device_.index);
      fail("this build of graft has no CUDA backend: use --device cpu, or build with nvcc on PATH");
    }
    const bool large = size >= kHugePage;
    void* data = std::aligned_alloc(large ? kHugePage : kAlignment,
                                    large ? (size + kHugePage - 1) / kHugePage * kHugePage : size);
    if (data != nullptr && large) madvise(data, size, MADV_HUGEPAGE);
    return data;
  }
  void give_back(void* data, size_t size) {
    free_[size].push_back(data);
    stats_.cached += size;
  }
  void release_cached() {
    for (auto& [size, blocks] : free_) {
      for (void* data : blocks) {
        if (device_.is_cpu()) {
          std::free(data);
        } else if constexpr (kHasCuda) {
          cuda::release(data, device_.index);
        }
      }
    }
    free_.clear();
    stats_.cached = 0;
  }

  Device device_;
  std::mutex mutex_;
  std::unordered_map<size_t, std::vector<void*>> free_;
  std::unordered_map<void*, Block> live_;
  MemoryStats stats_;
};

// Allocators live as long as the process: tensors may be destroyed after main() returns.
Allocator& allocator(Device device) {
  static std::mutex mutex;
  static auto* all = new std::map<std::pair<int, int>, Allocator*>;
  static Allocator* cpu = new Allocator(kCpu);
  if (device.is_cpu()) return *cpu;
  std::lock_guard lock(mutex);
  Allocator*& found = (*all)[{static_cast<int>(device.kind), device.index}];
  if (found == nullptr) found = new Allocator(device);
  return *found;
}

}  // namespace

Storage::Storage(size_t bytes, Device device)
    : data_(allocator(device).allocate(bytes)), bytes_(bytes), device_(device) {}

Storage::Storage(void* data, size_t bytes, std::shared_ptr<void> owner)
    : data_(data), bytes_(bytes), owner_(std::move(owner)) {}

Storage::~Storage() {
  if (owner_ == nullptr) allocator(device_).release(data_);
}

MemoryStats memory_stats(Device device) { return allocator(device).stats(); }
void reset_peak_memory(Device device) { allocator(device).reset_peak(); }
void release_cached_memory(Device device) { allocator(device).release_all_cached(); }
void fail_allocation(int64_t nth) { allocations_until_failure = nth; }
void poison_fresh_memory(bool on) {
  poison = on;
  if (on) damaged = 0;
}
int64_t damaged_guards() { return damaged; }

}  // namespace graft
