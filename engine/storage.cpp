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
#include <thread>
#include <unordered_map>

#include "engine/running.h"
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

using FreeBlocks = std::unordered_map<size_t, std::vector<void*>>;

}  // namespace

struct MemoryPool::State {
  FreeBlocks free;
  std::thread::id thread = std::this_thread::get_id();
};

namespace {

class Allocator {
 public:
  explicit Allocator(Device device, bool pinned = false) : device_(device), pinned_(pinned) {}

  void* allocate(size_t bytes) {
    const bool guarded = poison.load(std::memory_order_relaxed);
    const size_t guard = guarded ? guard_bytes() : 0;
    const size_t size = guarded && !device_.is_cpu()
                            ? bytes + guard
                            : block_size(std::max<size_t>(bytes, 1) + guard);
    std::lock_guard lock(mutex_);
    MemoryPool::State* pool =
        pool_ != nullptr && pool_->thread == std::this_thread::get_id() ? pool_ : nullptr;
    FreeBlocks& blocks = pool != nullptr ? pool->free : free_;
    void* data = nullptr;
    const auto found = blocks.find(size);
    if (!guarded && found != blocks.end() && !found->second.empty()) {
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
      if (data != nullptr) give_back(data, size, pool);
      fail("out of memory on ", device_, RunningOp::where(), ": ", bytes, " bytes wanted", held(),
           ". Try a smaller batch, a smaller image size or a smaller model.");
    }
    stats_.in_use += size;
    stats_.peak_in_use = std::max(stats_.peak_in_use, stats_.in_use);
    live_.emplace(data, Block{size, guarded ? bytes : kUnguarded, pool});
    if (guarded) {
      fill(data, 0xFF, bytes);
      fill(static_cast<char*>(data) + bytes, kGuardValue, guard);
    }
    return data;
  }

  void release(void* data) {
    std::lock_guard lock(mutex_);
    const auto found = live_.find(data);
    const Block block = found->second;
    live_.erase(found);
    stats_.in_use -= block.size;
    if (block.guarded_bytes == kUnguarded) {
      give_back(data, block.size, block.pool);
      return;
    }
    if (!guard_intact(static_cast<const char*>(data) + block.guarded_bytes)) ++damaged;
    discard(data);
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
  // Releases what is kept for reuse; who holds the rest.
  std::string make_room() {
    std::lock_guard lock(mutex_);
    release_cached();
    return held();
  }

  void open(MemoryPool::State* pool) {
    std::lock_guard lock(mutex_);
    GRAFT_CHECK(pool_ == nullptr, "memory pool: another one is open on ", device_);
    pool_ = pool;
  }
  void close(const MemoryPool::State* pool) {
    std::lock_guard lock(mutex_);
    if (pool_ == pool) pool_ = nullptr;
  }
  void dissolve(const MemoryPool::State* pool) {
    std::lock_guard lock(mutex_);
    for (const auto& [size, blocks] : pool->free) {
      free_[size].insert(free_[size].end(), blocks.begin(), blocks.end());
    }
    for (auto& [data, block] : live_) {
      if (block.pool == pool) block.pool = nullptr;
    }
  }

 private:
  static constexpr size_t kUnguarded = ~size_t{0};
  struct Block {
    size_t size;
    size_t guarded_bytes;
    MemoryPool::State* pool;  // null: ordinary memory
  };

  void* fresh(size_t size) {
    if (!device_.is_cpu()) return cuda::allocate(size, device_.index);
    if (pinned_) return cuda::allocate_pinned(size);
    const bool large = size >= kHugePage;
    void* data = std::aligned_alloc(large ? kHugePage : kAlignment,
                                    large ? (size + kHugePage - 1) / kHugePage * kHugePage : size);
    if (data != nullptr && large) madvise(data, size, MADV_HUGEPAGE);
    return data;
  }
  // For the message: who has the memory.
  std::string held() const {
    const std::string ours =
        text(", ", stats_.in_use, " in use by tensors, ", stats_.cached, " cached");
    if (device_.is_cpu()) return ours;
    const auto [total, free] = cuda::memory(device_.index);
    return text(ours, ". Of the device's ", total, " bytes ", free, " are free; ",
                total - std::min(total, free + stats_.in_use + stats_.cached),
                " are with the CUDA context, temporary results and other programs");
  }
  void discard(void* data) {
    if (!device_.is_cpu()) {
      cuda::release(data, device_.index);
    } else if (pinned_) {
      cuda::release_pinned(data);
    } else {
      std::free(data);
    }
  }
  // The simulated device watches the ends of its blocks itself, to the byte.
  size_t guard_bytes() const { return !device_.is_cpu() && cuda::is_simulated() ? 0 : kGuardBytes; }
  void fill(void* data, int value, size_t bytes) {
    if (device_.is_cpu()) {
      std::memset(data, value, bytes);
    } else if (!cuda::is_simulated()) {  // where fresh memory is poison anyway
      cuda::fill_bytes(data, value, bytes, device_.index);
    }
  }
  bool guard_intact(const void* guard) const {
    unsigned char bytes[kGuardBytes];
    const size_t count = guard_bytes();
    if (device_.is_cpu()) {
      std::memcpy(bytes, guard, count);
    } else {
      cuda::copy(bytes, kCpu, guard, device_, count);
    }
    return std::all_of(bytes, bytes + count, [](auto b) { return b == kGuardValue; });
  }
  void give_back(void* data, size_t size, MemoryPool::State* pool) {
    (pool != nullptr ? pool->free : free_)[size].push_back(data);
    stats_.cached += size;
  }
  void release_cached() {
    for (auto& [size, blocks] : free_) {
      for (void* data : blocks) {
        discard(data);
        stats_.cached -= size;
      }
    }
    free_.clear();
  }

  Device device_;
  bool pinned_;
  std::mutex mutex_;
  FreeBlocks free_;
  MemoryPool::State* pool_ = nullptr;  // the open one
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
  if (found == nullptr) {
    found = new Allocator(device);
    cuda::set_make_room([](int index) {
      return allocator({Device::Kind::cuda, index}).make_room();
    });
  }
  return *found;
}
Allocator& pinned_allocator() {
  static auto* one = new Allocator(kCpu, true);
  return *one;
}

}  // namespace

Storage::Storage(size_t bytes, Device device)
    : data_(allocator(device).allocate(bytes)), bytes_(bytes), device_(device) {}

Storage::Storage(void* data, size_t bytes, std::shared_ptr<void> owner)
    : data_(data), bytes_(bytes), owner_(std::move(owner)) {}

std::shared_ptr<Storage> Storage::pinned(size_t bytes) {
  void* data = nullptr;
  try {
    data = pinned_allocator().allocate(bytes);
  } catch (const Error&) {
    return std::make_shared<Storage>(bytes, kCpu);
  }
  return std::make_shared<Storage>(
      data, bytes, std::shared_ptr<void>(data, [](void* p) { pinned_allocator().release(p); }));
}

Storage::~Storage() {
  if (owner_ == nullptr) allocator(device_).release(data_);
}

MemoryStats memory_stats(Device device) { return allocator(device).stats(); }
void reset_peak_memory(Device device) { allocator(device).reset_peak(); }
void release_cached_memory(Device device) { allocator(device).release_all_cached(); }
MemoryPool::MemoryPool(Device device) : device_(device), state_(std::make_unique<State>()) {
  allocator(device_).open(state_.get());
}
MemoryPool::~MemoryPool() {
  close();
  allocator(device_).dissolve(state_.get());
}
void MemoryPool::close() { allocator(device_).close(state_.get()); }

void fail_allocation(int64_t nth) { allocations_until_failure = nth; }
void poison_fresh_memory(bool on) {
  poison = on;
  if (on) damaged = 0;
}
int64_t damaged_guards() { return damaged; }

}  // namespace graft
