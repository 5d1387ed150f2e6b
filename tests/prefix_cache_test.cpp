// Cached frozen prefixes: what counts as one, that training from the cache ends with the bytes of
// training without, and that no bad file is ever believed.
#include "transfer/prefix_cache.h"

#include <doctest/doctest.h>
#include <fstream>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "layers/norm.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "transfer/activation_store.h"
#include "transfer/finetune.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

// Weights to start from, and the pictures: 24 a class, 16 x 16.
struct Material {
  TemporaryFolder folder;
  fs::path data = folder / "stripes", weights = folder / "weights.safetensors";
  Material() {
    testing::write_stripes(data, 24, 16, 7);
    ModelCard card;
    card.architecture = "small_cnn";
    card.classes = 2;
    card.class_names = {"across", "down"};
    card.preprocessing = preprocessing_of("small_cnn");
    card.preprocessing.crop = card.preprocessing.resize = 16;
    write_safetensors(weights, make_model("small_cnn", {2, 3, -1}, {3, 0, 0})->state_dict(),
                      to_metadata(card));
  }
};
const Material& material() {
  static const Material made;
  return made;
}

FinetuneOptions partly_frozen(const fs::path& out) {
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.data = material().data;
  options.weights = material().weights;
  options.validation = 0.25;
  options.batch = 8;  // 36 images to train: the last batch of an epoch has 4
  options.epochs = 3;
  options.workers = 0;
  options.dropout = 0.3f;
  options.augmentation.horizontal_flip = false;
  options.freeze = {"conv1", "bn1", "conv2", "bn2"};
  options.device = test::test_device();
  options.out = out;
  return options;
}

struct Listener : Observer {
  void message(const std::string& line) override { lines += line + "\n"; }
  bool says(const std::string& part) const { return lines.find(part) != std::string::npos; }
  std::string lines;
};

Listener run(const FinetuneOptions& options) {
  Listener listener;
  finetune(options, listener);
  CAPTURE(listener.lines);
  return listener;
}

void check_same_weights(const fs::path& a, const fs::path& b) {
  CHECK(file_bytes(a / "best.safetensors") == file_bytes(b / "best.safetensors"));
  CHECK(file_bytes(a / "last.safetensors") == file_bytes(b / "last.safetensors"));
}

fs::path only_file(const fs::path& folder) {
  std::vector<fs::path> files;
  for (const auto& entry : fs::directory_iterator(folder)) files.push_back(entry.path());
  REQUIRE(!files.empty());
  std::sort(files.begin(), files.end());
  return files.front();
}

TEST_CASE("a prefix ends at the first stage that learns, adapts, drops or counts") {
  const auto model = make_model("efficientnet_lite0", {2, 3, -1}, {1, 0, 0});
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  const auto prefix = [&] {
    const Plan plan = plan_of(options, "efficientnet_lite0", *model);
    apply_freeze(*model, plan.phases.front());
    set_training_mode(*model, plan.phases.front());
    const size_t stages = frozen_prefix(*model);
    return stages == 0 ? std::string() : model->stages()[stages - 1].name();
  };
  CHECK(prefix().empty());
  options.freeze = {"_blocks.3"};  // behind stages that train
  CHECK(prefix().empty());
  options.freeze = {"_conv_stem", "_bn0", "_blocks.?"};
  CHECK(prefix() == "_blocks.9");
  options.freeze = {"_conv_stem", "_bn0", "_blocks.0", "_blocks.1._expand_conv", "_blocks.2"};
  CHECK(prefix() == "_blocks.0");
  options.freeze.clear();
  options.freeze_features = true;
  CHECK(prefix() == "avgpool");
  options.batch_norm = BatchNormPolicy::adapt_stats;
  CHECK(prefix().empty());
  options = FinetuneOptions::fine_tuning();
  options.lora = {.rank = 2, .layers = {"_blocks.5"}};
  attach_adapters(*model, options.lora, {model->head_name()}, {1, 0, 0});
  for (const auto& [name, module] : model->named_modules()) {
    if (auto* norm = dynamic_cast<BatchNorm2d*>(module)) norm->set_role(AdapterRole::base);
  }
  CHECK(prefix() == "_blocks.4");
}

TEST_CASE("training from the cache ends with the bytes of training without") {
  const TemporaryFolder folder;
  FinetuneOptions options = partly_frozen(folder / "cached");
  std::string kept = "stages up to block2";
  SUBCASE("a frozen prefix") {}
  SUBCASE("frozen features, dropout before the head") {
    options.freeze.clear();
    options.freeze_features = true;
    kept = "stages up to avgpool";
  }
  SUBCASE("a number of steps") { options.steps = 7; }
  SUBCASE("bf16, kept in bf16") { options.precision = Dtype::bf16; }
  SUBCASE("averaged weights, terms of the loss") {
    options.regularise.ema = 0.9f;
    options.regularise.l2_sp = 0.1f;
    options.regularise.bss = 0.001f;
  }
  SUBCASE("adapters in the stages behind") {
    options.freeze.clear();
    options.lora.rank = 2;
    options.lora.layers = {"conv3"};
  }
  SUBCASE("from files") {
    options.cache.folder = folder / "cache";
    options.cache.memory = 0;
  }
  SUBCASE("as many views as epochs") {
    options.augmentation.horizontal_flip = true;
    options.augmentation.brightness = 0.3;
    options.cache.views = 3;
  }
  SUBCASE("phases that freeze more and less") {
    std::ofstream(folder / "plan.json")
        << R"({"phases": [{"name": "one", "epochs": 2, "learning_rate": 0.001,
               "layers": [{"match": ["conv1", "bn1"], "freeze": true}]},
              {"name": "two", "epochs": 1, "learning_rate": 0.001, "layers": []},
              {"name": "three", "epochs": 2, "learning_rate": 0.001,
               "layers": [{"match": ["conv?", "bn?"], "freeze": true}]}]})";
    options.freeze.clear();
    options.plan = folder / "plan.json";
    kept = "stage block1";
  }
  SUBCASE("pictures that cannot be read") {
    fs::copy(options.data, folder / "data", fs::copy_options::recursive);
    options.data = folder / "data";
    for (const char* name : {"across", "down"}) {
      const fs::path file = only_file(options.data / name);
      const std::string whole = file_bytes(file);
      std::ofstream(file, std::ios::trunc) << whole.substr(0, 60);
    }
    options.bad_image = BadImage::skip;
  }
  const Listener listener = run(options);
  CHECK(listener.says(kept));
  CHECK(listener.says("computed, 0 read"));
  options.out = folder / "plain";
  options.cache = {.kind = CacheKind::off};
  CHECK(run(options).says("cache: off"));
  check_same_weights(folder / "cached", folder / "plain");
}

TEST_CASE("a run from the cache resumes exactly") {
  struct StopAfter : Observer {
    explicit StopAfter(int64_t batches) : left(batches) {}
    void progress(const Progress&) override { --left; }
    bool stop_requested() override { return left <= 0; }
    int64_t left;
  };
  const TemporaryFolder folder;
  FinetuneOptions options = partly_frozen(folder / "whole");
  options.augmentation.horizontal_flip = true;
  options.cache.views = 2;
  run(options);
  for (const int64_t stop : {2, 14, 19}) {
    CAPTURE(stop);
    options.out = folder / ("stopped" + std::to_string(stop));
    StopAfter first(stop);
    CHECK(finetune(options, first).interrupted);
    Observer quiet;
    resume(options.out, {}, quiet);
    check_same_weights(folder / "whole", options.out);
  }
}

TEST_CASE("files serve later runs until anything changes, and a bad one is replaced") {
  const TemporaryFolder folder;
  FinetuneOptions options = partly_frozen(folder / "first");
  fs::copy(options.data, folder / "data", fs::copy_options::recursive);
  options.data = folder / "data";
  options.cache.folder = folder / "cache";
  CHECK(run(options).says("48 computed, 0 read"));
  const fs::path file = only_file(options.cache.folder);
  const std::string good = file_bytes(file);
  options.out = folder / "again";
  options.overwrite = true;
  const auto again = [&] { return run(options); };
  CHECK(again().says("0 computed, 48 read"));
  check_same_weights(folder / "first", folder / "again");

  const auto damaged = [&](std::string bytes, const std::string& reason) {
    CAPTURE(reason);
    std::ofstream(file, std::ios::trunc | std::ios::binary) << bytes;
    const Listener listener = again();
    CHECK(listener.says(reason));
    CHECK(listener.says("computed anew"));
    check_same_weights(folder / "first", folder / "again");
    CHECK(file_bytes(file) == good);
  };
  damaged("", "");
  damaged(good.substr(0, 100), "no file of cached activations");
  damaged(good.substr(0, good.size() / 2), "cut short");
  damaged(good.substr(0, good.size() - 1), "cut short");
  damaged(good + "x", "length");
  std::string bytes = good;
  bytes[good.size() / 2] ^= 1;
  damaged(bytes, "checksum");
  bytes = good;
  for (size_t i = 16; i < 56; ++i) bytes[i] = '\xff';  // sizes
  damaged(bytes, "other weights, images or options");
  bytes = good;
  for (size_t i = good.size() - 16; i < good.size() - 8; ++i) bytes[i] = '\xff';
  damaged(bytes, "length");

  SUBCASE("other contents of an image, the time of change kept") {
    const fs::path image = only_file(options.data / "down");
    const fs::file_time_type time = fs::last_write_time(image);
    fs::copy_file(only_file(options.data / "across"), image, fs::copy_options::overwrite_existing);
    fs::last_write_time(image, time);
    CHECK(again().says("other weights, images or options"));
  }
  SUBCASE("another time of change, the contents kept") {
    const fs::path image = only_file(options.data / "down");
    fs::last_write_time(image, fs::last_write_time(image) + std::chrono::seconds(2));
    CHECK(again().says("0 computed, 48 read"));
  }
  SUBCASE("other weights") {
    StateDict weights = make_model("small_cnn", {2, 3, -1}, {3, 0, 0})->state_dict();
    weights.at("bn2.running_var").mutable_data<float>()[5] *= 1.0000002f;
    write_safetensors(folder / "other.safetensors", weights,
                      read_weights(options.weights).metadata);
    options.weights = folder / "other.safetensors";
    CHECK(again().says("other weights, images or options"));
  }
  SUBCASE("weights of the part that trains do not matter") {
    StateDict weights = make_model("small_cnn", {2, 3, -1}, {3, 0, 0})->state_dict();
    weights.at("conv3.weight").mutable_data<float>()[5] += 1;
    write_safetensors(folder / "other.safetensors", weights,
                      read_weights(options.weights).metadata);
    options.weights = folder / "other.safetensors";
    CHECK(again().says("0 computed, 48 read"));
  }
}

TEST_CASE("what is not cached is said in a line") {
  const TemporaryFolder folder;
  FinetuneOptions options = partly_frozen(folder / "run");
  const auto line = [&] {
    Observer quiet;
    return plan_finetune(options, quiet).cache.front();
  };
  CHECK(line().find("run once for each of 48 images") != std::string::npos);
  CHECK(line().find("0.19 MiB of f32 in memory") != std::string::npos);  // 48 x 4 x 4 x 64 floats
  options.cache.kind = CacheKind::bf16;
  CHECK(line().find("0.09 MiB of bf16 in memory") != std::string::npos);
  options.cache.memory = 0;
  CHECK(line().find("more than --cache-memory 0") != std::string::npos);
  options.cache.folder = folder / "cache";
  CHECK(line().find("on disk") != std::string::npos);
  options.augmentation.vertical_flip = true;
  CHECK(line().find("--cache-views K") != std::string::npos);
  options.cache.views = 2;
  CHECK(line().find("for each of 84 views (2 an image") != std::string::npos);
  options.regularise.delta = 0.1f;
  CHECK(line().find("none, because DELTA") != std::string::npos);
  options.regularise.mixup = 0.2f;
  CHECK(line().find("none, because every step mixes") != std::string::npos);
  options.freeze.clear();
  CHECK(line().empty());
}

TEST_CASE("a store gives back what went in, rounded to bf16 where that was asked for") {
  const TemporaryFolder folder;
  const std::vector<float> row{1.0f, -3.14159274f, 1e-30f};
  for (const Dtype dtype : {Dtype::f32, Dtype::bf16}) {
    ActivationWriter writer({{3}, dtype, 4, std::string(64, 'a')}, false, folder / "store");
    writer.add(1, row.data());
    CHECK_THROWS_WITH_AS(writer.add(0, row.data()), doctest::Contains("does not follow"), Error);
    const ActivationStore store = writer.finish({"a.png: broken"});
    CHECK_FALSE(store.has(0));
    CHECK(store.has(1));
    CHECK_FALSE(store.has(3));
    std::vector<float> back(3);
    store.read(1, back.data());
    CHECK(back[0] == 1.0f);
    CHECK(back[1] == (dtype == Dtype::f32 ? -3.14159274f : -3.140625f));
  }
}

}  // namespace
}  // namespace graft
