// The model zoo: architectures by name, the preprocessing that belongs to their weights, and the
// recognition of a checkpoint by its tensors.
#pragma once

#include <deque>
#include <memory>
#include <string>
#include <vector>

#include "engine/data/transform.h"
#include "engine/io/weights.h"
#include "layers/module.h"
#include "layers/stage.h"

namespace graft {

struct ModelOptions {
  int64_t classes = 1000;
  int64_t in_channels = 3;
  float dropout = -1;    // before the classifier; negative: the architecture's own
  float drop_path = -1;  // EfficientNet-Lite's, at the last block; negative: its own (0.2)
};

// An image classifier: features, then a linear head.
class ImageModel : public Module {
 public:
  // x (n, h, w, c), f32 or bf16 -> (n, feature_width) in the model's precision, the input of the
  // head (after pooling and dropout)
  Tensor features(const Tensor& x) { return features_after(0, x); }
  // features, f32 or bf16 -> (n, classes), f32
  virtual Tensor head(const Tensor& features) = 0;
  Tensor forward(const Tensor& x) override { return head(features(x)); }
  // The features as a chain, in the smallest parts that form one: the first stage takes images,
  // each other one what the one before it gives; the last gives (n, feature_width), before the
  // dropout.
  const std::deque<Stage>& stages() const { return stages_; }
  // Stages first..last-1, in the model's precision. x: the input of the first, f32 or bf16.
  Tensor run_stages(const Tensor& x, size_t first, size_t last) const;
  // features() and forward() from what the first `done` stages give.
  virtual Tensor features_after(size_t done, const Tensor& x) = 0;
  Tensor forward_after(size_t done, const Tensor& x) { return head(features_after(done, x)); }
  virtual int64_t feature_width() const = 0;
  virtual int64_t classes() const = 0;
  // The full name of the head's module ("fc", "classifier.1", "_fc") and of the first convolution.
  virtual std::string head_name() const = 0;
  virtual std::string stem_name() const = 0;
  // The type of the activations, f32 (the default) or bf16. Weights stay f32.
  void set_precision(Dtype precision);
  Dtype precision() const { return precision_; }
  // A freshly initialised head for another number of classes.
  virtual void replace_head(int64_t classes, RngKey key) = 0;
  // Draws all weights anew, from the distributions of PyTorch's constructor.
  virtual void initialise(RngKey key) = 0;

 protected:
  // To be called in the order of the chain. `modules`: those that `run` uses; they and `run` live
  // as long as the model.
  void add_stage(std::string name, std::vector<Module*> modules, Stage::Run run);
  // A stage that is one module; `name` is its full name.
  void add_stage(std::string name, Module& module);

 private:
  Dtype precision_ = Dtype::f32;
  std::deque<Stage> stages_;
};

// "resnet18" ... "resnet152", "mobilenet_v2" ("mobilenet_v2_x0.5" for a width multiplier),
// "efficientnet_lite0" ... "4", "small_cnn", "mlp". Weights are initialised from `key` as PyTorch's
// constructors do. Throws with the list of names when there is no such model.
std::unique_ptr<ImageModel> make_model(const std::string& architecture, const ModelOptions& options,
                                       RngKey key);
std::vector<std::string> architectures();
// The same model with its weights left unset, for a caller who fills them from a file.
std::unique_ptr<ImageModel> make_blank_model(const std::string& architecture,
                                             const ModelOptions& options);

// The architecture whose tensors these are, by names and shapes; "" when none fits.
std::string recognise(const WeightFile& file);

// What an architecture's published weights expect.
Preprocessing preprocessing_of(const std::string& architecture);

// What graft writes into and reads from safetensors metadata beside the tensors.
struct ModelCard {
  std::string architecture;
  int64_t classes = 0;
  int64_t in_channels = 3;
  std::vector<std::string> class_names;
  Preprocessing preprocessing;
  std::string licence;
  std::string source;  // file name of the converted checkpoint
  std::string source_sha256;
};
Metadata to_metadata(const ModelCard& card);
// Throws when a key is there but malformed; missing keys keep their defaults.
ModelCard card_of(const WeightFile& file);
// The card of converted weights; throws on what load_model() refuses, a missing head excepted.
ModelCard read_card(const std::filesystem::path& path);

// Opens converted weights: builds the model that the file's card names and loads it strictly.
struct LoadedModel {
  std::unique_ptr<ImageModel> model;
  ModelCard card;
};
LoadedModel load_model(const std::filesystem::path& path);
// The same for a new task: a new head when the class count differs, the stem summed over its input
// channels when the new data has one channel. Returns what was replaced, for people.
struct AdaptedModel {
  std::unique_ptr<ImageModel> model;
  ModelCard card;
  std::vector<std::string> changes;
};
AdaptedModel load_for_task(const std::filesystem::path& path, int64_t classes, int64_t in_channels,
                           float dropout, RngKey key);

}  // namespace graft
