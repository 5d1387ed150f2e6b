// Plans: rules, presets, their file, and what they do to a run, phase by phase.
#include "transfer/plan.h"

#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <fstream>
#include <functional>

#include "engine/io/weights.h"
#include "kernels/error.h"
#include "layers/dropout.h"
#include "layers/norm.h"
#include "tests/support/pictures.h"
#include "transfer/finetune.h"
#include "transfer/prepared_run.h"
#include "transfer/presets.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

std::unique_ptr<ImageModel> small_cnn() { return make_model("small_cnn", {2, 3, -1}, {1, 0, 0}); }

Plan parsed(const std::string& json, const FinetuneOptions& defaults = {}) {
  return plan_from_json(json, "plan.json", defaults);
}
void throws_with(const std::string& part, const std::function<void()>& call) {
  CHECK_THROWS_WITH_AS(call(), doctest::Contains(part.c_str()), Error);
}

// The names of the parameters that train.
std::vector<std::string> trainable(ImageModel& model, const Phase& phase) {
  std::vector<std::string> names;
  apply_freeze(model, phase);
  for (const NamedTensor& parameter : model.named_parameters()) {
    if (parameter.tensor->requires_grad()) names.push_back(parameter.name);
  }
  return names;
}

ParameterSetting setting(ImageModel& model, const Phase& phase, const std::string& name) {
  for (const NamedTensor& parameter : model.named_parameters()) {
    if (parameter.name == name) return setting_of(phase, model, parameter);
  }
  fail("no parameter ", name);
}

TEST_CASE("name patterns") {
  CHECK(matches("layer1", "layer1.0.conv1.weight"));
  CHECK_FALSE(matches("layer1", "layer10.0.conv1.weight"));
  CHECK(matches("layer1.0", "layer1.0.conv1.weight"));
  CHECK(matches("layer1.0.conv1.weight", "layer1.0.conv1.weight"));
  CHECK(matches("*.bias", "layer1.0.conv1.bias"));
  CHECK(matches("layer?", "layer3.1.bn2.weight"));
  CHECK_FALSE(matches("", "fc.weight"));
  CHECK_FALSE(matches("conv", "conv1.weight"));
}

TEST_CASE("rules apply in order and the later one wins") {
  const auto model = small_cnn();
  const Plan plan = parsed(R"({"phases": [{"learning_rate": 0.5, "weight_decay": 0.25, "layers": [
      {"match": "*", "freeze": true},
      {"match": ["conv3", "fc"], "freeze": false, "learning_rate": 0.5},
      {"match": "fc", "learning_rate": 2, "weight_decay": 0.125}]}]})");
  check_plan(plan, "small_cnn", *model);
  const Phase& phase = plan.phases.front();
  CHECK(trainable(*model, phase) ==
        std::vector<std::string>{"conv3.weight", "fc.weight", "fc.bias"});
  CHECK(setting(*model, phase, "conv3.weight").learning_rate == 0.25);
  CHECK(setting(*model, phase, "conv3.weight").weight_decay == 0.25);
  CHECK(setting(*model, phase, "fc.weight").learning_rate == 1);
  CHECK(setting(*model, phase, "fc.weight").weight_decay == 0.125);
  CHECK(setting(*model, phase, "fc.bias").weight_decay == 0);
  CHECK(setting(*model, phase, "conv1.weight").learning_rate == 0);
  // A group for each pair of rate and decay.
  std::vector<std::string> groups;
  for (const ParameterGroup& group : parameter_groups(*model, phase)) groups.push_back(group.name);
  CHECK(groups == std::vector<std::string>{"learning rate 0.25, weight decay 0.25",
                                           "learning rate 1, weight decay 0.125",
                                           "learning rate 1, weight decay 0"});
}

// What each policy does to a batch norm that trains (bn3), to a frozen one (bn1), and to what is
// declared frozen.
TEST_CASE("batch-norm policies") {
  const auto model = small_cnn();
  std::map<std::string, BatchNorm2d*> norms;
  for (const auto& [name, module] : model->named_modules()) {
    if (auto* norm = dynamic_cast<BatchNorm2d*>(module)) norms[name] = norm;
  }
  const auto check = [&](const std::string& json, bool bn1_batch, bool bn3_batch, bool bn3_affine) {
    CAPTURE(json);
    const Plan plan = parsed(json);
    check_plan(plan, "small_cnn", *model);
    const Phase& phase = plan.phases.front();
    apply_freeze(*model, phase);
    set_training_mode(*model, phase);
    CHECK(norms["bn1"]->uses_running_statistics() == !bn1_batch);
    CHECK(norms["bn3"]->uses_running_statistics() == !bn3_batch);
    CHECK_FALSE(norms["bn1"]->weight.requires_grad());
    CHECK(norms["bn3"]->weight.requires_grad() == bn3_affine);
    std::vector<std::string> frozen;
    for (const NamedTensor& entry : frozen_tensors(*model, phase)) frozen.push_back(entry.name);
    const auto has = [&](const char* name) {
      return std::count(frozen.begin(), frozen.end(), name) == 1;
    };
    CHECK(has("bn1.weight"));
    CHECK(has("bn1.running_mean") == !bn1_batch);
    CHECK(has("bn3.running_var") == !bn3_batch);
    CHECK(has("bn3.num_batches_tracked") == !bn3_batch);
    CHECK(has("bn3.bias") == !bn3_affine);
    CHECK(uses_batch_statistics(plan, *model) == (bn1_batch || bn3_batch));
  };
  const auto with = [](const std::string& policy, const std::string& rules = "") {
    return R"({"phases": [{"batch_norm": ")" + policy +
           R"(", "layers": [{"match": ["conv1", "bn1"], "freeze": true})" + rules + "]}]}";
  };
  check(with("train"), false, true, true);
  check(with("adapt-stats"), true, true, true);
  check(with("frozen-all", R"(, {"match": "bn3", "batch_norm": "train"})"), false, true, true);
  check(with("explicit", R"(, {"match": "bn?", "batch_norm": "frozen-all"},
                             {"match": "bn1", "batch_norm": "adapt-stats"})"),
        true, false, false);
  throws_with("no rule says what bn1 does", [&] {
    check_plan(parsed(with("explicit", R"(, {"match": ["bn2", "bn3"], "batch_norm": "train"})")),
               "small_cnn", *model);
  });
  const Plan frozen = parsed(with("frozen-stats"));
  apply_freeze(*model, frozen.phases.front());
  set_training_mode(*model, frozen.phases.front());
  CHECK(norms["bn3"]->uses_running_statistics());
  CHECK(norms["bn3"]->weight.requires_grad());
  CHECK_FALSE(uses_batch_statistics(frozen, *model));
}

TEST_CASE("blocks of every family, from input to head") {
  const auto names = [](const char* architecture) {
    std::vector<std::string> list;
    const auto model = make_blank_model(architecture, {});
    size_t modules = 0;
    for (const Block& block : blocks_of(*model)) {
      list.push_back(block.name);
      modules += block.modules.size();
    }
    CHECK(modules >= list.size());
    return list;
  };
  CHECK(names("small_cnn") == std::vector<std::string>{"conv1", "conv2", "conv3", "fc"});
  CHECK(names("mlp") == std::vector<std::string>{"fc1", "fc2", "fc"});
  CHECK(names("resnet18") == std::vector<std::string>{"conv1", "layer1.0", "layer1.1", "layer2.0",
                                                      "layer2.1", "layer3.0", "layer3.1",
                                                      "layer4.0", "layer4.1", "fc"});
  const std::vector<std::string> mobile = names("mobilenet_v2");
  CHECK(mobile.size() == 20);
  CHECK(mobile.front() == "features.0");
  CHECK(mobile.back() == "classifier.1");
  const std::vector<std::string> lite = names("efficientnet_lite0");
  CHECK(lite.size() == 19);
  CHECK(lite[0] == "_conv_stem");
  CHECK(lite[1] == "_blocks.0");
  CHECK(lite[17] == "_conv_head");
}

TEST_CASE("presets are what their papers say") {
  const auto model = small_cnn();  // conv1 conv2 conv3 fc
  FinetuneOptions options;
  options.epochs = 6;
  options.learning_rate = 0.01f;
  const auto plan = [&](const char* name) {
    options.preset = name;
    return plan_of(options, "small_cnn", *model);
  };
  const auto epochs = [](const Plan& made) {
    std::vector<int64_t> list;
    for (const Phase& phase : made.phases) list.push_back(phase.epochs);
    return list;
  };
  const std::vector<std::string> head{"fc.weight", "fc.bias"};

  CHECK(trainable(*model, plan("feature-extraction").phases.front()) == head);
  CHECK(trainable(*model, plan("full").phases.front()).size() == 11);

  const Plan lp_ft = plan("lp-ft");
  CHECK(epochs(lp_ft) == std::vector<int64_t>{2, 4});
  CHECK(trainable(*model, lp_ft.phases[0]) == head);
  CHECK(trainable(*model, lp_ft.phases[1]).size() == 11);

  const Plan slower = plan("discriminative");
  const auto rate = [&](const Phase& phase, const char* name) {
    return setting(*model, phase, name).learning_rate;
  };
  CHECK(rate(slower.phases[0], "fc.bias") == doctest::Approx(0.01));
  CHECK(rate(slower.phases[0], "bn3.weight") == doctest::Approx(0.01 / 2.6));
  CHECK(rate(slower.phases[0], "conv1.weight") == doctest::Approx(0.01 / 2.6 / 2.6 / 2.6));
  CHECK(rate(plan("layer-decay").phases[0], "conv2.weight") == doctest::Approx(0.01 * 0.5625));

  const Plan gradual = plan("gradual");
  CHECK(epochs(gradual) == std::vector<int64_t>{1, 1, 1, 3});
  CHECK(trainable(*model, gradual.phases[0]) == head);
  CHECK(trainable(*model, gradual.phases[1]) ==
        std::vector<std::string>{"conv3.weight", "bn3.weight", "bn3.bias", "fc.weight", "fc.bias"});
  CHECK(trainable(*model, gradual.phases[2]).size() == 8);
  CHECK(trainable(*model, gradual.phases[3]).size() == 11);
  CHECK(rate(gradual.phases[3], "conv2.weight") == doctest::Approx(0.01 / 2.6 / 2.6));
  options.epochs = 3;  // fewer than blocks: two thaw at once
  CHECK(epochs(plan("gradual")) == std::vector<int64_t>{1, 1, 1});
  CHECK(trainable(*model, plan("gradual").phases.back()).size() == 11);
  options.epochs = 6;

  const Plan fastai = plan("fine-tune");
  CHECK(epochs(fastai) == std::vector<int64_t>{1, 5});
  CHECK(fastai.phases[0].schedule.rise == 0.99);
  CHECK(rate(fastai.phases[0], "fc.weight") == doctest::Approx(0.01));
  CHECK(rate(fastai.phases[1], "fc.weight") == doctest::Approx(0.005));
  CHECK(rate(fastai.phases[1], "conv1.weight") == doctest::Approx(0.005 / 100));
  CHECK(fastai.phases[1].schedule.div_factor == 5);

  const Plan chain = plan("chain-thaw");
  CHECK(epochs(chain) == std::vector<int64_t>{1, 1, 1, 1, 2});
  CHECK(trainable(*model, chain.phases[0]) == head);
  CHECK(trainable(*model, chain.phases[1]) ==
        std::vector<std::string>{"conv1.weight", "bn1.weight", "bn1.bias"});
  CHECK(trainable(*model, chain.phases[4]).size() == 11);

  // Every preset of every family is a plan for it.
  options.epochs = 8;
  for (const char* architecture : {"resnet18", "mobilenet_v2", "efficientnet_lite0", "mlp"}) {
    const auto large = make_blank_model(architecture, {});
    for (const Preset& preset : presets()) {
      options.preset = preset.name;
      int64_t sum = 0;
      for (const Phase& phase : plan_of(options, architecture, *large).phases) sum += phase.epochs;
      CHECK(sum == 8);
    }
  }
  throws_with("did you mean lp-ft?", [&] { plan("lpft"); });
  options.epochs = 1;
  throws_with("needs at least 2 epochs", [&] { plan("lp-ft"); });
  options.steps = 10;
  throws_with("give --epochs instead of --steps", [&] { plan("full"); });
}

TEST_CASE("a plan survives its file, and its differences are told") {
  const auto model = small_cnn();
  FinetuneOptions options;
  options.epochs = 4;
  for (const Preset& preset : presets()) {
    options.preset = preset.name;
    const Plan plan = plan_of(options, "small_cnn", *model);
    const std::string json = to_json(plan);
    CHECK(to_json(parsed(json)) == json);
    CHECK(differences(plan, parsed(json)).empty());
  }
  options.preset = "lp-ft";
  const Plan before = plan_of(options, "small_cnn", *model);
  Plan after = before;
  after.phases[1].learning_rate = 0.125;
  after.phases[1].layers.push_back({.match = {"conv1"}, .freeze = true});
  CHECK(differences(before, after) ==
        std::vector<std::string>{
            "phases 2, learning_rate: 0.125, was 0.0005",
            "phases 2, layers 1: {\"match\":\"conv1\",\"freeze\":true}, was none"});
}

TEST_CASE("a plan that cannot be meant is refused before anything is trained") {
  const auto model = small_cnn();
  const auto refused = [&](const std::string& json, const std::string& part) {
    CAPTURE(json);
    throws_with(part, [&] { check_plan(parsed(json), "small_cnn", *model); });
  };
  const auto rule = [](const std::string& text) {
    return R"({"phases": [{"layers": [)" + text + "]}]}";
  };
  refused("{", "plan.json: is not JSON");
  refused("[]", "expected an object");
  refused("{}", "\"phases\" is missing");
  refused(R"({"phases": []})", "at least one phase");
  refused(R"({"phase": []})", "did you mean phases?");
  refused(R"({"phases": [{"epoch": 3}]})", "did you mean epochs?");
  refused(R"({"phases": [{"epochs": 0}]})", "plan.json: phase 1: \"epochs\": expected a whole");
  refused(R"({"phases": [{"epochs": 1.5}]})", "got 1.5");
  refused(R"({"phases": [{"learning_rate": "fast"}]})", "expected a number, got \"fast\"");
  refused(R"({"phases": [{"learning_rate": -1}]})", "expected 0 to");
  refused(R"({"phases": [{"schedule": "cosin"}]})", "did you mean cosine?");
  refused(R"({"phases": [{"schedule": {"kind": "step", "gama": 0.5}}]})", "did you mean gamma?");
  refused(R"({"phases": [{"batch_norm": "frozen"}]})", "frozen-stats");
  refused(rule(R"({"freeze": true})"), "rule 1: \"match\" is missing");
  refused(rule(R"({"match": [], "freeze": true})"), "the list is empty");
  refused(rule(R"({"match": 3})"), "expected a name pattern");
  refused(rule(R"({"match": "conv1", "freeze": "yes"})"), "expected true or false");
  refused(rule(R"({"match": "fc", "dropout": 1})"), "expected 0 to 0.9999, got 1");
  refused(rule(R"({"match": "cnv1", "freeze": true})"), "did you mean conv1");
  refused(rule(R"({"match": "layer9", "freeze": true})"), "(the model's parts are [conv1, conv2");
  refused(rule(R"({"match": "*", "freeze": true})"), "unfreeze at least the head, fc");
  refused(R"({"phases": [{}, {"name": "b", "layers": [{"match": "*", "freeze": true}]}]})",
          "phase 2 \"b\": nothing is left to train");
  refused(R"({"architecture": "resnet18", "phases": [{}]})",
          "it is for resnet18, but the model is");
  throws_with("there is no such plan file", [] { read_plan("/nowhere/plan.json", {}); });
}

TEST_CASE("the table says what every layer does") {
  const auto model = small_cnn();
  const Plan plan = parsed(R"({"phases": [{"learning_rate": 0.5, "layers": [
      {"match": ["conv1", "bn1"], "freeze": true}, {"match": "conv2", "learning_rate": 0.5},
      {"match": "fc", "dropout": 0.25}]}]})");
  const std::vector<LayerRow> rows = layer_rows(*model, plan.phases[0], OptimizerKind::adamw);
  REQUIRE(rows.size() == 7);
  CHECK(rows[0].name == "conv1");
  CHECK(rows[0].trainable == 0);
  CHECK(rows[0].learning_rate == 0);
  CHECK(rows[0].parameters == 32 * 27);
  CHECK(rows[0].bytes == 4 * 32 * 27);
  CHECK(rows[1].batch_norm == "frozen-stats");
  CHECK(rows[2].learning_rate == 0.25);
  CHECK(rows[2].bytes == 4 * 4 * 64 * 32 * 9);  // weights, gradients, two moments
  CHECK(rows[6].dropout == 0.25);
  // conv2 and bn2 learn at different rates, so their block is shown in two rows.
  std::vector<std::string> names;
  int64_t parameters = 0;
  for (const LayerRow& row : block_rows(rows)) {
    names.push_back(row.name);
    parameters += row.parameters;
  }
  CHECK(names == std::vector<std::string>{"conv1", "conv2", "bn2", "conv3", "fc"});
  int64_t all = 0;
  for (const NamedTensor& parameter : model->named_parameters()) all += parameter.tensor->numel();
  CHECK(parameters == all);
}

// --- runs

FinetuneOptions small_run(const fs::path& data, const fs::path& out) {
  FinetuneOptions options = FinetuneOptions::from_scratch();
  options.data = data;
  options.architecture = "small_cnn";
  options.image_size = 16;
  options.validation = 0.25;
  options.batch = 8;
  options.out = out;
  options.workers = 0;
  return options;
}
struct StopAfter : Observer {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};
// What an epoch's checkpoint can tell: the tensors of a run's last.safetensors.
std::string bytes_of(const fs::path& file, const std::string& tensor) {
  const WeightFile weights = read_weights(file);
  const Tensor* found = weights.find(tensor);
  REQUIRE(found != nullptr);
  return {static_cast<const char*>(found->raw()), found->bytes()};
}

const char* const kThreePhases = R"({"name": "three", "phases": [
    {"name": "head", "epochs": 1, "layers": [{"match": "*", "freeze": true},
                                             {"match": "fc", "freeze": false}]},
    {"name": "top", "epochs": 2, "schedule": "constant", "layers": [
        {"match": ["conv1", "bn1", "conv2", "bn2"], "freeze": true}]},
    {"name": "all", "epochs": 1, "learning_rate": 0.0001, "batch_norm": "adapt-stats"}]})";

TEST_CASE("a plan's phases train what they say, prove it, and resume in their middle") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 24, 16, 7);  // 36 to train: 5 batches an epoch
  std::ofstream(folder / "plan.json") << kThreePhases;
  FinetuneOptions options = small_run(folder / "data", folder / "whole");
  options.plan = folder / "plan.json";
  options.augmentation.horizontal_flip = false;  // so that the first phase stores features
  const FinetuneResult whole = finetune(options);
  REQUIRE(whole.epochs.size() == 4);
  CHECK(whole.epochs[0].phase == "head");
  CHECK(whole.epochs[2].phase == "top");
  CHECK(whole.epochs[3].phase == "all");
  CHECK(whole.epochs[2].learning_rate == doctest::Approx(2e-3));
  CHECK(whole.epochs[3].learning_rate < 1e-4);
  REQUIRE(whole.proofs.size() == 3);
  for (const FreezeProof& proof : whole.proofs) CHECK(proof.verified);
  CHECK(whole.proofs[0].sha256.count("conv3.weight") == 1);
  CHECK(whole.proofs[1].sha256.count("conv3.weight") == 0);
  CHECK(whole.proofs[1].sha256.count("bn1.running_mean") == 1);
  CHECK(whole.proofs[2].sha256.empty());
  CHECK(fs::exists(folder / "whole" / "plan.json"));
  CHECK(fs::exists(folder / "whole" / "freeze_proof.json"));

  for (const int64_t stop : {2, 8, 14, 17, 22, 27}) {
    CAPTURE(stop);
    options.out = folder / ("stopped" + std::to_string(stop));
    StopAfter first(stop);
    CHECK(finetune(options, first).interrupted);
    // The file may change; the run keeps its own plan.
    std::ofstream(folder / "plan.json") << "{}";
    Observer quiet;
    const FinetuneResult rest = resume(options.out, {}, quiet);
    std::ofstream(folder / "plan.json") << kThreePhases;
    CHECK_FALSE(rest.interrupted);
    for (const char* file : {"best.safetensors", "last.safetensors", "freeze_proof.json"}) {
      CHECK(file_bytes(folder / "whole" / file) == file_bytes(options.out / file));
    }
  }
}

TEST_CASE("a frozen byte that moves fails the run") {
  const auto model = small_cnn();
  const Plan plan = parsed(kThreePhases);
  const Phase& phase = plan.phases[1];
  apply_freeze(*model, phase);
  FreezeProof proof = hash_frozen(phase.name, frozen_tensors(*model, phase));
  verify_frozen(proof, frozen_tensors(*model, phase));
  CHECK(proof.verified);
  for (const NamedTensor& entry : model->named_tensors()) {
    if (entry.name == "conv3.weight") entry.tensor->mutable_data<float>()[0] += 1;
  }
  verify_frozen(proof, frozen_tensors(*model, phase));  // that one trains
  for (const NamedTensor& entry : model->named_tensors()) {
    if (entry.name == "bn2.running_var") {
      static_cast<unsigned char*>(entry.tensor->raw())[5] ^= 1;  // a single bit
    }
  }
  throws_with("phase \"top\" declares frozen are not what they were before it: [bn2.running_var]",
              [&] { verify_frozen(proof, frozen_tensors(*model, phase)); });
  const std::string json = to_json(std::vector<FreezeProof>{proof});
  CHECK(proofs_from_json(json, "x")[0].sha256 == proof.sha256);
  throws_with("freeze_proof.json: is damaged", [] { proofs_from_json("{}", "freeze_proof.json"); });
}

TEST_CASE("weights tampered with between two sittings are noticed") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 24, 16, 7);
  FinetuneOptions options = small_run(folder / "data", folder / "run");
  options.freeze = {"conv1", "bn1"};
  options.epochs = 2;
  StopAfter stop(2);
  CHECK(finetune(options, stop).interrupted);
  const fs::path state = folder / "run" / "state.safetensors";
  std::string bytes = file_bytes(state);
  const std::string weight = bytes_of(state, "model/conv1.weight");
  bytes[bytes.find(weight) + 3] ^= 1;
  std::ofstream(state, std::ios::binary) << bytes;
  Observer quiet;
  throws_with("[conv1.weight]", [&] { resume(folder / "run", {}, quiet); });
}

TEST_CASE("a plateau lowers the rate, and resumes with it lowered") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 24, 16, 7);
  FinetuneOptions options = small_run(folder / "data", folder / "whole");
  options.epochs = 6;
  options.learning_rate = 1e-12f;  // nothing is learnt: every epoch after the first is a plateau
  options.batch_norm_momentum = 0;
  options.schedule = {.kind = ScheduleKind::plateau, .gamma = 0.5, .plateau_epochs = 2};
  const FinetuneResult whole = finetune(options);
  std::vector<double> factors;
  for (const EpochReport& epoch : whole.epochs) factors.push_back(epoch.learning_rate / 1e-12);
  CHECK(factors[2] == doctest::Approx(1));
  CHECK(factors[3] == doctest::Approx(0.5));
  CHECK(factors[5] == doctest::Approx(0.25));
  options.out = folder / "stopped";
  StopAfter stop(30);
  CHECK(finetune(options, stop).interrupted);
  Observer quiet;
  const FinetuneResult rest = resume(folder / "stopped", {}, quiet);
  CHECK(rest.epochs.back().learning_rate == whole.epochs.back().learning_rate);
}

TEST_CASE("dropout rules reach the head and the blocks") {
  const auto model = make_blank_model("efficientnet_lite0", {});
  const Plan plan = parsed(R"({"phases": [{"layers": [
      {"match": "_fc", "dropout": 0.5}, {"match": "_blocks.1?", "dropout": 0.25}]}]})");
  check_plan(plan, "efficientnet_lite0", *model);
  apply_freeze(*model, plan.phases[0]);
  set_training_mode(*model, plan.phases[0]);
  const auto dropout = [&](const std::string& wanted) {
    for (const auto& [name, module] : model->named_modules()) {
      if (name == wanted) return dynamic_cast<DropsOut*>(module)->dropout_probability();
    }
    return -1.0f;
  };
  CHECK(dropout("") == 0.5f);
  CHECK(dropout("_blocks.12") == 0.25f);
  CHECK(dropout("_blocks.9") < 0.25f);
}

TEST_CASE("drop path is the last block's, and less before it; a model without it is refused") {
  FinetuneOptions options;
  const auto block = [&](const std::string& wanted) {
    const auto model = make_blank_model("efficientnet_lite0", {});
    set_drop_path(*model, "efficientnet_lite0", options);
    for (const auto& [name, module] : model->named_modules()) {
      if (name == wanted) return dynamic_cast<DropsOut*>(module)->dropout_probability();
    }
    return -1.0f;
  };
  CHECK(block("_blocks.15") == doctest::Approx(0.2 * 15 / 16));  // its own
  options.drop_path = 0.4f;
  CHECK(block("_blocks.15") == 0.4f);
  CHECK(block("_blocks.8") == doctest::Approx(0.4 * 8 / 15));
  CHECK(block("_blocks.0") == 0);
  options.drop_path = 0;
  CHECK(block("_blocks.15") == 0);

  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 6, 16, 7);
  FinetuneOptions none = small_run(folder / "data", folder / "run");
  none.drop_path = 0.1f;
  Observer quiet;
  throws_with("small_cnn has no drop path", [&] { plan_finetune(none, quiet); });
}

TEST_CASE("planning writes nothing and trains nothing") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 24, 16, 7);
  FinetuneOptions options = small_run(folder / "data", folder / "run");
  options.preset = "lp-ft";
  options.epochs = 6;
  Observer quiet;
  const PlannedRun planned = plan_finetune(options, quiet);
  CHECK_FALSE(fs::exists(folder / "run"));
  CHECK(planned.plan.phases.size() == 2);
  CHECK(planned.layers.size() == 2);
  CHECK(planned.train_images == 36);
  CHECK(planned.steps_per_epoch == 5);
  options.freeze = {"conv1"};
  throws_with("a plan says what is frozen", [&] { plan_finetune(options, quiet); });
}

}  // namespace
}  // namespace graft
