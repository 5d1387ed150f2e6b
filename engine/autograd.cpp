#include "engine/autograd.h"

#include <unordered_map>
#include <utility>

#include "engine/dispatch.h"
#include "engine/ops.h"
#include "engine/running.h"

namespace graft {
namespace {

thread_local bool recording = true;
thread_local int64_t node_count = 0;

// into += g; into a fresh tensor where somebody else can see the old one. When memory runs out,
// `into` is as it was.
void accumulate(Tensor& into, const Tensor& g) {
  const bool own = into.storage().use_count() == 1;
  Tensor result = own ? into : empty_like(into);
  const ConstReals before = into.reals();
  GRAFT_KERNEL(binary, into.device())
  (Binary::add, result.mutable_reals(), before, g.reals(), into.numel());
  into = std::move(result);
}

}  // namespace

// Releasing the last reference to a node releases its inputs, and so on: done with an explicit
// stack, because a graph can be deeper than the call stack.
Node::~Node() {
  std::vector<std::shared_ptr<Node>> pending = std::move(inputs);
  while (!pending.empty()) {
    std::shared_ptr<Node> node = std::move(pending.back());
    pending.pop_back();
    if (node == nullptr || node.use_count() > 1) continue;
    for (auto& input : node->inputs) pending.push_back(std::move(input));
    node->inputs.clear();
  }
}

bool grad_enabled() { return recording; }
NoGrad::NoGrad() : before_(std::exchange(recording, false)) {}
NoGrad::~NoGrad() { recording = before_; }

bool any_requires_grad(std::initializer_list<const Tensor*> inputs) {
  if (!recording) return false;
  for (const Tensor* input : inputs) {
    if (input->requires_grad()) return true;
  }
  return false;
}
bool any_requires_grad(const std::vector<Tensor>& inputs) {
  if (!recording) return false;
  for (const Tensor& input : inputs) {
    if (input.requires_grad()) return true;
  }
  return false;
}

Tensor record(const char* name, const std::vector<Tensor>& inputs, Tensor output,
              BackwardFn backward) {
  if (!any_requires_grad(inputs)) return output;
  auto node = std::make_shared<Node>();
  node->name = name;
  node->backward = std::move(backward);
  for (const Tensor& input : inputs) {
    node->inputs.push_back(input.node());
    node->input_shapes.push_back(input.shape());
    node->input_dtypes.push_back(input.dtype());
  }
  output.set_node(std::move(node));
  ++node_count;
  return output;
}

const Tensor& Saved::get(const char* op) const {
  GRAFT_CHECK(!tensor_.defined() || tensor_.storage()->version() == version_, op,
              ": a tensor saved for the backward pass was changed in place afterwards; clone() it "
              "before changing it");
  return tensor_;
}

void backward(const Tensor& output, const Tensor& grad) {
  GRAFT_CHECK(output.requires_grad(), "backward: nothing here wants a gradient");
  GRAFT_CHECK(grad.defined() || output.numel() == 1,
              "backward: expected one element (a loss), got ", output,
              "; pass the gradient explicitly");
  GRAFT_CHECK(!grad.defined() || (grad.shape() == output.shape() && grad.dtype() == output.dtype()),
              "backward: expected a gradient of ", output, ", got ", grad);
  NoGrad no_grad;
  const RunningOp running("backward");

  // How many nodes will send a gradient to each node.
  std::unordered_map<Node*, int64_t> waiting;
  std::vector<Node*> stack{output.node().get()};
  waiting[stack[0]] = 0;
  while (!stack.empty()) {
    Node* node = stack.back();
    stack.pop_back();
    for (const auto& input : node->inputs) {
      if (input != nullptr && waiting[input.get()]++ == 0) stack.push_back(input.get());
    }
  }

  std::unordered_map<Node*, Tensor> grads;
  std::vector<std::shared_ptr<Node>> ready{output.node()};
  grads[ready[0].get()] =
      grad.defined() ? grad.detach()
                     : cast(Tensor::full(output.shape(), 1.0f, output.device()), output.dtype());
  while (!ready.empty()) {
    const std::shared_ptr<Node> node = std::move(ready.back());
    ready.pop_back();
    const auto found = grads.find(node.get());
    Tensor g = found != grads.end() ? std::move(found->second) : Tensor();
    if (found != grads.end()) grads.erase(found);
    if (node->leaf) {
      if (g.defined()) {
        // A gradient that somebody else can see is copied: optimizers change grad() in place.
        if (!node->grad.defined()) {
          node->grad = g.storage().use_count() > 1 ? g.clone() : std::move(g);
        } else {
          accumulate(node->grad, g);
        }
      }
      continue;
    }
    Grads results(node->inputs.size());
    if (g.defined()) {
      GRAFT_CHECK(
          node->backward, node->name,
          ": backward ran through this op before and its saved tensors are gone; compute the "
          "forward pass again");
      const RunningOp op(node->name);
      Needs needs;
      for (const auto& input : node->inputs) needs.push_back(input != nullptr);
      results = node->backward(std::exchange(g, Tensor()), needs);
      node->backward = nullptr;
      GRAFT_CHECK(results.size() == node->inputs.size(), node->name, ": its backward returned ",
                  results.size(), " gradients for ", node->inputs.size(), " inputs");
    }
    for (size_t i = 0; i < results.size(); ++i) {
      const auto& input = node->inputs[i];
      if (input == nullptr) continue;
      if (results[i].defined()) {
        GRAFT_CHECK(results[i].shape() == node->input_shapes[i] &&
                        results[i].dtype() == node->input_dtypes[i],
                    node->name, ": its backward returned a gradient of ", results[i], " for input ",
                    i, " of ", node->input_dtypes[i], node->input_shapes[i]);
        Tensor& sum = grads[input.get()];
        if (sum.defined()) {
          accumulate(sum, results[i]);
        } else {
          sum = std::move(results[i]);
        }
      }
      results[i] = Tensor();
      if (--waiting[input.get()] == 0) ready.push_back(input);
    }
  }
}

int64_t recorded_nodes() { return node_count; }

}  // namespace graft
