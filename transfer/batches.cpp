#include "transfer/batches.h"

#include <algorithm>
#include <numeric>
#include <utility>

#include "engine/autograd.h"
#include "kernels/error.h"

namespace graft {
namespace {

class ImageBatches : public Batches {
 public:
  ImageBatches(const ImageDataset& data, std::vector<int64_t> indices,
               const Preprocessing& preprocessing, const Augmentation& augmentation,
               const LoaderOptions& options)
      : loader_(data, std::move(indices), preprocessing, augmentation, options) {}
  int64_t samples() const override { return loader_.samples(); }
  int64_t count() const override { return loader_.batches(); }
  void start_epoch(int64_t epoch, int64_t first_batch) override {
    loader_.start_epoch(epoch, first_batch);
  }
  bool next(Batch& batch) override {
    if (!loader_.next(batch)) return false;
    if (batch.packed.bytes.defined()) {
      batch.images = render(batch.packed, batch.packed.bytes);
      batch.packed = {};
    }
    return true;
  }
  bool next_packed(Batch& batch) override { return loader_.next(batch); }
  std::vector<std::string> bad_images() const override { return loader_.bad_images(); }

 private:
  Loader loader_;
};

class FeatureBatches : public Batches {
 public:
  FeatureBatches(Features features, const LoaderOptions& options)
      : features_(std::move(features)), options_(options), order_(features_.labels.size()) {}

  int64_t samples() const override { return static_cast<int64_t>(features_.labels.size()); }
  int64_t count() const override {
    const int64_t whole = samples() / options_.batch_size;
    return options_.drop_last || samples() % options_.batch_size == 0 ? whole : whole + 1;
  }

  void start_epoch(int64_t epoch, int64_t first_batch) override {
    if (options_.shuffle) {
      order_ = shuffled_order(samples(), options_.seed, epoch);
    } else {
      std::iota(order_.begin(), order_.end(), int64_t{0});
    }
    next_ = first_batch;
  }

  bool next(Batch& batch) override {
    if (next_ >= count()) return false;
    const int64_t begin = next_ * options_.batch_size;
    const int64_t n = std::min(options_.batch_size, samples() - begin);
    const int64_t width = features_.values.dim(1);
    batch.images = options_.for_gpu ? pinned_tensor({n, width}) : Tensor({n, width});
    batch.labels = Tensor({n}, Dtype::i64);
    batch.indices.resize(static_cast<size_t>(n));
    float* rows = batch.images.mutable_data<float>();
    int64_t* labels = batch.labels.mutable_data<int64_t>();
    for (int64_t i = 0; i < n; ++i) {
      const int64_t from = order_[static_cast<size_t>(begin + i)];
      std::copy_n(features_.values.data<float>() + from * width, width, rows + i * width);
      labels[i] = features_.labels[static_cast<size_t>(from)];
      batch.indices[static_cast<size_t>(i)] = features_.indices[static_cast<size_t>(from)];
    }
    batch.number = next_++;
    return true;
  }

 private:
  Features features_;
  LoaderOptions options_;
  std::vector<int64_t> order_;
  int64_t next_ = 0;
};

}  // namespace

DeviceBatches::DeviceBatches(Batches& batches, Device device) : batches_(batches) {
  if (!device.is_cpu()) upload_ = std::make_unique<Upload>(device);
}

void DeviceBatches::start_epoch(int64_t epoch, int64_t first_batch) {
  fetched_ = false;
  fault_ = nullptr;
  batches_.start_epoch(epoch, first_batch);
}

bool DeviceBatches::next(Batch& batch) {
  if (!upload_) return batches_.next(batch);
  prefetch();
  fetched_ = false;
  if (fault_) std::rethrow_exception(std::exchange(fault_, nullptr));
  if (!more_) return false;
  batch = std::move(ahead_);
  batch.images = upload_->take();
  if (batch.packed.bytes.defined()) batch.images = render(batch.packed, batch.images);
  return true;
}

void DeviceBatches::prefetch() {
  if (!upload_ || fetched_) return;
  fetched_ = true;
  try {
    more_ = batches_.next_packed(ahead_);
    if (more_) {
      const bool packed = ahead_.packed.bytes.defined();
      upload_->start(packed ? ahead_.packed.bytes : ahead_.images);
    }
  } catch (...) {
    fault_ = std::current_exception();
  }
}

std::unique_ptr<Batches> image_batches(const ImageDataset& data, std::vector<int64_t> indices,
                                       const Preprocessing& preprocessing,
                                       const Augmentation& augmentation,
                                       const LoaderOptions& options) {
  return std::make_unique<ImageBatches>(data, std::move(indices), preprocessing, augmentation,
                                        options);
}

Features compute_features(ImageModel& model, Batches& images, Device device,
                          const std::function<bool(int64_t)>& keep_going) {
  const NoGrad guard;
  model.eval();
  Features result;
  std::vector<float> values;
  DeviceBatches there(images, device);
  there.start_epoch(0, 0);
  for (Batch batch; there.next(batch);) {
    const Tensor features = cast(model.features(batch.images), Dtype::f32);
    there.prefetch();
    const std::vector<float> rows = features.to_vector<float>();
    const std::vector<int64_t> labels = batch.labels.to_vector<int64_t>();
    values.insert(values.end(), rows.begin(), rows.end());
    result.labels.insert(result.labels.end(), labels.begin(), labels.end());
    result.indices.insert(result.indices.end(), batch.indices.begin(), batch.indices.end());
    if (!keep_going(static_cast<int64_t>(result.labels.size()))) return {};
  }
  GRAFT_CHECK(!result.labels.empty(), "features: no image could be read");
  result.values =
      Tensor::of(values, {static_cast<int64_t>(result.labels.size()), model.feature_width()});
  return result;
}

std::unique_ptr<Batches> feature_batches(Features features, const LoaderOptions& options) {
  return std::make_unique<FeatureBatches>(std::move(features), options);
}

}  // namespace graft
