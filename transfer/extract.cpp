#include "transfer/extract.h"

#include <algorithm>
#include <numeric>

#include "engine/autograd.h"
#include "engine/ops.h"
#include "kernels/error.h"
#include "layers/tap.h"
#include "transfer/batches.h"

namespace graft {
namespace {

// Stage by stage, no further than the layer.
Tensor run_up_to(ImageModel& model, Tap& tap, const Tensor& images) {
  tap.clear();
  Tensor x = images;
  for (size_t i = 0; i < model.stages().size(); ++i) {
    x = model.run_stages(x, i, i + 1);
    if (tap.has_output()) return tap.output();
  }
  model.head(x);  // which may be what is tapped
  return tap.output();
}

}  // namespace

Tensor pooled(const Tensor& activations, Pooling pooling) {
  const Tensor x = cast(activations, Dtype::f32).to(kCpu);
  if (pooling == Pooling::none) return x;
  if (pooling == Pooling::cls) {
    GRAFT_CHECK(x.rank() == 3 && x.dim(1) > 0,
                "extract: expected a layer that gives (n, positions, channels) to take the first "
                "position of, got ",
                x, "; pool with avg or max");
  } else if (x.rank() == 2) {
    return x;
  }
  GRAFT_CHECK(x.rank() == 3 || x.rank() == 4, "extract: expected a layer that gives (n, h, w, c), ",
              "(n, positions, channels) or (n, channels), got ", x, "; pool with none");
  const int64_t n = x.dim(0), channels = x.dim(-1);
  const int64_t positions = x.numel() / std::max<int64_t>(n * channels, 1);
  GRAFT_CHECK(n > 0 && positions > 0, "extract: there is nothing to pool in ", x);
  Tensor result({n, channels});
  const float* from = x.data<float>();
  float* to = result.mutable_data<float>();
  for (int64_t i = 0; i < n; ++i, from += positions * channels) {
    for (int64_t c = 0; c < channels; ++c) {
      double sum = 0;
      float largest = from[c];
      for (int64_t p = 0; p < positions; ++p) {
        sum += static_cast<double>(from[p * channels + c]);
        largest = std::max(largest, from[p * channels + c]);
      }
      *to++ = pooling == Pooling::cls   ? from[c]
              : pooling == Pooling::max ? largest
                                        : static_cast<float>(sum / static_cast<double>(positions));
    }
  }
  return result;
}

std::vector<std::string> extract_layer(
    FeatureNetwork& network, const ImageDataset& data, const std::string& layer, Pooling pooling,
    const ExtractOptions& options,
    const std::function<bool(const Tensor& rows, const Batch& batch)>& visit) {
  ImageModel& model = *network.model;
  Tap tap(model, layer.empty() ? model.stages().back().name() : layer);
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
  const NoGrad guard;
  model.eval();
  DeviceBatches there(*batches, network.device);
  there.start_epoch(0, 0);
  for (Batch batch; there.next(batch);) {
    const Tensor activations = run_up_to(model, tap, batch.images);
    there.prefetch();
    if (!visit(pooled(activations, pooling), batch)) break;
  }
  return batches->bad_images();
}

}  // namespace graft
