// The model card in safetensors metadata, and opening converted weights with it.
#include <nlohmann/json.hpp>

#include "engine/autograd.h"
#include "layers/models/delta.h"
#include "layers/models/zoo.h"

namespace graft {
namespace {

using Json = nlohmann::ordered_json;

constexpr const char* kArchitecture = "graft.architecture";
constexpr const char* kClasses = "graft.classes";
constexpr const char* kChannels = "graft.in_channels";
constexpr const char* kClassNames = "graft.class_names";
constexpr const char* kPreprocessing = "graft.preprocessing";
constexpr const char* kLicence = "graft.licence";
constexpr const char* kSource = "graft.source";
constexpr const char* kSourceHash = "graft.source_sha256";

// Folder names need not be valid UTF-8; what is not becomes U+FFFD.
std::string dumped(const Json& json) {
  return json.dump(-1, ' ', false, Json::error_handler_t::replace);
}

Json to_json(const Preprocessing& p) {
  return {{"resize", p.resize},
          {"crop", p.crop},
          {"crop_offset", p.crop_offset == CropOffset::floor ? "floor" : "nearest_even"},
          {"interpolation", p.interpolation == Interpolation::bicubic ? "bicubic" : "bilinear"},
          {"mean", p.mean},
          {"stddev", p.stddev}};
}

Preprocessing preprocessing_from(const Json& json) {
  Preprocessing p;
  p.resize = json.at("resize").get<int64_t>();
  p.crop = json.at("crop").get<int64_t>();
  const std::string interpolation = json.at("interpolation").get<std::string>();
  GRAFT_CHECK(interpolation == "bilinear" || interpolation == "bicubic",
              "interpolation: expected bilinear or bicubic, got ", interpolation);
  p.interpolation = interpolation == "bicubic" ? Interpolation::bicubic : Interpolation::bilinear;
  const std::string offset = json.value("crop_offset", "nearest_even");
  GRAFT_CHECK(offset == "floor" || offset == "nearest_even",
              "crop_offset: expected floor or nearest_even, got ", offset);
  p.crop_offset = offset == "floor" ? CropOffset::floor : CropOffset::nearest_even;
  p.mean = json.at("mean").get<std::array<float, 3>>();
  p.stddev = json.at("stddev").get<std::array<float, 3>>();
  GRAFT_CHECK(p.crop > 0 && p.crop <= 16384 && p.resize >= 0 && p.resize <= 16384,
              "resize and crop: expected sizes up to 16384, got ", p.resize, " and ", p.crop);
  for (const float deviation : p.stddev) {
    GRAFT_CHECK(deviation > 0, "stddev: expected positive numbers, got ", deviation);
  }
  return p;
}

StateDict state_of(const WeightFile& file) {
  StateDict state;
  for (const FileTensor& entry : file.tensors) state[entry.name] = entry.tensor;
  return state;
}

WeightFile read_converted(const std::filesystem::path& path, ModelCard& card) {
  WeightFile file = read_weights(path);
  for (const FileTensor& entry : file.tensors) {
    GRAFT_CHECK(!entry.name.starts_with("model/"), path.string(),
                ": holds the state of a training run, not a model; use best.safetensors or "
                "last.safetensors beside it");
  }
  GRAFT_CHECK(!is_delta(file), path.string(),
              ": holds only what LoRA added to a model; make the model with graft merge --weights "
              "BASE --delta ",
              path.filename().string(), " OUT.safetensors");
  try {
    card = card_of(file);
  } catch (const Error& error) {
    fail(path.string(), ": ", error.what());
  }
  GRAFT_CHECK(!card.architecture.empty(), path.string(),
              ": does not name its architecture; convert it first: graft convert ",
              path.filename().string(), " OUT.safetensors");
  return file;
}

// The filter of the first layer for grey images: what it gives for a colour image whose channels
// are equal.
Tensor summed_over_channels(const Tensor& filter, int64_t channels) {
  const NoGrad guard;
  const Tensor f32 = filter.dtype() == Dtype::f32 ? filter : cast(filter, Dtype::f32);
  Shape shape = filter.shape();
  shape[1] /= channels;
  return reshape(sum(reshape(f32, {shape[0], channels, -1}), {1}), shape);
}

}  // namespace

Metadata to_metadata(const ModelCard& card) {
  Metadata metadata{{"format", "pt"},  // tensors have PyTorch's layout; Hugging Face's readers ask
                    {kArchitecture, card.architecture},
                    {kClasses, std::to_string(card.classes)},
                    {kChannels, std::to_string(card.in_channels)},
                    {kPreprocessing, dumped(to_json(card.preprocessing))}};
  if (!card.class_names.empty()) metadata[kClassNames] = dumped(card.class_names);
  if (!card.licence.empty()) metadata[kLicence] = card.licence;
  if (!card.source.empty()) metadata[kSource] = card.source;
  if (!card.source_sha256.empty()) metadata[kSourceHash] = card.source_sha256;
  return metadata;
}

ModelCard card_of(const WeightFile& file) {
  ModelCard card;
  const auto read = [&](const char* key, const auto& use) {
    const auto found = file.metadata.find(key);
    if (found == file.metadata.end()) return;
    try {
      use(found->second);
    } catch (const std::exception& error) {
      fail("metadata ", key, ": ", error.what());
    }
  };
  const auto number = [](const std::string& value, int64_t least) {
    const int64_t result = Json::parse(value).get<int64_t>();
    GRAFT_CHECK(result >= least, "expected a number from ", least, ", got ", value);
    return result;
  };
  read(kArchitecture, [&](const std::string& value) { card.architecture = value; });
  if (!card.architecture.empty()) card.preprocessing = preprocessing_of(card.architecture);
  read(kClasses, [&](const std::string& value) { card.classes = number(value, 0); });
  read(kChannels, [&](const std::string& value) { card.in_channels = number(value, 1); });
  read(kClassNames, [&](const std::string& value) {
    card.class_names = Json::parse(value).get<std::vector<std::string>>();
    GRAFT_CHECK(static_cast<int64_t>(card.class_names.size()) == card.classes, "expected ",
                card.classes, " names, got ", card.class_names.size());
  });
  read(kPreprocessing, [&](const std::string& value) {
    card.preprocessing = preprocessing_from(Json::parse(value));
  });
  read(kLicence, [&](const std::string& value) { card.licence = value; });
  read(kSource, [&](const std::string& value) { card.source = value; });
  read(kSourceHash, [&](const std::string& value) { card.source_sha256 = value; });
  return card;
}

ModelCard read_card(const std::filesystem::path& path) {
  ModelCard card;
  read_converted(path, card);
  return card;
}

LoadedModel load_model(const std::filesystem::path& path) {
  LoadedModel loaded;
  const WeightFile file = read_converted(path, loaded.card);
  GRAFT_CHECK(loaded.card.classes > 0, path.string(),
              ": holds features without a classifier, so it cannot predict; train one with graft "
              "finetune --weights ",
              path.filename().string());
  loaded.model =
      make_blank_model(loaded.card.architecture,
                       {.classes = loaded.card.classes, .in_channels = loaded.card.in_channels});
  loaded.model->load_strict(state_of(file), path.string());
  loaded.model->eval();
  return loaded;
}

AdaptedModel load_for_task(const std::filesystem::path& path, int64_t classes, int64_t in_channels,
                           float dropout, RngKey key) {
  AdaptedModel result;
  ModelCard& card = result.card;
  const WeightFile file = read_converted(path, card);
  StateDict state = state_of(file);
  const ModelOptions options{.classes = classes, .in_channels = in_channels, .dropout = dropout};
  result.model = make_blank_model(card.architecture, options);
  ImageModel& model = *result.model;

  if (in_channels != card.in_channels) {
    GRAFT_CHECK(in_channels == 1, path.string(), ": takes images of ", card.in_channels,
                " channels and cannot be adapted to ", in_channels, "; use --channels ",
                card.in_channels);
    const std::string name = model.stem_name() + ".weight";
    const auto stem = state.find(name);
    GRAFT_CHECK(stem != state.end() && stem->second.rank() >= 2 &&
                    stem->second.dim(1) % card.in_channels == 0,
                path.string(), ": ", name, " is missing or does not have ", card.in_channels,
                " input channels");
    stem->second = summed_over_channels(stem->second, card.in_channels);
    // One channel is normalised with the mean of the three channels' numbers.
    for (auto* numbers : {&card.preprocessing.mean, &card.preprocessing.stddev}) {
      const auto& n = *numbers;
      if (n[0] != n[1] || n[1] != n[2]) numbers->fill((n[0] + n[1] + n[2]) / 3);
    }
    result.changes.push_back(text(name, ": ", card.in_channels, " input channels summed to one"));
    card.in_channels = in_channels;
  }
  if (classes == card.classes) {
    model.load_strict(state, path.string());
    return result;
  }
  const std::string head[] = {model.head_name() + ".weight", model.head_name() + ".bias"};
  for (const std::string& name : head) state.erase(name);
  LoadReport report = model.load_state_dict(state);
  std::erase_if(report.missing,
                [&](const std::string& name) { return name == head[0] || name == head[1]; });
  GRAFT_CHECK(report.clean(), path.string(), ": the tensors do not fit ", card.architecture, ":\n",
              report.message(), "convert the file again with graft convert");
  model.replace_head(classes, key);
  result.changes.push_back(text(model.head_name(), ": new head of ", classes,
                                " classes in place of ",
                                card.classes == 0 ? std::string("none") : text(card.classes)));
  card.classes = classes;
  card.class_names.clear();
  return result;
}

}  // namespace graft
