// Loses the simulated device in the middle of a run.
#pragma once

#include "kernels/device.h"
#include "transfer/finetune.h"

namespace graft::test {

// An observer of kind Base that does so, counted in batches and from there in CUDA calls.
template <class Base>
struct LoseDevice : Base {
  LoseDevice(int64_t batches, int64_t calls) : left(batches), nth_call(calls) {}
  void progress(const Progress&) override {
    if (--left == 0) cuda::lose_simulated_device(nth_call);
  }
  int64_t left, nth_call;
};

}  // namespace graft::test
