// Fine-tuning end to end on pictures that the test makes: learning, repeatability, exact resume,
// freezing, selection of the best epoch.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <fstream>
#include <functional>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "kernels/device.h"
#include "kernels/error.h"
#include "tests/support/lost_device.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "transfer/evaluation.h"
#include "transfer/finetune.h"
#include "transfer/plan.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

// One set of pictures for all tests: 24 a class, 16 x 16.
const fs::path& pictures() {
  static const TemporaryFolder folder;
  static const fs::path data = [] {
    testing::write_stripes(folder / "stripes", 24, 16, 7);
    return folder / "stripes";
  }();
  return data;
}

FinetuneOptions small_run(const fs::path& out) {
  FinetuneOptions options = FinetuneOptions::from_scratch();
  options.data = pictures();
  options.architecture = "small_cnn";
  options.image_size = 16;
  options.validation = 0.25;
  options.batch = 8;
  options.epochs = 3;
  options.out = out;
  options.workers = 0;
  options.device = test::test_device();
  return options;
}

// Asks for a stop after so many batches of any kind.
struct StopAfter : Observer {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};

std::string without_timing(const fs::path& metrics) {
  std::string all;
  std::ifstream file(metrics);
  for (std::string line; std::getline(file, line);) {
    all += line.substr(0, line.find(",\"timing\"")) + "\n";
  }
  return all;
}

void check_same_run(const fs::path& a, const fs::path& b) {
  CHECK(file_bytes(a / "best.safetensors") == file_bytes(b / "best.safetensors"));
  CHECK(file_bytes(a / "last.safetensors") == file_bytes(b / "last.safetensors"));
  CHECK(without_timing(a / "metrics.jsonl") == without_timing(b / "metrics.jsonl"));
}

TEST_CASE("it learns, and the files hold what the result says") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.epochs = 8;
  const FinetuneResult result = finetune(options);
  CHECK_FALSE(result.interrupted);
  REQUIRE(result.epochs.size() == 8);
  REQUIRE(result.best() != nullptr);
  CHECK(result.epochs.back().train_accuracy > 0.9);
  CHECK(result.epochs.back().train_loss < result.epochs.front().train_loss);
  CHECK(result.best()->validation->accuracy > 0.9);

  LoadedModel loaded = load_model(folder / "run" / "best.safetensors");
  CHECK(loaded.card.architecture == "small_cnn");
  CHECK(loaded.card.class_names == std::vector<std::string>{"across", "down"});
  CHECK(loaded.card.preprocessing.crop == 16);

  // The file's model, judged anew, gives the best epoch's numbers.
  const TaskData data = read_task_data(options.data, options.validation, options.split_seed);
  LoaderOptions reading;
  reading.workers = 0;
  const auto batches =
      image_batches(data.all, data.split.held_out, loaded.card.preprocessing, {}, reading);
  loaded.model->eval();
  const Evaluation judged = evaluate([&](const Tensor& x) { return loaded.model->forward(x); }, 2,
                                     1, *batches, kCpu, [](int64_t) { return true; });
  CHECK(judged.metrics.accuracy == result.best()->validation->accuracy);
  CHECK(judged.loss == doctest::Approx(result.best()->validation->loss).epsilon(1e-6));
}

TEST_CASE("bf16 trains f32 weights to the losses of f32") {
  const TemporaryFolder folder;
  std::vector<FinetuneResult> results;
  for (const Dtype precision : {Dtype::f32, Dtype::bf16}) {
    FinetuneOptions options = small_run(folder / text(precision));
    options.precision = precision;
    results.push_back(finetune(options));
  }
  const FinetuneResult &full = results[0], &half = results[1];
  for (size_t i = 0; i < full.epochs.size(); ++i) {
    const double a = full.epochs[i].train_loss, b = half.epochs[i].train_loss;
    MESSAGE("epoch ", i + 1, ": ", a, " and ", b);
    CHECK(std::abs(a - b) < 0.02);
    CHECK(a != b);
  }
  CHECK(half.epochs.back().train_loss < 0.9 * half.epochs.front().train_loss);
  for (const FileTensor& entry : read_weights(folder / "bf16" / "last.safetensors").tensors) {
    CHECK_MESSAGE(entry.tensor.dtype() != Dtype::bf16, entry.name);
  }
}

TEST_CASE("the same seed gives the same bytes, with any number of workers") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "one");
  finetune(options);
  options.out = folder / "two";
  options.workers = 2;
  finetune(options);
  check_same_run(folder / "one", folder / "two");

  options.out = folder / "three";
  options.seed = 1;
  finetune(options);
  CHECK(file_bytes(folder / "one" / "last.safetensors") !=
        file_bytes(folder / "three" / "last.safetensors"));
}

// 36 images in batches of 8: the last one of an epoch has another shape and runs by itself.
TEST_CASE("recorded steps end with the bytes of steps run one by one") {
  if (test::test_device().is_cpu()) return;
  const TemporaryFolder folder;
  for (const OptimizerKind optimizer : {OptimizerKind::adamw, OptimizerKind::sgd}) {
    FinetuneOptions options = small_run(folder / "recorded");
    options.optimizer = optimizer;
    options.dropout = 0.3f;
    options.overwrite = true;
    // A norm that some steps exceed and others do not.
    options.clip_norm = optimizer == OptimizerKind::sgd ? 1.0f : 0.0f;
    finetune(options);
    options.out = folder / "single";
    options.graphs = false;
    finetune(options);
    check_same_run(folder / "recorded", folder / "single");
    if (optimizer != OptimizerKind::sgd) continue;
    options.out = folder / "unclipped";
    options.clip_norm = 0;
    finetune(options);
    CHECK(file_bytes(folder / "unclipped" / "last.safetensors") !=
          file_bytes(folder / "single" / "last.safetensors"));
  }
}

TEST_CASE("a resumed run ends with the bytes of an uninterrupted one") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "whole");
  SUBCASE("AdamW, one-cycle, augmented") {
    options.augmentation.random_resized_crop = true;
    options.augmentation.brightness = 0.2;
    options.clip_norm = 1;
  }
  SUBCASE("SGD, cosine, balanced weights, smoothing") {
    options.optimizer = OptimizerKind::sgd;
    options.learning_rate = 0.05f;
    options.schedule = {.kind = ScheduleKind::cosine, .warmup = 0.1};
    options.class_weights = ClassWeighting::balanced;
    options.label_smoothing = 0.1f;
  }
  SUBCASE("a number of steps that ends in mid-epoch") { options.steps = 11; }
  const FinetuneResult whole = finetune(options);

  // 36 images to train and 12 to validate: an epoch is 5 training and 2 validation batches.
  for (const int64_t stop : {1, 3, 5, 6, 7, 8, 12}) {
    CAPTURE(stop);
    options.out = folder / ("stopped" + std::to_string(stop));
    StopAfter first(stop);
    FinetuneResult part = finetune(options, first);
    CHECK(part.interrupted);
    // A second interruption in the resumed run.
    StopAfter second(2);
    part = resume(options.out, {}, second);
    CHECK(part.interrupted);
    Observer quiet;
    const FinetuneResult rest = resume(options.out, {}, quiet);
    CHECK_FALSE(rest.interrupted);
    CHECK(rest.steps == whole.steps);
    CHECK(rest.best_epoch == whole.best_epoch);
    check_same_run(folder / "whole", options.out);
  }
}

TEST_CASE("resuming a finished run changes nothing") {
  const TemporaryFolder folder;
  const FinetuneResult done = finetune(small_run(folder / "run"));
  const std::string state = file_bytes(folder / "run" / "state.safetensors");
  Observer quiet;
  const FinetuneResult again = resume(folder / "run", {}, quiet);
  CHECK(again.epochs.size() == done.epochs.size());
  CHECK(again.model->state_dict().at("fc.weight").to_vector<float>() ==
        done.model->state_dict().at("fc.weight").to_vector<float>());
  CHECK(file_bytes(folder / "run" / "state.safetensors") == state);
}

TEST_CASE("a crash between two files repeats the lost steps") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "whole");
  finetune(options);
  options.out = folder / "crashed";
  StopAfter stop(9);
  finetune(options, stop);
  const std::string old_state = file_bytes(options.out / "state.safetensors");
  Observer quiet;
  resume(options.out, {}, quiet);
  // Newer weights and metrics beside the older state.
  write_file_atomically(options.out / "state.safetensors", old_state);
  resume(options.out, {}, quiet);
  check_same_run(folder / "whole", options.out);
}

TEST_CASE("a lost device is one message, and the resumed run ends with the same bytes") {
  if (test::test_device().is_cpu() || !cuda::is_simulated()) return;
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "whole");
  options.epochs = 2;
  options.save_minutes = 0;  // after every step
  finetune(options);
  for (const int64_t nth_call : {1, 40}) {
    CAPTURE(nth_call);
    options.out = folder / ("lost" + std::to_string(nth_call));
    test::LoseDevice<Observer> observer(3, nth_call);
    std::string message;
    try {
      finetune(options, observer);
    } catch (const Error& error) {
      message = error.what();
    }
    cuda::reset_simulated_device();
    CAPTURE(message);
    CHECK(message.find("CUDA reports cudaErrorLaunchFailure") != std::string::npos);
    CHECK(message.ends_with("graft finetune --resume " + options.out.string()));
    Observer quiet;
    resume(options.out, {}, quiet);
    check_same_run(folder / "whole", options.out);
  }
}

// Memory runs out at some allocation of a step; the run is there to be continued.
TEST_CASE("running out of memory while training leaves a run that resumes") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "whole");
  options.epochs = 2;
  finetune(options);
  struct RunOut : Observer {
    void progress(const Progress&) override {
      if (--left == 0) fail_allocation(12);
    }
    int64_t left = 3;
  } observer;
  options.out = folder / "short";
  std::string message;
  try {
    finetune(options, observer);
  } catch (const Error& error) {
    message = error.what();
  }
  fail_allocation(0);
  CAPTURE(message);
  CHECK(message.starts_with("out of memory on "));
  CHECK(message.ends_with("graft finetune --resume " + options.out.string()));
  Observer quiet;
  resume(options.out, {}, quiet);
  check_same_run(folder / "whole", options.out);
}

// Weights to start from, made once by a short run.
const fs::path& pretrained() {
  static const TemporaryFolder folder;
  static const fs::path weights = [] {
    finetune(small_run(folder / "base"));
    return folder / "base" / "best.safetensors";
  }();
  return weights;
}

FinetuneOptions small_finetuning(const fs::path& out, FinetuneOptions options) {
  const FinetuneOptions base = small_run(out);
  options.data = base.data;
  options.weights = pretrained();
  options.validation = base.validation;
  options.batch = base.batch;
  options.out = out;
  options.workers = 0;
  options.epochs = std::min<int64_t>(options.epochs, 4);
  return options;
}

std::vector<std::string> changed_tensors(const fs::path& before, const fs::path& after) {
  const WeightFile a = read_weights(before), b = read_weights(after);
  std::vector<std::string> changed;
  for (const FileTensor& entry : a.tensors) {
    const Tensor* other = b.find(entry.name);
    REQUIRE(other != nullptr);
    REQUIRE(other->bytes() == entry.tensor.bytes());
    const char* x = static_cast<const char*>(entry.tensor.raw());
    if (!std::equal(x, x + entry.tensor.bytes(), static_cast<const char*>(other->raw()))) {
      changed.push_back(entry.name);
    }
  }
  std::sort(changed.begin(), changed.end());
  return changed;
}

TEST_CASE("what is frozen is bit-identical afterwards, statistics and counters included") {
  const TemporaryFolder folder;
  const fs::path last = folder / "run" / "last.safetensors";
  FinetuneOptions options = small_finetuning(folder / "run", FinetuneOptions::fine_tuning());
  SUBCASE("batch-norm statistics") {
    finetune(options);
    const std::vector<std::string> changed = changed_tensors(pretrained(), last);
    for (const std::string& name : changed) {
      CHECK(name.find("running") == std::string::npos);
      CHECK(name.find("num_batches") == std::string::npos);
    }
    CHECK(changed.size() == 11);  // three convolutions, three norms, the head
  }
  SUBCASE("a prefix, while the rest trains its statistics") {
    options.freeze = {"conv1", "bn1", "conv2", "bn2"};
    options.batch_norm = BatchNormPolicy::train;
    finetune(options);
    CHECK(changed_tensors(pretrained(), last) ==
          std::vector<std::string>{"bn3.bias", "bn3.num_batches_tracked", "bn3.running_mean",
                                   "bn3.running_var", "bn3.weight", "conv3.weight", "fc.bias",
                                   "fc.weight"});
  }
  SUBCASE("everything but the head, from stored features") {
    options = small_finetuning(folder / "run", FinetuneOptions::linear_probe());
    finetune(options);
    CHECK(changed_tensors(pretrained(), last) == std::vector<std::string>{"fc.bias", "fc.weight"});
  }
  SUBCASE("everything but the head, augmented") {
    options = small_finetuning(folder / "run", FinetuneOptions::linear_probe());
    options.augmentation.horizontal_flip = true;
    finetune(options);
    CHECK(changed_tensors(pretrained(), last) == std::vector<std::string>{"fc.bias", "fc.weight"});
  }
}

TEST_CASE("a frozen prefix records nothing") {
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.freeze_features = true;
  const auto model = make_model("small_cnn", {2, 3, -1}, {1, 0, 0});
  const Plan plan = plan_of(options, "small_cnn", *model);
  const TrainableCount count = apply_freeze(*model, plan.phases.front());
  CHECK(count.trainable_tensors == 2);
  set_training_mode(*model, plan.phases.front());
  const int64_t before = recorded_nodes();
  const Tensor features = model->features(Tensor::full({2, 16, 16, 3}, 0.5f));
  CHECK(recorded_nodes() == before);
  CHECK_FALSE(features.requires_grad());
  CHECK(model->head(features).requires_grad());
}

TEST_CASE("stored features train the head exactly as images do") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_finetuning(folder / "stored", FinetuneOptions::linear_probe());
  const FinetuneResult stored = finetune(options);
  CHECK(stored.best()->validation->accuracy > 0.9);
  // A jitter too small to change a pixel: the same pictures, but they cannot be stored.
  options.out = folder / "images";
  options.augmentation.brightness = 1e-9;
  finetune(options);
  check_same_run(folder / "stored", folder / "images");
}

TEST_CASE("stored features resume exactly, too") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_finetuning(folder / "whole", FinetuneOptions::linear_probe());
  finetune(options);
  for (const int64_t stop : {1, 4, 9, 12}) {
    CAPTURE(stop);
    options.out = folder / ("stopped" + std::to_string(stop));
    StopAfter first(stop);
    CHECK(finetune(options, first).interrupted);
    Observer quiet;
    resume(options.out, {}, quiet);
    check_same_run(folder / "whole", options.out);
  }
}

TEST_CASE("early stopping ends the run and restores the best epoch") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_finetuning(folder / "run", FinetuneOptions::fine_tuning());
  options.epochs = 50;
  options.patience = 2;
  options.criterion = Criterion::loss;
  options.optimizer = OptimizerKind::sgd;
  options.learning_rate = 2;  // far too high: the validation loss gets worse
  options.clip_norm = 1;
  const FinetuneResult result = finetune(options);
  CHECK(result.stopped_early);
  CHECK(result.epochs.size() < 50);
  CHECK(static_cast<int64_t>(result.epochs.size()) == result.best_epoch + 2);
  const auto least = std::min_element(
      result.epochs.begin(), result.epochs.end(),
      [](const auto& a, const auto& b) { return a.validation->loss < b.validation->loss; });
  CHECK(least->epoch == result.best_epoch);
  const StateDict model = result.model->state_dict();
  const WeightFile best = read_weights(folder / "run" / "best.safetensors");
  const WeightFile last = read_weights(folder / "run" / "last.safetensors");
  CHECK(model.at("fc.weight").to_vector<float>() == best.find("fc.weight")->to_vector<float>());
  CHECK(model.at("fc.weight").to_vector<float>() != last.find("fc.weight")->to_vector<float>());
}

TEST_CASE("without held-out images the last epoch is the best") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.validation = 0;
  const FinetuneResult result = finetune(options);
  CHECK(result.best_epoch == 3);
  CHECK_FALSE(result.best()->validation.has_value());
  CHECK(file_bytes(folder / "run" / "best.safetensors") ==
        file_bytes(folder / "run" / "last.safetensors"));
}

TEST_CASE("folders train/ and val/ are a split, and a manifest's column is one") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data" / "train", 4, 16, 1);
  testing::write_stripes(folder / "data" / "val", 2, 16, 2);
  const TaskData folders = read_task_data(folder.path() / "data", 0.5, 0);
  CHECK(folders.split.train.size() == 8);
  CHECK(folders.split.held_out.size() == 4);

  std::ofstream csv(folder / "list.csv");
  csv << "path,label,split\n";
  for (int i = 0; i < 4; ++i) {
    for (const char* label : {"across", "down"}) {
      csv << "data/train/" << label << "/picture" << i << ".png," << label << ","
          << (i == 3   ? "test"
              : i == 2 ? "val"
                       : "train")
          << "\n";
    }
  }
  csv.close();
  const TaskData manifest = read_task_data(folder / "list.csv", 0.5, 0);
  CHECK(manifest.split.train.size() == 4);
  CHECK(manifest.split.held_out.size() == 2);
  CHECK(manifest.left_out == 2);
  CHECK(read_images(folder / "list.csv", "test").samples.size() == 2);
}

TEST_CASE("data is the same whether it is named relatively or absolutely") {
  const TemporaryFolder folder;
  std::ofstream csv(folder / "list.csv");
  csv << "path,label\n";
  for (const char* name : {"across", "down"}) {
    for (int i = 0; i < 4; ++i) {
      csv << (pictures() / name / text("picture", i, ".png")).string() << "," << name << "\n";
    }
  }
  csv.close();
  const auto hash_of = [](const fs::path& data) { return read_task_data(data, 0.25, 0).sha256; };
  CHECK(hash_of(fs::relative(folder / "list.csv")) == hash_of(folder / "list.csv"));
  CHECK(hash_of(fs::relative(pictures())) == hash_of(pictures()));
  CHECK(hash_of(pictures() / "") == hash_of(pictures()));
}

TEST_CASE("refusals name the remedy and leave nothing behind") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  const auto refused = [&](const std::string& part) {
    try {
      finetune(options);
      FAIL("not refused");
    } catch (const Error& error) {
      CAPTURE(error.what());
      CHECK(std::string(error.what()).find(part) != std::string::npos);
    }
    CHECK_FALSE(fs::exists(folder / "run"));
  };
  SUBCASE("no such data") {
    options.data = folder / "nowhere";
    refused("no such file or folder");
  }
  SUBCASE("unknown architecture") {
    options.architecture = "resnet19";
    refused("resnet18");
  }
  SUBCASE("no such weights") {
    options.architecture.clear();
    options.batch_norm = BatchNormPolicy::frozen_stats;
    options.weights = folder / "nothing.safetensors";
    refused("nothing.safetensors");
  }
  SUBCASE("a rate that is not a number") {
    options.learning_rate = std::nanf("");
    refused("learning rate");
  }
  SUBCASE("no epochs") {
    options.epochs = 0;
    refused("epochs must be at least 1");
  }
}

TEST_CASE("a run is never overwritten by accident, nor continued with other data") {
  const TemporaryFolder folder;
  const FinetuneOptions options = small_run(folder / "run");
  finetune(options);
  const std::string before = file_bytes(folder / "run" / "best.safetensors");
  CHECK_THROWS_WITH_AS(finetune(options), doctest::Contains("--force"), Error);
  CHECK(file_bytes(folder / "run" / "best.safetensors") == before);
  testing::write_stripes(folder / "other", 5, 16, 3);
  ResumeOptions moved;
  moved.data = folder / "other";
  Observer quiet;
  CHECK_THROWS_WITH_AS(resume(folder / "run", moved, quiet),
                       doctest::Contains("is not the data the run was started with"), Error);
  CHECK_THROWS_WITH_AS(resume(folder / "other", {}, quiet), doctest::Contains("no run to resume"),
                       Error);
}

TEST_CASE("a diverging run stops with advice and keeps its last state") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.optimizer = OptimizerKind::sgd;
  options.learning_rate = 1e30f;
  CHECK_THROWS_WITH_AS(finetune(options), doctest::Contains("lower the learning rate"), Error);
  for (const FileTensor& entry : read_weights(folder / "run" / "state.safetensors").tensors) {
    if (entry.tensor.dtype() != Dtype::f32) continue;
    for (const float value : entry.tensor.to_vector<float>()) REQUIRE(std::isfinite(value));
  }
}

TEST_CASE("options survive their file") {
  FinetuneOptions options = FinetuneOptions::linear_probe();
  options.data = "/photos";
  options.weights = "/w.safetensors";
  options.freeze = {"conv1", "bn*"};
  options.learning_rate = 0.1f;
  options.seed = 0xffffffffffffffffull;
  options.criterion = Criterion::f1;
  options.schedule.kind = ScheduleKind::cosine;
  const std::string json = options_to_json(options);
  const FinetuneOptions back = options_from_json(json);
  CHECK(options_to_json(back) == json);
  CHECK(back.learning_rate == 0.1f);
  CHECK(back.seed == options.seed);
  CHECK_THROWS_WITH_AS(options_from_json("{}"), doctest::Contains("\"data\" is missing"), Error);
}

}  // namespace
}  // namespace graft
