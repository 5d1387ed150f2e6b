#include "transfer/options.h"

#include <charconv>
#include <cmath>
#include <nlohmann/json.hpp>

#include "engine/data/augment.h"
#include "kernels/error.h"

namespace graft {

template <>
const std::vector<std::pair<std::string, OptimizerKind>>& names_of() {
  static const std::vector<std::pair<std::string, OptimizerKind>> names{
      {"adamw", OptimizerKind::adamw}, {"sgd", OptimizerKind::sgd}};
  return names;
}
template <>
const std::vector<std::pair<std::string, BatchNormPolicy>>& names_of() {
  static const std::vector<std::pair<std::string, BatchNormPolicy>> names{
      {"train", BatchNormPolicy::train},
      {"frozen-stats", BatchNormPolicy::frozen_stats},
      {"frozen-all", BatchNormPolicy::frozen_all},
      {"adapt-stats", BatchNormPolicy::adapt_stats},
      {"explicit", BatchNormPolicy::explicit_rules}};
  return names;
}
template <>
const std::vector<std::pair<std::string, ClassWeighting>>& names_of() {
  static const std::vector<std::pair<std::string, ClassWeighting>> names{
      {"none", ClassWeighting::none}, {"balanced", ClassWeighting::balanced}};
  return names;
}
template <>
const std::vector<std::pair<std::string, Criterion>>& names_of() {
  static const std::vector<std::pair<std::string, Criterion>> names{
      {"accuracy", Criterion::accuracy},
      {"balanced_accuracy", Criterion::balanced_accuracy},
      {"f1", Criterion::f1},
      {"loss", Criterion::loss}};
  return names;
}
template <>
const std::vector<std::pair<std::string, ScheduleKind>>& names_of() {
  static const std::vector<std::pair<std::string, ScheduleKind>> names{
      {"constant", ScheduleKind::constant},
      {"cosine", ScheduleKind::cosine},
      {"one-cycle", ScheduleKind::one_cycle},
      {"step", ScheduleKind::step},
      {"polynomial", ScheduleKind::polynomial},
      {"slanted-triangular", ScheduleKind::slanted_triangular},
      {"plateau", ScheduleKind::plateau},
      {"dann", ScheduleKind::dann}};
  return names;
}
template <>
const std::vector<std::pair<std::string, BadImage>>& names_of() {
  static const std::vector<std::pair<std::string, BadImage>> names{{"error", BadImage::error},
                                                                   {"skip", BadImage::skip}};
  return names;
}
template <>
const std::vector<std::pair<std::string, CacheKind>>& names_of() {
  static const std::vector<std::pair<std::string, CacheKind>> names{
      {"off", CacheKind::off}, {"f32", CacheKind::f32}, {"bf16", CacheKind::bf16}};
  return names;
}

FinetuneOptions FinetuneOptions::fine_tuning() { return {}; }

FinetuneOptions FinetuneOptions::linear_probe() {
  FinetuneOptions options;
  options.freeze_features = true;
  options.augmentation.horizontal_flip = false;  // so that every image's features are computed once
  options.epochs = 100;                          // an epoch over stored features costs milliseconds
  options.learning_rate = 3e-3f;
  return options;
}

FinetuneOptions FinetuneOptions::from_scratch() {
  FinetuneOptions options;
  options.batch_norm = BatchNormPolicy::train;
  options.batch_norm_momentum = 0.1f;
  options.learning_rate = 2e-3f;
  return options;
}

void check_options(const FinetuneOptions& o) {
  const auto at_least = [](const char* name, double value, double least) {
    GRAFT_CHECK(std::isfinite(value) && value >= least, "finetune: ", name, " must be at least ",
                least, ", got ", value);
  };
  const auto within = [](const char* name, double value, double low, double high) {
    GRAFT_CHECK(value >= low && value <= high, "finetune: ", name, " must be from ", low, " to ",
                high, ", got ", value);
  };
  GRAFT_CHECK(!o.data.empty(),
              "finetune: no data given; name a folder with one sub-folder a class");
  GRAFT_CHECK(!o.weights.empty() || !o.architecture.empty(),
              "finetune: neither weights nor an architecture to train from scratch given");
  GRAFT_CHECK(o.weights.empty() || o.architecture.empty(),
              "finetune: an architecture is for training from scratch; the weights name their own");
  GRAFT_CHECK(!(o.weights.empty() && o.freeze_features),
              "finetune: frozen random features learn nothing; give weights or do not freeze");
  const bool moves = o.batch_norm == BatchNormPolicy::train ||
                     o.batch_norm == BatchNormPolicy::adapt_stats ||
                     o.batch_norm == BatchNormPolicy::explicit_rules;
  GRAFT_CHECK(!o.weights.empty() || moves,
              "finetune: from scratch the batch-norm statistics must be trained, not frozen");
  GRAFT_CHECK(o.preset.empty() || o.plan.empty(),
              "finetune: a preset is a plan; give one of the two");
  const bool rules = !o.preset.empty() || !o.plan.empty();
  GRAFT_CHECK(!rules || (o.freeze.empty() && !o.freeze_features && o.head_multiplier == 1),
              "finetune: a plan says what is frozen and how fast the head learns; put freeze and "
              "learning_rate rules into it instead of giving both");
  GRAFT_CHECK(o.plan.empty() || o.steps == 0,
              "finetune: the phases of a plan are counted in epochs; do not give steps");
  at_least("LoRA rank", static_cast<double>(o.lora.rank), 0);
  at_least("LoRA alpha", o.lora.alpha, 0);
  within("LoRA dropout", o.lora.dropout, 0, 0.9999);
  GRAFT_CHECK(
      o.lora.rank > 0 || (o.lora.alpha == 0 && o.lora.dropout == 0 && o.lora.layers.empty()),
      "finetune: LoRA's alpha, dropout and layers say nothing without its rank; give a rank");
  GRAFT_CHECK(o.lora.rank == 0 || !o.weights.empty(),
              "finetune: LoRA adapts pre-trained weights, and from scratch there are none");
  GRAFT_CHECK(o.lora.rank == 0 || !o.freeze_features,
              "finetune: frozen features leave LoRA nothing to adapt; give one of the two");
  GRAFT_CHECK(o.channels == 1 || o.channels == 3, "finetune: channels must be 1 or 3, got ",
              o.channels);
  within("validation", o.validation, 0, 0.9);
  GRAFT_CHECK(o.image_size == 0 || (o.image_size >= 8 && o.image_size <= 4096),
              "finetune: image size must be from 8 to 4096, got ", o.image_size);
  GRAFT_CHECK(o.batch_norm_momentum <= 1, "finetune: batch-norm momentum must be at most 1, got ",
              o.batch_norm_momentum);
  GRAFT_CHECK(o.dropout < 1, "finetune: dropout must be below 1, got ", o.dropout);
  GRAFT_CHECK(o.drop_path < 1, "finetune: drop path must be below 1, got ", o.drop_path);
  check_augmentation(o.augmentation);
  if (o.steps <= 0) at_least("epochs", static_cast<double>(o.epochs), 1);
  at_least("steps", static_cast<double>(o.steps), 0);
  at_least("batch", static_cast<double>(o.batch), 1);
  at_least("learning rate", o.learning_rate, 0);
  at_least("head multiplier", o.head_multiplier, 0);
  at_least("weight decay", o.weight_decay, 0);
  at_least("clipping norm", o.clip_norm, 0);
  at_least("patience", static_cast<double>(o.patience), 0);
  at_least("workers", static_cast<double>(o.workers), 0);
  at_least("minutes between saves", o.save_minutes, 0);
  within("cache views", static_cast<double>(o.cache.views), 0, 1000);
  within("cache memory", static_cast<double>(o.cache.memory), 0, 1e9);
  GRAFT_CHECK(is_real(o.precision), "finetune: precision must be f32 or bf16, got ", o.precision);
  within("momentum", o.momentum, 0, 0.9999);
  within("label smoothing", o.label_smoothing, 0, 0.9999);
  within("warm-up", o.schedule.warmup, 0, 1);
  within("rise", o.schedule.rise, 0, 1);
  at_least("div factor", o.schedule.div_factor, 1);
  at_least("final div factor", o.schedule.final_div_factor, 1);
  within("gamma", o.schedule.gamma, 0, 1);
  within("step part", o.schedule.step_part, 1e-6, 1);
  at_least("power", o.schedule.power, 0);
  at_least("ratio", o.schedule.ratio, 1);
  at_least("plateau epochs", static_cast<double>(o.schedule.plateau_epochs), 1);
  at_least("alpha", o.schedule.alpha, 0);
  at_least("beta", o.schedule.beta, 0);
  check_regularisation(o);
}

namespace {

using Json = nlohmann::ordered_json;

// Calls visit(key, member) for every member that is saved: one list for writing and for reading.
template <class Options, class Visit>
void each_member(Options& o, const Visit& visit) {
  visit("data", o.data);
  visit("validation", o.validation);
  visit("split_seed", o.split_seed);
  visit("bad_image", o.bad_image);
  visit("channels", o.channels);
  visit("image_size", o.image_size);
  visit("random_resized_crop", o.augmentation.random_resized_crop);
  visit("min_scale", o.augmentation.min_scale);
  visit("max_scale", o.augmentation.max_scale);
  visit("min_ratio", o.augmentation.min_ratio);
  visit("max_ratio", o.augmentation.max_ratio);
  visit("horizontal_flip", o.augmentation.horizontal_flip);
  visit("vertical_flip", o.augmentation.vertical_flip);
  visit("brightness", o.augmentation.brightness);
  visit("contrast", o.augmentation.contrast);
  visit("saturation", o.augmentation.saturation);
  visit("hue", o.augmentation.hue);
  visit("randaugment_ops", o.augmentation.randaugment_ops);
  visit("randaugment_magnitude", o.augmentation.randaugment_magnitude);
  visit("weights", o.weights);
  visit("architecture", o.architecture);
  visit("dropout", o.dropout);
  visit("drop_path", o.drop_path);
  visit("preset", o.preset);
  visit("plan", o.plan);
  visit("freeze", o.freeze);
  visit("freeze_features", o.freeze_features);
  visit("batch_norm", o.batch_norm);
  visit("batch_norm_momentum", o.batch_norm_momentum);
  visit("lora_rank", o.lora.rank);
  visit("lora_alpha", o.lora.alpha);
  visit("lora_dropout", o.lora.dropout);
  visit("lora_layers", o.lora.layers);
  visit("epochs", o.epochs);
  visit("steps", o.steps);
  visit("batch", o.batch);
  visit("optimizer", o.optimizer);
  visit("learning_rate", o.learning_rate);
  visit("head_multiplier", o.head_multiplier);
  visit("momentum", o.momentum);
  visit("weight_decay", o.weight_decay);
  visit("clip_norm", o.clip_norm);
  visit("schedule", o.schedule.kind);
  visit("warmup", o.schedule.warmup);
  visit("rise", o.schedule.rise);
  visit("div_factor", o.schedule.div_factor);
  visit("final_div_factor", o.schedule.final_div_factor);
  visit("gamma", o.schedule.gamma);
  visit("step_part", o.schedule.step_part);
  visit("power", o.schedule.power);
  visit("ratio", o.schedule.ratio);
  visit("plateau_epochs", o.schedule.plateau_epochs);
  visit("alpha", o.schedule.alpha);
  visit("beta", o.schedule.beta);
  visit("label_smoothing", o.label_smoothing);
  visit("class_weights", o.class_weights);
  visit("l2_sp", o.regularise.l2_sp);
  visit("l2_sp_head", o.regularise.l2_sp_head);
  visit("delta", o.regularise.delta);
  visit("delta_images", o.regularise.delta_images);
  visit("bss", o.regularise.bss);
  visit("bss_values", o.regularise.bss_values);
  visit("co_tuning", o.regularise.co_tuning);
  visit("stoch_norm", o.regularise.stoch_norm);
  visit("mixup", o.regularise.mixup);
  visit("cutmix", o.regularise.cutmix);
  visit("ema", o.regularise.ema);
  visit("swa", o.regularise.swa);
  visit("criterion", o.criterion);
  visit("positive_class", o.positive_class);
  visit("patience", o.patience);
  visit("seed", o.seed);
  visit("workers", o.workers);
  visit("device", o.device);
  visit("precision", o.precision);
  visit("cache", o.cache.kind);
  visit("cache_views", o.cache.views);
  visit("cache_memory", o.cache.memory);
  visit("cache_dir", o.cache.folder);
  visit("graphs", o.graphs);
  visit("save_minutes", o.save_minutes);
}

Json as_json(const std::filesystem::path& path) {
  // A run is resumed from any folder.
  return path.empty() ? Json("") : Json(std::filesystem::absolute(path).string());
}
Json as_json(Device device) { return text(device); }
Json as_json(Dtype dtype) { return text(dtype); }
Json as_json(float value) { return decimal(value); }
template <class T>
Json as_json(const T& value) {
  if constexpr (std::is_enum_v<T>) {
    return to_name(value);
  } else {
    return value;
  }
}

void read(const Json& json, std::filesystem::path& path) { path = json.get<std::string>(); }
void read(const Json& json, Device& device) {
  const std::string name = json.get<std::string>();
  if (name == "cpu") {
    device = kCpu;
  } else {
    device = {Device::Kind::cuda, std::stoi(name.substr(name.find(':') + 1))};
  }
}
void read(const Json& json, Dtype& dtype) {
  const std::string name = json.get<std::string>();
  GRAFT_CHECK(name == "f32" || name == "bf16", "expected f32 or bf16, got \"", name, "\"");
  dtype = name == "f32" ? Dtype::f32 : Dtype::bf16;
}
template <class T>
void read(const Json& json, T& value) {
  if constexpr (std::is_enum_v<T>) {
    const std::string name = json.get<std::string>();
    for (const auto& [known, candidate] : names_of<T>()) {
      if (known == name) {
        value = candidate;
        return;
      }
    }
    fail("\"", name, "\" is not one of its values");
  } else {
    value = json.get<T>();
  }
}

}  // namespace

double decimal(float value) {
  char digits[32];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  double shortest = 0;
  std::from_chars(digits, end, shortest);
  return shortest;
}

std::string options_to_json(const FinetuneOptions& options) {
  Json result;
  each_member(options, [&](const char* key, const auto& member) { result[key] = as_json(member); });
  return result.dump();
}

FinetuneOptions options_from_json(const std::string& json) {
  FinetuneOptions options;
  const Json values = Json::parse(json, nullptr, false);
  GRAFT_CHECK(values.is_object(), "run options: not a JSON object");
  each_member(options, [&](const char* key, auto& member) {
    GRAFT_CHECK(values.contains(key), "run options: \"", key,
                "\" is missing; was the run made by another version of graft?");
    try {
      read(values[key], member);
    } catch (const std::exception& error) {
      fail("run options: \"", key, "\": ", error.what());
    }
  });
  return options;
}

}  // namespace graft
