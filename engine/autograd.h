// The tape. An op computes its result and then calls record() with a function that turns the
// gradient of the result into the gradients of its inputs; the engine accumulates them.
#pragma once

#include <functional>
#include <initializer_list>
#include <memory>
#include <vector>

#include "engine/tensor.h"

namespace graft {

// needs[i]: whether input i wants a gradient. A backward function leaves the others undefined.
using Needs = std::vector<bool>;
using Grads = std::vector<Tensor>;
using BackwardFn = std::function<Grads(const Tensor& grad, const Needs& needs)>;

struct Node {
  const char* name = "leaf";
  std::vector<std::shared_ptr<Node>> inputs;  // null where an input wants no gradient
  std::vector<Shape> input_shapes;
  std::vector<Dtype> input_dtypes;
  BackwardFn backward;  // empty for a leaf, and once it has run
  bool leaf = false;
  Tensor grad;  // a leaf's gathered gradient
  ~Node();      // iterative: a graph of any depth is freed without recursion
};

// Whether ops record. Off inside a NoGrad scope.
bool grad_enabled();
class NoGrad {
 public:
  NoGrad();
  ~NoGrad();
  NoGrad(const NoGrad&) = delete;
  NoGrad& operator=(const NoGrad&) = delete;

 private:
  bool before_;
};

// True when an op over these inputs has to record. Ops ask before they save anything.
bool any_requires_grad(std::initializer_list<const Tensor*> inputs);
bool any_requires_grad(const std::vector<Tensor>& inputs);

// Attaches a node to `output` when an input wants a gradient, and returns it. `name` must outlive
// the graph (a literal). `backward` must capture tensors through Saved.
Tensor record(const char* name, const std::vector<Tensor>& inputs, Tensor output,
              BackwardFn backward);

// A tensor kept for the backward pass: detached, and checked for in-place changes on use.
class Saved {
 public:
  Saved() = default;
  explicit Saved(const Tensor& tensor)
      : tensor_(tensor.detach()), version_(tensor.defined() ? tensor.storage()->version() : 0) {}
  // Throws when the tensor was changed in place after it was saved.
  const Tensor& get(const char* op) const;
  bool defined() const { return tensor_.defined(); }

 private:
  Tensor tensor_;
  uint64_t version_ = 0;
};

// Runs the tape from a one-element tensor (or with an explicit gradient of the same shape) and adds
// to grad() of every leaf it reaches. Frees each node's saved tensors as it passes.
void backward(const Tensor& output, const Tensor& grad = Tensor());

// Nodes recorded so far by this thread: lets tests assert that a frozen prefix records nothing.
int64_t recorded_nodes();

}  // namespace graft
