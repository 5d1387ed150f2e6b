#include "layers/module.h"

#include <algorithm>
#include <set>

#include "engine/autograd.h"

namespace graft {
namespace {

std::string joined(const std::string& prefix, const std::string& name) {
  return prefix.empty() ? name : (name.empty() ? prefix : prefix + "." + name);
}
NamedTensor within(const std::string& prefix, NamedTensor entry) {
  entry.name = joined(prefix, entry.name);
  return entry;
}

}  // namespace

Shape file_shape(const NamedTensor& entry) {
  const Shape& s = entry.tensor->shape();
  if (entry.layout == FileLayout::conv_filter) return {s[0], s[3], s[1], s[2]};
  return s;
}

Tensor to_file_layout(const NamedTensor& entry) {
  const NoGrad guard;
  const Tensor here = entry.tensor->detach().to(kCpu);
  if (entry.layout == FileLayout::conv_filter) return permute(here, {0, 3, 1, 2});
  return here.clone();
}

Tensor from_file_layout(const Tensor& file, FileLayout layout) {
  const NoGrad guard;
  const Dtype wanted = layout == FileLayout::counter ? Dtype::i64 : Dtype::f32;
  const Tensor same_type = file.dtype() == wanted ? file : cast(file, wanted);
  if (layout == FileLayout::conv_filter) return permute(same_type, {0, 2, 3, 1});
  return same_type;
}

std::string LoadReport::message() const {
  constexpr size_t kListed = 20;  // of a kind; more would push the remedy off the screen
  std::string lines;
  const auto list = [&](const std::string& kind, const std::vector<std::string>& names) {
    for (size_t i = 0; i < std::min(names.size(), kListed); ++i) {
      lines += "  " + kind + names[i] + "\n";
    }
    if (names.size() > kListed) lines += text("  and ", names.size() - kListed, " more\n");
  };
  list("missing in the file: ", missing);
  list("left over in the file: ", unexpected);
  list("", mismatched);
  return lines;
}

template <class Visit>
void Module::walk(const std::string& prefix, const Visit& visit) {
  visit(prefix, *this);
  for (const Child& entry : children_) entry.module->walk(joined(prefix, entry.name), visit);
}

std::vector<NamedTensor> Module::named_parameters() {
  std::vector<NamedTensor> all;
  walk("", [&](const std::string& prefix, Module& module) {
    for (const NamedTensor& own : module.parameters_) all.push_back(within(prefix, own));
  });
  return all;
}

std::vector<NamedTensor> Module::named_buffers() {
  std::vector<NamedTensor> all;
  walk("", [&](const std::string& prefix, Module& module) {
    for (const NamedTensor& own : module.buffers_) all.push_back(within(prefix, own));
  });
  return all;
}

std::vector<NamedTensor> Module::named_tensors() {
  std::vector<NamedTensor> all;
  walk("", [&](const std::string& prefix, Module& module) {
    for (const auto* list : {&module.parameters_, &module.buffers_}) {
      for (const NamedTensor& own : *list) all.push_back(within(prefix, own));
    }
  });
  return all;
}

std::vector<std::pair<std::string, Module*>> Module::named_modules() {
  std::vector<std::pair<std::string, Module*>> all;
  walk("", [&](const std::string& prefix, Module& module) { all.emplace_back(prefix, &module); });
  return all;
}

void Module::train(bool on) {
  walk("", [on](const std::string&, Module& module) { module.training_ = on; });
}

void Module::to(Device device) {
  for (const NamedTensor& entry : named_tensors()) {
    // Counters are read and written by the host only.
    if (entry.layout == FileLayout::counter || entry.tensor->device() == device) continue;
    const bool trainable = entry.tensor->requires_grad();
    *entry.tensor = entry.tensor->detach().to(device);
    entry.tensor->set_requires_grad(trainable);
  }
}

void Module::zero_grad() {
  for (const NamedTensor& entry : named_parameters()) entry.tensor->zero_grad();
}

void Module::set_role(AdapterRole role) {
  for (NamedTensor& own : parameters_) {
    if (own.role != AdapterRole::adapter) own.role = role;
  }
}

StateDict Module::state_dict() {
  StateDict state;
  for (const NamedTensor& entry : named_tensors()) state[entry.name] = to_file_layout(entry);
  return state;
}

LoadReport Module::load_state_dict(const StateDict& file) {
  LoadReport report;
  std::set<std::string> known;
  for (const NamedTensor& entry : named_tensors()) {
    known.insert(entry.name);
    const auto found = file.find(entry.name);
    if (found == file.end()) {
      // PyTorch before 0.4.1 wrote no num_batches_tracked; nothing is computed from it here.
      if (entry.layout != FileLayout::counter) report.missing.push_back(entry.name);
      continue;
    }
    const Tensor& source = found->second;
    if (source.shape() != file_shape(entry)) {
      report.mismatched.push_back(text(entry.name, ": the model wants ", file_shape(entry),
                                       ", the file has ", source.shape()));
      continue;
    }
    entry.tensor->copy_from(from_file_layout(source, entry.layout));
  }
  for (const auto& [name, tensor] : file) {
    if (known.count(name) == 0) report.unexpected.push_back(name);
  }
  return report;
}

void Module::load_strict(const StateDict& file, const std::string& source) {
  const LoadReport report = load_state_dict(file);
  GRAFT_CHECK(report.clean(), source, ": the tensors do not fit the model:\n", report.message(),
              "use a file of the same architecture and class count, or convert it again with "
              "graft convert");
}

void Module::parameter(std::string name, Tensor& tensor, FileLayout layout, AdapterRole role) {
  tensor.set_requires_grad();
  parameters_.push_back({std::move(name), &tensor, layout, role});
}
void Module::remove_adapter_parameters() {
  std::erase_if(parameters_,
                [](const NamedTensor& own) { return own.role == AdapterRole::adapter; });
}
void Module::buffer(std::string name, Tensor& tensor, FileLayout layout) {
  buffers_.push_back({std::move(name), &tensor, layout});
}
void Module::child(std::string name, Module& module) {
  children_.push_back({std::move(name), &module, nullptr});
}
void Module::child(std::string name, std::shared_ptr<Module> module) {
  Module* address = module.get();
  children_.push_back({std::move(name), address, std::move(module)});
}

}  // namespace graft
