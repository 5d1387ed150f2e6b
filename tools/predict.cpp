// `graft predict`: class names and probabilities for pictures.
#include <algorithm>
#include <iostream>
#include <numeric>

#include "engine/autograd.h"
#include "engine/data/image.h"
#include "engine/data/transform.h"
#include "engine/ops.h"
#include "layers/models/zoo.h"
#include "tools/command.h"
#include "tools/progress.h"

namespace graft {
namespace {

struct PredictOptions {
  std::string weights;
  std::vector<std::string> images;
  int64_t top = 5;
  bool json = false;
  ComputeOptions compute;
};

std::string class_name(const ModelCard& card, int64_t index) {
  const size_t i = static_cast<size_t>(index);
  return i < card.class_names.size() ? card.class_names[i] : text("class ", index);
}

std::vector<float> probabilities_of(LoadedModel& loaded, const std::string& path, Device device) {
  const Preprocessing& preprocessing = loaded.card.preprocessing;
  const int64_t channels = loaded.card.in_channels;
  const Image view = eval_view(load_image(path, channels), preprocessing);
  Tensor input({1, view.height, view.width, channels});
  normalise(view, preprocessing, input.mutable_data<float>());
  return softmax(loaded.model->forward(input.to(device))).to_vector<float>();
}

void print_top(const PredictOptions& options, const ModelCard& card, const std::string& path,
               const std::vector<float>& probabilities) {
  std::vector<int64_t> order(probabilities.size());
  std::iota(order.begin(), order.end(), int64_t{0});
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return probabilities[static_cast<size_t>(a)] > probabilities[static_cast<size_t>(b)];
  });
  order.resize(std::min(order.size(), static_cast<size_t>(options.top)));
  nlohmann::ordered_json line{{"file", path}, {"top", nlohmann::ordered_json::array()}};
  std::string words = path + "\n";
  for (const int64_t index : order) {
    const float probability = probabilities[static_cast<size_t>(index)];
    const std::string name = class_name(card, index);
    line["top"].push_back({{"class", name}, {"index", index}, {"probability", probability}});
    words += "  " + fixed(static_cast<double>(probability), 3) + "  " + name + "\n";
  }
  if (options.json) {
    print_json(line);
  } else {
    std::cout << words;
  }
}

void run_predict(const PredictOptions& options) {
  const Device device = options.compute.apply();
  LoadedModel loaded = load_model(options.weights);
  loaded.model->to(device);
  loaded.model->set_precision(options.compute.precision);
  loaded.model->eval();
  const NoGrad guard;
  // One unreadable picture does not keep the others from their answer, but it does fail the
  // command.
  size_t unreadable = 0;
  for (const std::string& path : options.images) {
    try {
      print_top(options, loaded.card, path, probabilities_of(loaded, path, device));
    } catch (const Error& error) {
      ++unreadable;
      std::cerr << "graft: " << error.what() << "\n";
      if (options.json) print_json({{"file", path}, {"error", error.what()}});
    }
  }
  if (unreadable > 0)
    fail("predict: ", unreadable, " of ", options.images.size(), " images failed");
}

}  // namespace

void add_predict(CLI::App& app) {
  auto options = std::make_shared<PredictOptions>();
  CLI::App* command = add_command(app, "predict", "Classify pictures",
                                  "graft predict --weights run/best.safetensors picture.jpg\n"
                                  "graft predict --weights lite0.safetensors --top 3 --json *.jpg");
  command->add_option("--weights", options->weights, "weights from graft convert or finetune")
      ->required();
  command->add_option("IMAGE", options->images, "JPEG or PNG files")->required();
  command->add_option("--top", options->top, "how many classes to show")
      ->check(CLI::Range(1, 1000000))
      ->capture_default_str();
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_predict(*options); });
}

}  // namespace graft
