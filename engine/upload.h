// Tensors on their way to the device, copied while it works on others.
#pragma once

#include <memory>

#include "engine/tensor.h"
#include "kernels/device.h"

namespace graft {

// An uninitialised tensor of the host from which a GPU can copy by itself, so that the program goes
// on meanwhile; an ordinary one where such memory is not to be had.
Tensor pinned_tensor(Shape shape, Dtype dtype = Dtype::f32);

// One tensor is used while the next is copied. On a device only.
class Upload {
 public:
  explicit Upload(Device device) : device_(device) {}
  ~Upload();

  // Begins to copy a tensor of the host, which stays alive until the copy is done and must not
  // change before. Forgets one that was started and not taken.
  void start(const Tensor& host);
  // What was started, on the device: what is launched from now on finds the copy done. Valid until
  // the take() after this: by then everything that reads it must have been launched.
  Tensor take();

 private:
  struct Slot {
    Tensor host;
    std::shared_ptr<Storage> memory;
    cuda::Event copied, read;
  };

  Device device_;
  Slot slots_[2];
  int next_ = 0;
};

}  // namespace graft
