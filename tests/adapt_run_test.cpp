// Runs of adaptations: what is frozen proves it, a lost device leaves a run that resumes, and the
// batch of a step is a function of the step.
#include <cmath>
#include <cstring>
#include <doctest/doctest.h>
#include <functional>
#include <nlohmann/json.hpp>
#include <set>

#include "engine/io/weights.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "tests/support/lost_device.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "tests/support/weight_bytes.h"
#include "transfer/adapt/adapt.h"
#include "transfer/adapt/vector_network.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using test::error_of;
using test::test_device;
using testing::file_bytes;
using testing::TemporaryFolder;

bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}

// --- the freeze proof

std::unique_ptr<Batches> vectors(float shift, uint64_t seed) {
  Features data;
  data.values = normal({16, 3}, shift, 1, {seed, 0, 0});
  for (int64_t i = 0; i < 16; ++i) {
    data.labels.push_back(i % 2);
    data.indices.push_back(i);
  }
  LoaderOptions options;
  options.batch_size = 8;
  return feature_batches(std::move(data), options);
}

AdaptRun vector_run(const std::string& frozen) {
  AdaptRun run;
  run.data = {vectors(0, 1), vectors(0, 2), vectors(1, 3), vectors(1, 3)};
  run.model = make_vector_network(3, {4, 4}, 2, {1, 0, 0});
  run.blank = [] { return make_vector_network(3, {4, 4}, 2, {0, 0, 0}); };
  run.card.architecture = "vector";
  run.options.method = "dann";
  run.options.settings = {"hidden=4"};
  run.options.training.weights = "given";
  run.options.training.epochs = 2;
  run.options.training.freeze = {frozen};
  run.options.training.device = test_device();
  return run;
}

// A method with a mistake: at one step it moves the last bit of one weight, whether it trains or
// not.
struct Careless : AdaptMethod {
  Tensor transfer_loss(const DomainPair&, const StepPlace&) override { return Tensor(); }
  void step(AdaptStep& step) override {
    AdaptMethod::step(step);
    if (step.place().step != 2) return;
    for (const NamedTensor& entry : step.model().named_parameters()) {
      if (entry.name != "fc1.weight") continue;
      std::vector<float> values = entry.tensor->to_vector<float>();
      values[5] = std::nextafter(values[5], 10.0f);
      entry.tensor->copy_from(Tensor::of(values, entry.tensor->shape()).to(test_device()));
    }
  }
};

TEST_CASE("a method that moves one bit of a frozen weight fails the run, and no other") {
  const auto message = [](const std::string& frozen, bool careless) {
    AdaptRun run = vector_run(frozen);
    if (careless) {
      run.own_method = MethodInfo{"careless", "moves a weight", {}};
      run.own_method->make = [](const MethodSettings&, const MethodContext&) {
        return std::make_unique<Careless>();
      };
      run.options.settings.clear();
    }
    AdaptObserver quiet;
    AdaptTrainer trainer(std::move(run), quiet);
    return error_of([&] { trainer.run(); });
  };
  const std::string moved = message("fc1", true);
  CAPTURE(moved);
  CHECK(contains(moved, "freeze proof: 1 of 2 tensors"));
  CHECK(contains(moved, "[fc1.weight]"));
  CHECK(message("fc2", true).empty());  // fc1 may move
  CHECK(message("fc1", false).empty());
}

AdaptOptions folder_options(const TemporaryFolder& folder, const std::string& out) {
  testing::write_stripes(folder / "source", 8, 16, 1);
  testing::write_stripes(folder / "target", 10, 16, 2);
  AdaptOptions options;
  options.training = FinetuneOptions::from_scratch();
  options.training.data = folder / "source";
  options.training.architecture = "small_cnn";
  options.training.image_size = 16;
  options.training.batch = 8;
  options.training.epochs = 2;
  options.training.workers = 0;
  options.training.out = folder / out;
  options.training.device = test_device();
  options.target = folder / "target";
  options.settings = {"hidden=16"};
  return options;
}

struct StopAfter : AdaptObserver {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};

std::map<std::string, Tensor> tensors_of(const fs::path& file) {
  std::map<std::string, Tensor> tensors;
  for (const FileTensor& entry : read_safetensors(file).tensors) tensors[entry.name] = entry.tensor;
  return tensors;
}

TEST_CASE("freeze_proof.json names what is frozen by its bytes, and says whether it moved") {
  const TemporaryFolder folder;
  AdaptOptions options = folder_options(folder, "run");
  options.training.freeze = {"conv1", "bn1"};
  const fs::path run = options.training.out;
  for (const NormMode mode : {NormMode::joint, NormMode::domain}) {
    options.norm = mode;
    options.training.overwrite = true;
    StopAfter stop(1);
    REQUIRE(adapt(options, stop).interrupted);
    const auto proof = [&] {
      return nlohmann::json::parse(file_bytes(run / "freeze_proof.json")).at("phases").at(0);
    };
    CHECK(proof()["verified"] == false);
    const auto first_weights = tensors_of(run / "state.safetensors");
    AdaptObserver quiet;
    const AdaptResult result = resume_adapt(run, {}, quiet);
    CHECK(result.proof.verified);
    const nlohmann::json done = proof();
    CHECK(done["verified"] == true);
    std::set<std::string> names;
    for (const auto& [name, hash] : done["sha256"].items()) names.insert(name);
    CHECK(names == std::set<std::string>{"bn1.bias", "bn1.num_batches_tracked", "bn1.running_mean",
                                         "bn1.running_var", "bn1.weight", "conv1.weight"});
    const auto last_weights = tensors_of(run / "last.safetensors");
    for (const std::string& name : names) {
      CAPTURE(name);
      const Tensor& last = last_weights.at(name);
      CHECK(done["sha256"][name] == sha256_hex_of(last.raw(), last.bytes()));
      const Tensor& first = first_weights.at("model/" + name);
      CHECK(std::memcmp(last.raw(), first.raw(), last.bytes()) == 0);
    }
    CHECK(last_weights.at("conv2.weight").to_vector<float>() !=
          first_weights.at("model/conv2.weight").to_vector<float>());
  }
}

TEST_CASE("frozen weights tampered with between two sittings are noticed before training goes on") {
  const TemporaryFolder folder;
  AdaptOptions options = folder_options(folder, "run");
  options.training.freeze = {"conv1"};
  StopAfter stop(1);
  REQUIRE(adapt(options, stop).interrupted);
  WeightFile file = read_safetensors(options.training.out / "state.safetensors");
  auto tensors = tensors_of(options.training.out / "state.safetensors");
  static_cast<unsigned char*>(tensors.at("model/conv1.weight").raw())[5] ^= 1;
  write_safetensors(options.training.out / "state.safetensors", tensors, file.metadata);
  AdaptObserver quiet;
  const std::string message = error_of([&] { resume_adapt(options.training.out, {}, quiet); });
  CAPTURE(message);
  CHECK(contains(message, "[conv1.weight]"));
  CHECK_FALSE(contains(message, "continue it with"));
}

// --- going on

TEST_CASE("a lost device names the command that goes on, to the same bytes") {
  if (test_device().is_cpu() || !cuda::is_simulated()) return;
  const TemporaryFolder folder;
  AdaptOptions options = folder_options(folder, "whole");
  options.training.save_minutes = 0;  // after every step
  AdaptObserver quiet;
  adapt(options, quiet);
  for (const int64_t nth_call : {1, 40}) {
    CAPTURE(nth_call);
    options.training.out = folder / ("lost" + std::to_string(nth_call));
    test::LoseDevice<AdaptObserver> observer(3, nth_call);
    const std::string message = error_of([&] { adapt(options, observer); });
    cuda::reset_simulated_device();
    CAPTURE(message);
    CHECK(contains(message, "CUDA reports cudaErrorLaunchFailure"));
    CHECK(message.ends_with("graft adapt --resume " + options.training.out.string()));
    resume_adapt(options.training.out, {}, quiet);
    for (const char* name : {"best.safetensors", "last.safetensors", "state.safetensors"}) {
      CHECK(file_bytes(options.training.out / name) == file_bytes(folder / "whole" / name));
    }
  }
}

TEST_CASE("the command to go on is the outermost run's, named once") {
  const auto wrapped = [](const std::exception& error, const char* command, const char* folder) {
    try {
      try {
        throw;
      } catch (...) {
        fail_resumably(error, command, folder);
      }
    } catch (const ResumableError& outer) {
      return outer;
    }
  };
  try {
    fail("the device is gone");
  } catch (const Error& error) {
    const ResumableError inner = wrapped(error, "finetune", "out/transfer-0");
    CHECK(inner.what() == std::string("the device is gone. out/transfer-0 holds the run as last "
                                      "saved; continue it with: graft finetune --resume "
                                      "out/transfer-0"));
    const ResumableError outer = wrapped(inner, "verdict", "out");
    CHECK(outer.what() == std::string("the device is gone. out holds the run as last saved; "
                                      "continue it with: graft verdict --resume out"));
  }
}

// --- the batch of a step

// Six batches an epoch, some of which cannot be read: what comes says which it is.
struct Patchy : Batches {
  explicit Patchy(std::set<std::pair<int64_t, int64_t>> gone) : unreadable(std::move(gone)) {}
  int64_t samples() const override { return 6; }
  int64_t count() const override { return 6; }
  void start_epoch(int64_t of, int64_t first) override {
    epoch = of;
    place = first;
    ++starts;
  }
  bool next(Batch& batch) override {
    while (place < 6 && unreadable.count({epoch, place}) > 0) ++place;
    if (place >= 6) return false;
    batch.images = Tensor::of<float>({static_cast<float>(epoch)});
    batch.number = place++;
    return true;
  }
  std::set<std::pair<int64_t, int64_t>> unreadable;
  int64_t epoch = 0, place = 0, starts = 0;
};

TEST_CASE("the batch of a step does not depend on where the run began") {
  const auto seen = [](const Batch& batch) {
    return std::make_pair(static_cast<int64_t>(batch.images.item()), batch.number);
  };
  Patchy patchy({{0, 2}, {1, 0}, {1, 4}, {1, 5}, {2, 5}});
  EndlessBatches whole(patchy, test_device());
  std::vector<std::pair<int64_t, int64_t>> all;
  for (int64_t step = 0; step < 18; ++step) {
    all.push_back(seen(whole.at(step)));
    CAPTURE(step);
    CHECK(all.back().first == step / 6);  // an epoch is as many steps as it has batches
    Patchy other(patchy.unreadable);
    EndlessBatches resumed(other, test_device());
    CHECK(seen(resumed.at(step)) == all.back());
  }
  using Places = std::vector<std::pair<int64_t, int64_t>>;
  CHECK(Places(all.begin(), all.begin() + 6) ==
        Places{{0, 0}, {0, 1}, {0, 3}, {0, 3}, {0, 4}, {0, 5}});
  CHECK(Places(all.begin() + 6, all.begin() + 12) ==
        Places{{1, 1}, {1, 1}, {1, 2}, {1, 3}, {1, 1}, {1, 1}});

  Patchy sound({});
  EndlessBatches through(sound, test_device());
  for (int64_t step = 0; step < 18; ++step) CHECK(seen(through.at(step)).second == step % 6);
  CHECK(sound.starts == 3);  // an epoch once
}

}  // namespace
}  // namespace graft
