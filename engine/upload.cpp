#include "engine/upload.h"

#include <utility>

namespace graft {

using cuda::Stream;

Tensor pinned_tensor(Shape shape, Dtype dtype) {
  const size_t bytes = static_cast<size_t>(numel_of(shape)) * size_of(dtype);
  return {Storage::pinned(bytes), 0, std::move(shape), dtype};
}

Upload::~Upload() {
  for (const Slot& slot : slots_) {
    try {
      slot.copied.wait();     // nobody may have these blocks while they are written or read
    } catch (const Error&) {  // the device is lost: so are its copies
    }
  }
}

void Upload::start(const Tensor& host) {
  GRAFT_CHECK(host.defined() && host.device().is_cpu(),
              "upload: expected a tensor on the CPU, got ", host);
  Slot& slot = slots_[next_];
  slot.copied.wait();
  if (slot.memory == nullptr || slot.memory->bytes() < host.bytes()) {
    slot.memory.reset();
    slot.memory = std::make_shared<Storage>(host.bytes(), device_);
    // Who had this block before may have work on it under way.
    slot.read.record(Stream::work);
  }
  slot.host = host;
  slot.read.precede(Stream::copies);
  cuda::copy_beside(slot.memory->data(), host.raw(), host.bytes());
  slot.copied.record(Stream::copies);
  slot.memory->bump_version();
}

Tensor Upload::take() {
  Slot &slot = slots_[next_], &before = slots_[1 - next_];
  GRAFT_CHECK(slot.host.defined(), "upload: nothing was started");
  before.read.record(Stream::work);
  slot.copied.precede(Stream::work);
  next_ = 1 - next_;
  return {slot.memory, 0, slot.host.shape(), slot.host.dtype()};
}

}  // namespace graft
