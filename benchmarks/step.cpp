// Times one training or inference step of a model, on images that are made up and stay in memory:
// the loader is measured elsewhere.
//
// A training step is what the trainer does: forward, cross-entropy, backward, SGD with momentum and
// weight decay. An inference step runs in inference mode and records nothing. No dropout, so that
// the first step's value ("check": the loss, or the first logit) can be compared with another
// program's for the same weights (--save-weights) and the same images.
#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <map>
#include <nlohmann/json.hpp>
#include <omp.h>
#include <string>
#include <vector>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "engine/ops.h"
#include "engine/optim.h"
#include "engine/rng.h"
#include "kernels/threads.h"
#include "layers/models/zoo.h"

namespace {

using namespace graft;

constexpr const char* kUsage =
    "usage: step --workload W [--batch B] [--size PIXELS] [--steps N] [--warmup K] [--threads T] "
    "[--device cpu|cuda] [--save-weights FILE] [--json]\n"
    "W is an architecture of the zoo followed by -train or -infer: lite0-train, resnet50-infer,\n"
    "mobilenetv2-train, resnet18-train ...\n";

struct Options {
  std::string workload, save_weights, device = "cpu";
  int64_t batch = 16, size = 224, steps = 5, warmup = 2, threads = 2;
  bool json = false;
};

Options parse(int argc, char** argv) {
  Options options;
  const std::map<std::string, std::string*> texts{{"--workload", &options.workload},
                                                  {"--save-weights", &options.save_weights},
                                                  {"--device", &options.device}};
  const std::map<std::string, int64_t*> numbers{{"--batch", &options.batch},
                                                {"--size", &options.size},
                                                {"--steps", &options.steps},
                                                {"--warmup", &options.warmup},
                                                {"--threads", &options.threads}};
  for (int i = 1; i < argc; ++i) {
    const std::string name = argv[i];
    if (name == "--json") {
      options.json = true;
      continue;
    }
    GRAFT_CHECK(i + 1 < argc && (texts.contains(name) || numbers.contains(name)),
                "step: cannot use \"", name, "\"\n", kUsage);
    const std::string value = argv[++i];
    if (texts.contains(name)) {
      *texts.at(name) = value;
    } else {
      *numbers.at(name) = std::atoll(value.c_str());
      GRAFT_CHECK(*numbers.at(name) > 0 || name == "--warmup", "step: ", name,
                  " expected a positive number, got ", value);
    }
  }
  return options;
}

// "lite0-train" -> {"efficientnet_lite0", true}
std::pair<std::string, bool> model_of(const std::string& workload) {
  const size_t dash = workload.rfind('-');
  const std::string kind = dash == std::string::npos ? "" : workload.substr(dash + 1);
  GRAFT_CHECK(kind == "train" || kind == "infer", "step: no such workload \"", workload, "\"\n",
              kUsage);
  std::string name = workload.substr(0, dash);
  if (name.starts_with("lite")) name = "efficientnet_" + name;
  if (name == "mobilenetv2") name = "mobilenet_v2";
  return {name, kind == "train"};
}

// The same numbers in every program: no random generator, values in [-1, 1).
Tensor made_up_images(int64_t batch, int64_t size) {
  std::vector<float> values(static_cast<size_t>(batch * size * size * 3));
  for (size_t i = 0; i < values.size(); ++i) {
    values[i] = static_cast<float>(i * 48271 % 65536) / 32768.0f - 1.0f;
  }
  return Tensor::of(values, {batch, size, size, 3});
}

// The most memory so far, in bytes: of the device its tensors, of the host the whole process.
int64_t peak_memory(Device device) {
  if (!device.is_cpu()) return static_cast<int64_t>(memory_stats(device).peak_in_use);
  std::ifstream status("/proc/self/status");
  for (std::string word; status >> word;) {
    if (word == "VmHWM:") {
      int64_t kilobytes = 0;
      status >> kilobytes;
      return kilobytes * 1024;
    }
  }
  return 0;
}

std::vector<ParameterGroup> all_parameters(ImageModel& model) {
  ParameterGroup group{.name = "all", .learning_rate = 0.01f, .weight_decay = 1e-4f};
  for (const auto& parameter : model.named_parameters()) {
    group.parameters.push_back({parameter.name, *parameter.tensor});
  }
  return {group};
}

}  // namespace

int main(int argc, char** argv) try {
  cpu::sleep_when_idle(argv);
  const Options options = parse(argc, argv);
  const auto [architecture, training] = model_of(options.workload);
  omp_set_num_threads(static_cast<int>(options.threads));

  const auto model = make_model(architecture, {.dropout = 0, .drop_path = 0}, {.seed = 1});
  if (!options.save_weights.empty()) write_safetensors(options.save_weights, model->state_dict());
  GRAFT_CHECK(options.device == "cpu" || options.device == "cuda", "step: no such device \"",
              options.device, "\"\n", kUsage);
  const Device device = options.device == "cpu" ? kCpu : Device{Device::Kind::cuda, 0};
  model->to(device);
  model->train(training);
  const Tensor images = made_up_images(options.batch, options.size).to(device);
  std::vector<int64_t> labels(static_cast<size_t>(options.batch));
  for (size_t i = 0; i < labels.size(); ++i) labels[i] = static_cast<int64_t>(i * 37 % 1000);
  const Tensor target = Tensor::of(labels).to(device);
  const auto optimizer = make_sgd(all_parameters(*model), {.momentum = 0.9f});

  std::vector<double> seconds;
  float first = 0;
  for (int64_t step = 0; step < options.warmup + options.steps; ++step) {
    const auto start = std::chrono::steady_clock::now();
    begin_rng_step(1, static_cast<uint64_t>(step));
    if (training) {
      const Tensor error = cross_entropy(model->forward(images), target);
      optimizer->zero_grad();
      backward(error);
      optimizer->step();
      // Waits for the device, as a loop that prints its loss does.
      const float value = error.item();
      if (step == 0) first = value;
    } else {
      const NoGrad no_grad;
      const Tensor logits = model->forward(images);
      const float value = narrow(view_as(logits, {logits.numel()}), 0, 1).item();
      if (step == 0) first = value;
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (step >= options.warmup) seconds.push_back(elapsed.count());
  }
  std::sort(seconds.begin(), seconds.end());
  const double median = seconds[seconds.size() / 2];
  if (options.json) {
    std::cout << nlohmann::ordered_json{{"workload", options.workload},
                                        {"batch", options.batch},
                                        {"size", options.size},
                                        {"threads", options.threads},
                                        {"device", options.device},
                                        {"step_seconds", median},
                                        {"step_seconds_all", seconds},
                                        {"images_per_second", options.batch / median},
                                        {"peak_bytes", peak_memory(device)},
                                        {"check", first}}
              << "\n";
  } else {
    std::printf("%s: %.1f ms a step, %.1f images/s, %lld MB at most, first value %g\n",
                options.workload.c_str(), 1e3 * median, options.batch / median,
                static_cast<long long>(peak_memory(device) >> 20), first);
  }
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return 1;
}
