// A layer with a weight that a low-rank adapter can stand beside: the base of Linear and Conv2d.
// What an adapter computes is in lora.h, with the functions for whole models.
#pragma once

#include <memory>
#include <string>

#include "layers/module.h"

namespace graft {

class AdaptedLayer : public Module {
 public:
  // Whether an adapter adds to the output; not while it is merged into the weight.
  bool adapted() const { return active_adapter() != nullptr; }
  // The largest rank whose adapter has fewer values than the weight; 0 where none has, as for a
  // depthwise convolution, whose groups have matrices of a single row.
  int64_t largest_rank() const;
  // Adds "lora_A", drawn as a layer's weight is, and "lora_B", zero, to the parameters: the output
  // stays what it was. rank is from 1 to largest_rank().
  void add_adapter(int64_t rank, float scale, float dropout, RngKey key);
  void drop_adapter();
  // weight + scale B A
  Tensor merged_weight() const;
  virtual int64_t groups() const { return 1; }

  Tensor weight;  // (out, ...); of the inputs of one group
  Tensor bias;    // (out), or undefined

 protected:
  struct Adapter {
    Tensor a;  // the weight of a layer of groups * rank outputs: (groups * rank, ...)
    Tensor b;  // the weight from there to the output: (out, rank) or (out, 1, 1, rank)
    float scale, dropout;
    bool merged = false;
  };
  // Null when there is none, or it is merged.
  const Adapter* active_adapter() const {
    return adapter_ != nullptr && !adapter_->merged ? adapter_.get() : nullptr;
  }
  // x as the adapter sees it.
  Tensor dropped(const Tensor& x) const;

 private:
  friend class LoraMerged;
  std::unique_ptr<Adapter> adapter_;
};

}  // namespace graft
