#include "transfer/features.h"

#include <algorithm>
#include <numeric>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "transfer/batches.h"

namespace graft {

FeatureNetwork open_features(const std::filesystem::path& weights, Device device, Dtype precision) {
  FeatureNetwork network;
  network.device = device;
  const ModelCard card = read_card(weights);
  network.has_head = card.classes > 0;
  if (network.has_head) {
    LoadedModel loaded = load_model(weights);
    network.model = std::move(loaded.model);
    network.card = std::move(loaded.card);
  } else {
    network.model = load_for_task(weights, 1, card.in_channels, -1, {}).model;
    network.card = card;
  }
  network.model->to(device);
  network.model->set_precision(precision);
  network.model->eval();
  return network;
}

ExtractedFeatures extract_features(FeatureNetwork& network, const ImageDataset& data,
                                   const ExtractOptions& options,
                                   const std::function<bool(int64_t)>& keep_going) {
  std::vector<int64_t> everything(data.samples.size());
  std::iota(everything.begin(), everything.end(), int64_t{0});
  LoaderOptions reading;
  reading.batch_size = options.batch;
  reading.channels = network.card.in_channels;
  reading.workers = options.workers;
  reading.bad_image = options.bad_image;
  reading.for_gpu = !network.device.is_cpu();
  reading.cache_bytes = 0;  // every image is read once
  const std::unique_ptr<Batches> batches =
      image_batches(data, everything, network.card.preprocessing, {}, reading);
  Features features = compute_features(*network.model, *batches, network.device, keep_going);
  ExtractedFeatures result;
  if (!features.values.defined()) return result;
  if (network.has_head) result.logits = head_outputs(network, features.values, options.batch);
  result.features = std::move(features.values);
  result.labels = std::move(features.labels);
  result.indices = std::move(features.indices);
  result.bad_images = batches->bad_images();
  return result;
}

Tensor head_outputs(FeatureNetwork& network, const Tensor& features, int64_t batch) {
  const NoGrad guard;
  const int64_t n = features.dim(0), classes = network.model->classes();
  std::vector<float> values;
  values.reserve(static_cast<size_t>(n * classes));
  for (int64_t begin = 0; begin < n; begin += batch) {
    const Tensor part = narrow(features, begin, std::min(batch, n - begin)).to(network.device);
    const std::vector<float> rows = network.model->head(part).to_vector<float>();
    values.insert(values.end(), rows.begin(), rows.end());
  }
  return Tensor::of(values, {n, classes});
}

}  // namespace graft
