// `graft extract`: the outputs of a layer for labelled images, as NumPy arrays or safetensors.
#include "transfer/extract.h"

#include <iostream>

#include "tools/command.h"
#include "tools/progress.h"
#include "tools/stop_signal.h"
#include "transfer/feature_file.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

struct ExtractFlags {
  std::string weights, data, split, layer, pooling = "avg", out, bad_image = "error";
  int64_t batch = 32, workers = 1;
  bool json = false;
  ComputeOptions compute;
};

Pooling pooling_named(const std::string& name) {
  return name == "none"  ? Pooling::none
         : name == "avg" ? Pooling::avg
         : name == "max" ? Pooling::max
                         : Pooling::cls;
}

void run_extract(const ExtractFlags& options) {
  FeatureWriter writer(options.out);
  const Device device = options.compute.apply();
  FeatureNetwork network = open_features(options.weights, device, options.compute.precision);
  const ImageDataset data = read_images(options.data, options.split);
  ExtractOptions extract;
  extract.batch = options.batch;
  extract.workers = options.workers;
  extract.bad_image = options.bad_image == "skip" ? BadImage::skip : BadImage::error;

  catch_stop_signals();
  ProgressBar bar;
  const auto total = static_cast<int64_t>(data.samples.size());
  int64_t done = 0;
  const std::vector<std::string> bad =
      extract_layer(network, data, options.layer, pooling_named(options.pooling), extract,
                    [&](const Tensor& rows, const Batch& batch) {
                      writer.add(rows, data, batch.indices);
                      done += rows.dim(0);
                      bar.show(static_cast<double>(done) / static_cast<double>(total), "extracting",
                               text(done, " of ", total, " images"));
                      return stop_signal() == 0;
                    });
  bar.clear();
  if (stop_signal() != 0) {
    std::cerr << "stopped; nothing was written\n";
    throw Exit{stopped_exit_code()};
  }
  for (const std::string& one : bad) bar.line("skipped " + one);
  const std::string layer =
      options.layer.empty() ? network.model->stages().back().name() : options.layer;
  const std::vector<std::filesystem::path> files =
      writer.finish(data.class_names, {{"architecture", network.card.architecture},
                                       {"layer", layer},
                                       {"pool", options.pooling},
                                       {"weights_sha256", sha256_hex(options.weights)}});
  if (options.json) {
    nlohmann::ordered_json names = nlohmann::ordered_json::array();
    for (const auto& file : files) names.push_back(file.string());
    print_json({{"files", names},
                {"layer", layer},
                {"pool", options.pooling},
                {"shape", writer.shape()},
                {"classes", data.class_names},
                {"bad_images", bad.size()}});
    return;
  }
  std::cout << "layer " << layer << ", f32 " << text(writer.shape()) << ":\n";
  for (const auto& file : files) std::cout << "  " << file.string() << "\n";
}

}  // namespace

void add_extract(CLI::App& app) {
  auto options = std::make_shared<ExtractFlags>();
  CLI::App* command = add_command(
      app, "extract", "Write what a layer makes of your images, for other programs",
      "graft extract --weights lite0.safetensors --data photos --out features.safetensors\n"
      "graft extract --weights lite0.safetensors --data photos --layer _blocks.10 --pool none "
      "--out "
      "maps.npy");
  command->add_option("--weights", options->weights, "weights from graft convert or finetune")
      ->required();
  command
      ->add_option("--data", options->data,
                   "folder with one sub-folder a class, or a CSV manifest (path,label[,split])")
      ->required();
  command
      ->add_option("--out", options->out,
                   "file of the features: .safetensors, or .npy with its labels, "
                   "classes and paths beside it")
      ->required();
  command->add_option("--layer", options->layer,
                      "a name that graft inspect prints, or a stage such as avgpool (the features "
                      "that the head takes)");
  command->add_option("--pool", options->pooling, "over positions: none, avg, max or cls")
      ->check(CLI::IsMember({"none", "avg", "max", "cls"}))
      ->capture_default_str();
  command->add_option("--split", options->split,
                      "only the manifest's rows (or the sub-folder) of this split");
  command->add_option("--batch", options->batch, "images a forward pass")
      ->check(CLI::Range(1, 65536))
      ->capture_default_str();
  command->add_option("--workers", options->workers, "threads that decode images")
      ->check(CLI::Range(0, 256))
      ->capture_default_str();
  command->add_option("--on-bad-image", options->bad_image, "error, or skip and name it")
      ->check(CLI::IsMember({"error", "skip"}))
      ->capture_default_str();
  add_json_option(*command, options->json);
  options->compute.add_to(*command);
  command->callback([options] { run_extract(*options); });
}

}  // namespace graft
