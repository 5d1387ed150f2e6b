#include "layers/models/recognise.h"

#include <algorithm>

namespace graft {

Fit fit(const std::string& architecture, const std::map<std::string, Shape>& file) {
  Fit result;
  result.architecture = architecture;
  const ModelOptions options;
  const std::unique_ptr<ImageModel> model = make_blank_model(architecture, options);
  const std::string head_weight = model->head_name() + ".weight";
  const std::string head_bias = model->head_name() + ".bias";
  const std::string stem_weight = model->stem_name() + ".weight";

  const auto head = file.find(head_weight);
  const bool headless = head == file.end() && file.count(head_bias) == 0;
  if (head != file.end() && head->second.size() == 2) result.classes = head->second[0];
  // Whatever follows the filter's first dimension counts input channels, times the pixels of an
  // mlp.
  const auto stem = file.find(stem_weight);

  std::map<std::string, bool> known;
  for (const NamedTensor& entry : model->named_tensors()) {
    known[entry.name] = true;
    Shape wanted = file_shape(entry);
    if (entry.name == head_weight || entry.name == head_bias) {
      if (headless) continue;
      if (result.classes > 0) wanted[0] = result.classes;
    }
    if (entry.name == stem_weight && stem != file.end()) {
      const int64_t per_channel = wanted[1] / options.in_channels;
      const Shape& have = stem->second;
      if (have.size() == wanted.size() && have[1] > 0 && have[1] % per_channel == 0) {
        result.in_channels = have[1] / per_channel;
        wanted[1] = have[1];
      }
    }
    const auto found = file.find(entry.name);
    if (found == file.end()) {
      if (entry.layout != FileLayout::counter) result.missing.push_back(entry.name);
    } else if (found->second != wanted) {
      result.mismatched.push_back(text(entry.name, ": ", architecture, " wants ", wanted,
                                       ", the file has ", found->second));
    } else {
      ++result.matching;
    }
  }
  for (const auto& [name, shape] : file) {
    if (known.count(name) == 0) result.left_over.push_back(name);
  }
  return result;
}

std::vector<Fit> fits(const std::map<std::string, Shape>& file) {
  std::vector<std::string> candidates = architectures();
  for (const char* width : {"0.25", "0.35", "0.5", "0.75", "1.3", "1.4"}) {
    candidates.push_back(std::string("mobilenet_v2_x") + width);
  }
  std::vector<Fit> all;
  for (const std::string& candidate : candidates) all.push_back(fit(candidate, file));
  std::stable_sort(all.begin(), all.end(), [](const Fit& a, const Fit& b) {
    const auto wrong = [](const Fit& f) {
      return f.missing.size() + f.mismatched.size() + f.left_over.size();
    };
    return wrong(a) < wrong(b);
  });
  return all;
}

std::string recognise(const WeightFile& file) {
  std::map<std::string, Shape> shapes;
  for (const FileTensor& entry : file.tensors) shapes[entry.name] = entry.tensor.shape();
  const std::vector<Fit> all = fits(shapes);
  return all.front().exact() ? all.front().architecture : "";
}

}  // namespace graft
