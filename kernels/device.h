// Device memory and its copies. The only CUDA calls outside kernels are behind these.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>

#include "kernels/types.h"

namespace graft::cuda {

// Number of usable devices; 0 without a driver. Never throws.
int device_count();
// Throws Error, starting with `op`, unless the device can be used.
void require_device(const char* op, int device);
// Device memory, 256-byte aligned. Throws Error when there is no device; null when memory ran out.
void* allocate(size_t bytes, int device);
// What the device has, and what nobody has taken, in bytes.
struct DeviceMemory {
  size_t total = 0, free = 0;
};
DeviceMemory memory(int device);
// Never throws: when the device is lost its memory is gone anyway.
void release(void* data, int device);
// What to do when there is no memory for temporary results: release what is kept for reuse, and say
// in a sentence or two who holds the rest. The owner of the device's other memory sets it.
using MakeRoom = std::string (*)(int device);
void set_make_room(MakeRoom make_room);
// Copy between any two devices or the host, in the order of the device's work. The host has what it
// is given when the call returns; what it gives may be changed then, unless it is pinned memory.
void copy(void* target, Device target_device, const void* source, Device source_device,
          size_t bytes);
void fill_bytes(void* target, int value, size_t bytes, int device);

// Memory of the host that the device copies from by itself. Null when there is none to have.
void* allocate_pinned(size_t bytes);
// Never throws.
void release_pinned(void* data);

// The device's work, and copies to it that run beside that work. Only events order the two.
enum class Stream : uint8_t { work, copies };
class Event {
 public:
  Event();
  ~Event();
  Event(const Event&) = delete;
  Event& operator=(const Event&) = delete;
  // Everything that the stream was given so far.
  void record(Stream stream);
  // What the stream is given from now on comes after what was recorded; nothing recorded: at once.
  void precede(Stream stream) const;
  // Returns when it is done.
  void wait() const;

 private:
  void* event_ = nullptr;
};
// On Stream::copies. Pinned memory must stay as it is until the copy is done.
void copy_beside(void* target, const void* source, size_t bytes);

// Work recorded once and run many times, as a whole.
struct Graph;
// Until end_capture() this thread's work on the device is recorded instead of run. What waits for
// the device, or copies to the host, is an error then.
void begin_capture();
// What was recorded. Throws Error when something that cannot be recorded was asked for.
std::shared_ptr<Graph> end_capture();
void launch_graph(Graph& graph);

// Whether the device is the simulated one (kernels/simt).
bool is_simulated();
// In which order a simulated device runs blocks and the threads of a block: a kernel that
// synchronises as it should does not notice. A real device has its own order.
enum class ThreadOrder : uint8_t { forward, reverse, random };
void set_thread_order(ThreadOrder order, uint64_t seed = 0);
// The CUDA call with this number, counting from 1 now, and all after it find a simulated device
// lost.
void lose_simulated_device(int64_t nth_call);
// A simulated device has this many bytes besides what is in use now; 0: as many as it began with.
void limit_simulated_memory(size_t bytes);
// Plugs a simulated device in again after an error that would have ended a real one's context.
void reset_simulated_device();

}  // namespace graft::cuda
