// Everything that decides the outcome of a fine-tuning run, with the recipes that are good
// defaults.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <utility>
#include <vector>

#include "engine/data/loader.h"
#include "engine/data/transform.h"
#include "kernels/types.h"
#include "layers/lora.h"
#include "transfer/regularise/options.h"
#include "transfer/schedule.h"

namespace graft {

enum class OptimizerKind : uint8_t { sgd, adamw };
// What batch norms do while the model trains.
//   train         where the layer trains: batch statistics, and the running ones move
//   frozen_stats  the running statistics of the pre-trained weights are used and kept; weight and
//                 bias train where the layer does. Right for fine-tuning in few steps, because
//                 running statistics lag behind the weights.
//   frozen_all    the same, and weight and bias are kept, too
//   adapt_stats   batch statistics everywhere, in frozen layers, too: they adapt to the new images
//   explicit_rules  a plan's rules say it for each; one that no rule names is an error
enum class BatchNormPolicy : uint8_t {
  train,
  frozen_stats,
  frozen_all,
  adapt_stats,
  explicit_rules
};
enum class ClassWeighting : uint8_t { none, balanced };
// What picks the best epoch; between equals the lower validation loss. f1: of the positive class
// when there are two, else the macro mean.
enum class Criterion : uint8_t { accuracy, balanced_accuracy, f1, loss };

// Whether the activations behind frozen stages are computed once and kept, and as what. bf16 is
// half the size and rounds them.
enum class CacheKind : uint8_t { off, f32, bf16 };
struct CacheOptions {
  CacheKind kind = CacheKind::f32;
  // Where images are augmented: how many views of each are kept, epoch e seeing view e modulo
  // `views`. 0: augmented images are not kept.
  int64_t views = 0;
  int64_t memory = 1024;         // MiB, of all that a phase keeps; more goes to `folder`
  std::filesystem::path folder;  // files for this run and later ones; "": none
};

struct FinetuneOptions {
  // --- data
  std::filesystem::path data;  // class folders, folders train/ and val/ of them, or a CSV manifest
  double validation = 0.2;     // part held out by a stratified split where the data brings none
  // Draws the split. Not `seed`: runs that differ in `seed` are judged on the same images.
  uint64_t split_seed = 0;
  BadImage bad_image = BadImage::error;
  int64_t channels = 3;
  int64_t image_size = 0;  // 0: what the weights expect
  Augmentation augmentation;

  // --- model: converted weights, or an architecture to train from scratch
  std::filesystem::path weights;
  std::string architecture;
  float dropout = -1;  // before the head; negative: the architecture's own
  // Of the last block, less before it; negative: the architecture's own.
  float drop_path = -1;

  // --- what trains
  // A plan in phases (plan.h): a preset's name, or a file. Else one phase made of the next three
  // and head_multiplier.
  std::string preset;
  std::filesystem::path plan;
  std::vector<std::string> freeze;  // name patterns, see plan.h
  bool freeze_features = false;     // everything but the head
  BatchNormPolicy batch_norm = BatchNormPolicy::frozen_stats;
  // Where the rank is positive, adapters beside these layers learn in the place of everything but
  // the head, and of batch norms whose policy is `train`. Plans act on what is left to train.
  LoraOptions lora;
  // Share of a batch in the running statistics; negative: the architecture's own.
  // EfficientNet-Lite's 0.01 takes thousands of steps to forget its start: from scratch in fewer,
  // 0.1 is needed.
  float batch_norm_momentum = -1;

  // --- how
  int64_t epochs = 5;
  int64_t steps = 0;  // where positive, the run's length instead of epochs
  int64_t batch = 32;
  OptimizerKind optimizer = OptimizerKind::adamw;
  float learning_rate = 5e-4f;
  float head_multiplier = 1;   // learning rate of the head relative to the rest
  float momentum = 0.9f;       // SGD only
  float weight_decay = 0.01f;  // on matrices and filters; never on biases and norm parameters
  float clip_norm = 0;         // joint 2-norm of all gradients; 0: no clipping
  Schedule schedule;
  float label_smoothing = 0;
  ClassWeighting class_weights = ClassWeighting::none;
  RegulariseOptions regularise;

  // --- selection of the best epoch
  Criterion criterion = Criterion::accuracy;
  std::string positive_class;  // of two classes the one that F1 is about; "": the second name
  int64_t patience = 0;        // epochs without a better value before stopping; 0: never stop early

  // --- run
  uint64_t seed = 0;
  int64_t workers = 1;
  Device device;
  // Of the activations. bf16: half the memory, and on a GPU or a CPU with AVX512-BF16 or AMX faster
  // products; weights, their gradients, the loss and the optimizer stay f32.
  Dtype precision = Dtype::f32;
  CacheOptions cache;
  bool graphs = true;         // on CUDA: record steps whose shapes repeat
  std::filesystem::path out;  // the run folder; empty: nothing is written
  bool overwrite = false;     // replace the run that `out` holds
  double save_minutes = 5;    // resumable state at least this often

  // Recipes: all layers of pre-trained weights; only the head; random weights.
  static FinetuneOptions fine_tuning();
  static FinetuneOptions linear_probe();
  static FinetuneOptions from_scratch();
};

// Throws Error naming the option that is out of range or contradicts another.
void check_options(const FinetuneOptions& options);

// Everything but overwrite, as JSON text, and back; throws naming the key that is missing or
// malformed.
std::string options_to_json(const FinetuneOptions& options);
FinetuneOptions options_from_json(const std::string& text);

// The names of an enumeration's values in options, files and messages.
template <class E>
const std::vector<std::pair<std::string, E>>& names_of();
template <>
const std::vector<std::pair<std::string, OptimizerKind>>& names_of();
template <>
const std::vector<std::pair<std::string, BatchNormPolicy>>& names_of();
template <>
const std::vector<std::pair<std::string, ClassWeighting>>& names_of();
template <>
const std::vector<std::pair<std::string, Criterion>>& names_of();
template <>
const std::vector<std::pair<std::string, ScheduleKind>>& names_of();
template <>
const std::vector<std::pair<std::string, BadImage>>& names_of();
template <>
const std::vector<std::pair<std::string, CacheKind>>& names_of();

// The shortest decimal that reads back as the same float, as a double: 0.0005, not
// 0.0005000000237487257.
double decimal(float value);

template <class E>
std::string to_name(E value) {
  for (const auto& [name, candidate] : names_of<E>()) {
    if (candidate == value) return name;
  }
  return "?";
}

}  // namespace graft
