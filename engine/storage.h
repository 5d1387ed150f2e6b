// A block of memory on one device, shared by the tensors that view it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>

#include "kernels/types.h"

namespace graft {

class Storage {
 public:
  // Uninitialised memory from the device's caching allocator, 64-byte aligned. Throws Error with
  // the sizes when memory runs out.
  Storage(size_t bytes, Device device);
  // Memory of the host that a GPU copies from by itself. Ordinary memory where there is none such.
  static std::shared_ptr<Storage> pinned(size_t bytes);
  // Memory owned elsewhere (a mapped file): `owner` is released with the storage.
  Storage(void* data, size_t bytes, std::shared_ptr<void> owner);
  ~Storage();
  Storage(const Storage&) = delete;
  Storage& operator=(const Storage&) = delete;

  void* data() const { return data_; }
  size_t bytes() const { return bytes_; }
  Device device() const { return device_; }

  // Counts in-place changes; the tape compares it with the value at saving time, and caches of
  // derived forms (packed or folded weights) with the value at packing time.
  uint64_t version() const { return version_; }
  void bump_version() { ++version_; }

  // A derived form of the contents that a layer keeps beside them, for instance packed weights.
  std::shared_ptr<void>& cache() { return cache_; }

 private:
  void* data_ = nullptr;
  size_t bytes_ = 0;
  Device device_;
  uint64_t version_ = 0;
  std::shared_ptr<void> owner_;
  std::shared_ptr<void> cache_;
};

// What the caching allocator of a device holds, in bytes.
struct MemoryStats {
  size_t in_use = 0;
  size_t peak_in_use = 0;
  size_t cached = 0;  // free blocks kept for reuse
};
MemoryStats memory_stats(Device device = kCpu);
void reset_peak_memory(Device device = kCpu);
void release_cached_memory(Device device = kCpu);

// A part of a device's memory for work that is recorded once and run many times: between the
// constructor and close() this thread's new storages come from it, and what they free stays in it
// for reuse, so that no later tensor is put where the recorded work writes. The destructor makes it
// ordinary memory. One pool a device may be open at a time.
class MemoryPool {
 public:
  explicit MemoryPool(Device device);
  ~MemoryPool();
  void close();
  MemoryPool(const MemoryPool&) = delete;
  MemoryPool& operator=(const MemoryPool&) = delete;

  struct State;

 private:
  Device device_;
  std::unique_ptr<State> state_;
};

// Test hook: the allocation with this number (counting from 1 at the call) throws as if memory had
// run out; 0 turns it off.
void fail_allocation(int64_t nth);
// Test hook: fresh memory is filled with NaN bit patterns and followed by guard bytes that are
// checked when it is freed.
void poison_fresh_memory(bool on);
// Number of blocks whose guard bytes were found changed since the hook was turned on.
int64_t damaged_guards();

}  // namespace graft
