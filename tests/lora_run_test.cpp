// Fine-tuning with low-rank adapters: that nothing else moves, exact resume, plans, and delta
// files.
#include <cstring>
#include <doctest/doctest.h>
#include <functional>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "layers/models/delta.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "transfer/finetune.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

void throws_with(const std::string& part, const std::function<void()>& call) {
  CHECK_THROWS_WITH_AS(call(), doctest::Contains(part.c_str()), Error);
}

// Pictures, and a network that has learnt to tell them apart.
struct Task {
  TemporaryFolder folder;
  fs::path data, weights;
};
const Task& task() {
  static const Task made;
  static const bool done = [] {
    Task& t = const_cast<Task&>(made);
    t.data = t.folder / "stripes";
    testing::write_stripes(t.data, 24, 16, 7);
    FinetuneOptions options = FinetuneOptions::from_scratch();
    options.data = t.data;
    options.architecture = "small_cnn";
    options.image_size = 16;
    options.batch = 8;
    options.epochs = 1;
    options.workers = 0;
    options.out = t.folder / "base";
    finetune(options);
    t.weights = options.out / "best.safetensors";
    return true;
  }();
  static_cast<void>(done);
  return made;
}

FinetuneOptions small_run(const fs::path& out) {
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.data = task().data;
  options.weights = task().weights;
  options.validation = 0.25;
  options.batch = 8;
  options.epochs = 3;
  options.learning_rate = 5e-3f;
  options.lora = {.rank = 4, .alpha = 8, .dropout = 0.1f};
  options.out = out;
  options.workers = 0;
  options.device = test::test_device();
  return options;
}

struct StopAfter : Observer {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};

StateDict state_at(const fs::path& path) {
  StateDict state;
  for (const FileTensor& entry : read_safetensors(path).tensors) state[entry.name] = entry.tensor;
  return state;
}
bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}
bool merges_to_best(const fs::path& run) {
  merge_delta(task().weights, run / "lora.safetensors", run / "merged.safetensors", true);
  return file_bytes(run / "merged.safetensors") == file_bytes(run / "best.safetensors");
}

TEST_CASE("a run moves no byte of the base, proves it, and its delta is all that it learnt") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.epochs = 6;
  const FinetuneResult result = finetune(options);
  CHECK(result.best()->validation->accuracy > 0.9);
  CHECK_FALSE(has_adapters(*result.model));
  // Filters, and weight and bias of the batch norms with their statistics and counters.
  REQUIRE(result.proofs.size() == 1);
  CHECK(result.proofs[0].verified);
  CHECK(result.proofs[0].sha256.size() == 3 + 3 * 5);

  const StateDict base = state_at(task().weights);
  const StateDict best = state_at(folder / "run" / "best.safetensors");
  const StateDict state = state_at(folder / "run" / "state.safetensors");
  REQUIRE(best.size() == base.size());
  for (const auto& [name, tensor] : base) {
    CAPTURE(name);
    const bool head = name.starts_with("fc.");
    const bool filter = name.starts_with("conv");
    CHECK(same_bytes(tensor, best.at(name)) == !(head || filter));
    CHECK(same_bytes(tensor, state.at("model/" + name)) == !head);
  }
  std::vector<std::string> names;
  for (const auto& [name, tensor] : state_at(folder / "run" / "lora.safetensors")) {
    names.push_back(name);
  }
  CHECK(names == std::vector<std::string>{"conv1.lora_A", "conv1.lora_B", "conv2.lora_A",
                                          "conv2.lora_B", "conv3.lora_A", "conv3.lora_B", "fc.bias",
                                          "fc.weight"});
  CHECK(file_size(folder / "run" / "lora.safetensors") < file_size(task().weights) / 10);
  CHECK(merges_to_best(folder / "run"));
  // What was saved is what was judged.
  const LoadedModel loaded = load_model(folder / "run" / "best.safetensors");
  const Tensor x = uniform({2, 16, 16, 3}, -1, 1, {3});
  const NoGrad guard;
  result.model->to(kCpu);
  CHECK(loaded.model->forward(x).to_vector<float>() == result.model->forward(x).to_vector<float>());
}

TEST_CASE("a resumed run ends with the same bytes, delta included") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "whole");
  SUBCASE("one phase") {}
  SUBCASE("head first, then adapters") { options.preset = "lp-ft"; }
  SUBCASE("batch norms train, too") { options.batch_norm = BatchNormPolicy::train; }
  finetune(options);
  CHECK(merges_to_best(folder / "whole"));
  for (const int64_t stop : {4, 13}) {
    CAPTURE(stop);
    options.out = folder / ("stopped" + std::to_string(stop));
    StopAfter first(stop);
    CHECK(finetune(options, first).interrupted);
    Observer quiet;
    CHECK_FALSE(resume(options.out, {}, quiet).interrupted);
    for (const char* file : {"best.safetensors", "last.safetensors", "lora.safetensors"}) {
      CHECK(file_bytes(folder / "whole" / file) == file_bytes(options.out / file));
    }
  }
}

TEST_CASE("plans act on adapters and head; batch norms train where their policy is train") {
  const auto model = make_model("small_cnn", {.classes = 2}, {1});
  attach_adapters(*model, {.rank = 2, .layers = {"conv2", "conv3"}}, {"fc"}, {9});
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.lora.rank = 2;
  options.epochs = 3;
  const auto trainable = [&](const Phase& phase) {
    std::vector<std::string> names;
    apply_freeze(*model, phase);
    for (const NamedTensor& entry : model->named_parameters()) {
      if (entry.tensor->requires_grad()) names.push_back(entry.name);
    }
    return names;
  };
  using Names = std::vector<std::string>;
  const Names adapters{"conv2.lora_A", "conv2.lora_B", "conv3.lora_A",
                       "conv3.lora_B", "fc.weight",    "fc.bias"};
  CHECK(trainable(plan_of(options, "small_cnn", *model).phases[0]) == adapters);
  options.freeze = {"conv2"};
  CHECK(trainable(plan_of(options, "small_cnn", *model).phases[0]) ==
        Names{"conv3.lora_A", "conv3.lora_B", "fc.weight", "fc.bias"});
  options.freeze.clear();
  options.preset = "lp-ft";
  const Plan two = plan_of(options, "small_cnn", *model);
  CHECK(trainable(two.phases[0]) == Names{"fc.weight", "fc.bias"});
  CHECK(trainable(two.phases[1]) == adapters);
  options.preset.clear();
  options.batch_norm = BatchNormPolicy::train;
  const Plan norms = plan_of(options, "small_cnn", *model);
  CHECK(trainable(norms.phases[0]).size() == adapters.size() + 6);
  // A row a block, though only a part of it trains.
  const std::vector<LayerRow> rows = layer_rows(*model, two.phases[1], OptimizerKind::adamw);
  for (const LayerRow& row : rows) {
    CHECK((row.adapter > 0) == (row.name == "conv2" || row.name == "conv3"));
    CHECK(row.trainable == (row.name == "fc" ? row.parameters : row.adapter));
  }
}

TEST_CASE("a first layer changed for grey pictures is part of the delta") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "grey");
  options.channels = 1;
  finetune(options);
  CHECK(state_at(folder / "grey" / "lora.safetensors").count("conv1.weight") == 1);
  CHECK(merges_to_best(folder / "grey"));
}

TEST_CASE("options that contradict LoRA are refused before anything is written") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.freeze_features = true;
  throws_with("leave LoRA nothing", [&] { finetune(options); });
  options = small_run(folder / "run");
  options.weights.clear();
  options.architecture = "small_cnn";
  options.batch_norm = BatchNormPolicy::train;
  throws_with("LoRA adapts pre-trained weights", [&] { finetune(options); });
  options = small_run(folder / "run");
  options.lora.rank = 0;
  throws_with("give a rank", [&] { finetune(options); });
  options.lora = {.rank = 1000};
  throws_with("too large", [&] { finetune(options); });
  CHECK_FALSE(fs::exists(folder / "run"));
}

TEST_CASE("a delta on other weights, damaged or forged, is refused by name") {
  const TemporaryFolder folder;
  finetune(small_run(folder / "run"));
  const fs::path delta = folder / "run" / "lora.safetensors", out = folder / "out.safetensors";
  const WeightFile good = read_safetensors(delta);
  const StateDict tensors = state_at(delta);
  const std::string hash = sha256_hex(task().weights);
  CHECK(good.metadata.at("graft.lora.base_sha256") == hash);
  CHECK(good.metadata.at("graft.lora.rank") == "4");
  CHECK(good.metadata.at("graft.lora.alpha") == "8");

  const auto refused = [&](const std::string& part, StateDict state, const Metadata& metadata) {
    const fs::path forged = folder / "forged.safetensors";
    write_safetensors(forged, state, metadata);
    CAPTURE(part);
    throws_with(part, [&] { merge_delta(task().weights, forged, out, false); });
    CHECK_FALSE(fs::exists(out));
  };
  // The base: both hashes are named.
  const fs::path last = folder / "run" / "last.safetensors";
  throws_with(hash, [&] { merge_delta(last, delta, out, false); });
  throws_with(sha256_hex(last), [&] { merge_delta(last, delta, out, false); });
  const auto with = [&](const std::string& key, const std::string& value) {
    Metadata changed = good.metadata;
    changed[key] = value;
    return changed;
  };
  refused("was trained on", tensors, with("graft.lora.base_sha256", "00"));
  for (const char* rank : {"", "0", "-4", "four", "4x", "99999999999999999999999"}) {
    refused("rank", tensors, with("graft.lora.rank", rank));
  }
  refused("at most", tensors, with("graft.lora.rank", "1000000000000"));
  refused("conv1.lora_A: the model wants", tensors, with("graft.lora.rank", "3"));
  for (const char* alpha : {"nan", "inf", "-1", "0", ""}) {
    refused("alpha", tensors, with("graft.lora.alpha", alpha));
  }
  for (const char* key : {"graft.lora.rank", "graft.lora.alpha", "graft.lora.base_sha256"}) {
    Metadata lacking = good.metadata;
    lacking.erase(key);
    refused(key, tensors, lacking);
  }
  refused("architecture", tensors, with("graft.architecture", "resnet5"));
  refused("conv1.lora_A", tensors, with("graft.architecture", "resnet18"));

  StateDict changed = tensors;
  changed.erase("conv2.lora_B");
  refused("missing in the file: conv2.lora_B", changed, good.metadata);
  changed = tensors;
  changed.erase("conv2.lora_A");
  refused("left over in the file: conv2.lora_B", changed, good.metadata);
  changed = tensors;
  changed["conv2.lora_B"] = Tensor::zeros({64, 5, 1, 1});
  refused("conv2.lora_B: the model wants [64, 4, 1, 1]", changed, good.metadata);
  changed = tensors;
  changed["fc.weight"] = Tensor::zeros({3, 128});
  refused("fc.weight: the model wants", changed, good.metadata);
  changed = tensors;
  changed["bn1.lora_A"] = Tensor::zeros({1});
  refused("left over in the file: bn1.lora_A", changed, good.metadata);

  throws_with("graft merge", [&] { load_model(delta); });
  throws_with("no delta file", [&] { merge_delta(task().weights, task().weights, out, false); });
  merge_delta(task().weights, delta, out, false);
  throws_with("--force", [&] { merge_delta(task().weights, delta, out, false); });
}

TEST_CASE("on a device recorded steps end with the bytes of single ones, and merge to the best") {
  if (test::test_device().is_cpu()) return;
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "recorded");
  options.epochs = 2;
  finetune(options);
  CHECK(merges_to_best(folder / "recorded"));
  options.out = folder / "single";
  options.graphs = false;
  finetune(options);
  for (const char* file : {"best.safetensors", "last.safetensors", "lora.safetensors"}) {
    CHECK(file_bytes(folder / "recorded" / file) == file_bytes(folder / "single" / file));
  }
}

}  // namespace
}  // namespace graft
