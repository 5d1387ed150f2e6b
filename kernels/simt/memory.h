// The simulated device's memory: one range of addresses that faults when the host touches it, and
// for the race detector a note for every four bytes about who used them last.
#pragma once

#include <cstddef>
#include <string>

namespace graft::simt {

// Null when the device's memory is used up (memory_limit). Filled with NaN patterns; 256-byte
// aligned; what follows the block belongs to nobody.
void* device_allocate(size_t bytes);
// False when `data` is not the start of a live block. Freed addresses are not used again soon.
bool device_free(void* data);
// Whether all of [data, data + bytes) lies in one live block.
bool device_owns(const void* data, size_t bytes);
bool in_device_range(const void* data);
size_t device_bytes_in_use();
size_t device_memory_limit();
size_t device_live_blocks();
void set_device_memory_limit(size_t bytes);

// While one of these lives, device memory can be touched: kernels and copies hold one.
class Unlocked {
 public:
  Unlocked();
  ~Unlocked();
  Unlocked(const Unlocked&) = delete;
  Unlocked& operator=(const Unlocked&) = delete;
};

// --- For the race detector; they do nothing in builds without it.
bool detector_present();
// Copies and fills write whole ranges.
void note_written(const void* data, size_t bytes);
void note_copied(void* target, const void* source, size_t bytes);
// The host takes this range: false when nobody has written all of it.
bool note_taken(const void* data, size_t bytes);
// Fresh memory: nobody has written it.
void note_fresh(const void* data, size_t bytes);
// The running thread has issued an asynchronous copy to this place; it happens at note_arrived().
void note_pending(const void* data, size_t bytes);
void note_arrived(const void* target, const void* source, size_t bytes, size_t source_bytes);

}  // namespace graft::simt
