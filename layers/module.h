// Module: a named tree of parameters, buffers and sub-modules. Names and file layouts are
// PyTorch's, so that a state_dict written here loads there with strict=True, and the reverse.
#pragma once

#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "engine/ops.h"
#include "engine/tensor.h"

namespace graft {

// Name -> tensor, in PyTorch's names and layouts.
using StateDict = std::map<std::string, Tensor>;

// How a tensor of ours stands in a file.
enum class FileLayout : uint8_t {
  same,
  conv_filter,  // OHWI in memory, OIHW in the file
  counter,      // rank-0 i64 in the file (num_batches_tracked), kept as it was
};

// What a parameter is to low-rank adapters (lora.h).
enum class AdapterRole : uint8_t {
  none,     // it trains in full
  adapter,  // it is one
  base,     // adapters learn in its place
};

struct NamedTensor {
  std::string name;  // full name: "layer1.0.conv1.weight"
  Tensor* tensor;    // the module's own tensor
  FileLayout layout;
  AdapterRole role = AdapterRole::none;
};

// The shape that the tensor has in a file, and the conversions between memory and file. A file may
// hold another element type (f16, bf16, f64): it is cast. The result can share storage with `file`.
Shape file_shape(const NamedTensor& entry);
Tensor to_file_layout(const NamedTensor& entry);  // a copy on the CPU
Tensor from_file_layout(const Tensor& file, FileLayout layout);

// What load_state_dict did. Anything in the three lists means that the file and the model differ.
struct LoadReport {
  std::vector<std::string> missing;     // the model wants it, the file lacks it
  std::vector<std::string> unexpected;  // the file has it, the model does not
  std::vector<std::string> mismatched;  // "fc.weight: the model wants [2, 512], the file has ..."
  bool clean() const { return missing.empty() && unexpected.empty() && mismatched.empty(); }
  std::string message() const;  // for people: a line an entry, the first 20 of a kind
};

class Tap;  // layers/tap.h

// What shows its output to taps: a module, or a stage of a model.
class Tappable {
 public:
  Tappable() = default;
  Tappable(const Tappable&) = delete;  // found by address
  Tappable& operator=(const Tappable&) = delete;
  bool tapped() const { return !taps_.empty(); }

 protected:
  ~Tappable() = default;
  Tensor shown(Tensor output) const {
    if (tapped()) show(output);
    return output;
  }

 private:
  friend class Tap;
  void show(const Tensor& output) const;
  mutable std::vector<Tap*> taps_;  // looking is no change
};

class Module : public Tappable {
 public:
  Module() = default;
  virtual ~Module() = default;

  virtual Tensor forward(const Tensor& x) = 0;
  // forward(), seen by the taps. Modules call their parts so.
  Tensor operator()(const Tensor& x) { return shown(forward(x)); }

  // Depth first, in registration order. Parameters are trainable tensors; buffers (running
  // statistics) are saved but not trained.
  std::vector<NamedTensor> named_parameters();
  std::vector<NamedTensor> named_buffers();
  // Both, module by module: the order of PyTorch's state_dict.
  std::vector<NamedTensor> named_tensors();
  // The sub-modules with their full names, this one first as "".
  std::vector<std::pair<std::string, Module*>> named_modules();

  void train(bool on = true);  // dropout on, batch statistics
  void eval() { train(false); }
  bool training() const { return training_; }
  void to(Device device);
  void zero_grad();
  // Of the parameters of this module itself that are no adapters.
  void set_role(AdapterRole role);

  // Copies, in PyTorch's layout, on the CPU.
  StateDict state_dict();
  // Fills every parameter and buffer that the file has with the right shape; never changes a shape.
  // The caller decides whether an unclean report is an error (load_strict throws). A missing
  // num_batches_tracked is not reported: older checkpoints lack it.
  LoadReport load_state_dict(const StateDict& file);
  void load_strict(const StateDict& file, const std::string& source);

 protected:
  // The tensors and modules are members of the derived class; registering them gives them names,
  // and makes a parameter want a gradient.
  void parameter(std::string name, Tensor& tensor, FileLayout layout = FileLayout::same,
                 AdapterRole role = AdapterRole::none);
  void remove_adapter_parameters();
  void buffer(std::string name, Tensor& tensor, FileLayout layout = FileLayout::same);
  void child(std::string name, Module& module);
  // For containers whose children are made at run time.
  void child(std::string name, std::shared_ptr<Module> module);

 private:
  struct Child {
    std::string name;
    Module* module;
    std::shared_ptr<Module> owner;  // set where the container owns it
  };
  template <class Visit>
  void walk(const std::string& prefix, const Visit& visit);

  std::vector<NamedTensor> parameters_, buffers_;
  std::vector<Child> children_;
  bool training_ = true;
};

}  // namespace graft
