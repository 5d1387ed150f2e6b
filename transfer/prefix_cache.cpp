#include "transfer/prefix_cache.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <set>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "kernels/error.h"
#include "layers/dropout.h"
#include "layers/norm.h"
#include "transfer/activation_store.h"
#include "transfer/version.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

constexpr double kMiB = 1024.0 * 1024.0;

bool stands_still(Module& module) {
  for (const NamedTensor& parameter : module.named_parameters()) {
    if (parameter.tensor->requires_grad() || parameter.role == AdapterRole::adapter) return false;
  }
  for (const auto& [name, part] : module.named_modules()) {
    if (auto* norm = dynamic_cast<BatchNorm2d*>(part); norm && !norm->uses_running_statistics()) {
      return false;
    }
    auto* drops = dynamic_cast<DropsOut*>(part);
    if (drops != nullptr && part->training() && drops->dropout_probability() > 0) return false;
  }
  return true;
}

std::string size_text(double bytes) {
  const double mebibytes = bytes / kMiB;
  return mebibytes < 10 ? text(std::round(mebibytes * 100) / 100, " MiB")
                        : text(std::llround(mebibytes), " MiB");
}

// What the prefix makes of a batch, as f32 on the host.
std::vector<float> run_prefix(ImageModel& model, const Tensor& images, size_t stages) {
  const NoGrad guard;
  return cast(model.run_stages(images, 0, stages), Dtype::f32).to_vector<float>();
}

// Serves stored rows as the loader would serve the images.
class CachedBatches : public Batches {
 public:
  CachedBatches(std::vector<ActivationStore> views, std::vector<int64_t> epochs,
                std::vector<int64_t> labels, std::vector<int64_t> indices,
                const LoaderOptions& options, int64_t period)
      : views_(std::move(views)),
        epochs_(std::move(epochs)),
        labels_(std::move(labels)),
        indices_(std::move(indices)),
        options_(options),
        period_(period),
        order_(indices_.size()) {}

  int64_t samples() const override { return static_cast<int64_t>(indices_.size()); }
  int64_t count() const override {
    return options_.drop_last ? samples() / options_.batch_size
                              : (samples() - 1) / options_.batch_size + 1;
  }

  void start_epoch(int64_t epoch, int64_t first_batch) override {
    if (options_.shuffle) {
      order_ = shuffled_order(samples(), options_.seed, epoch);
    } else {
      std::iota(order_.begin(), order_.end(), int64_t{0});
    }
    next_ = first_batch;
    const auto view = std::find(epochs_.begin(), epochs_.end(), epoch % period_);
    GRAFT_CHECK(view != epochs_.end(), "prefix cache: nothing is kept for epoch ", epoch + 1);
    store_ = &views_[static_cast<size_t>(view - epochs_.begin())];
  }

  bool next(Batch& batch) override {
    while (next_ < count()) {
      const int64_t begin = next_ * options_.batch_size;
      const int64_t end = std::min(begin + options_.batch_size, samples());
      std::vector<int64_t> rows;
      for (int64_t i = begin; i < end; ++i) {
        const int64_t row = order_[static_cast<size_t>(i)];
        if (store_->has(row)) rows.push_back(row);
      }
      batch.number = next_++;
      if (rows.empty()) continue;
      gather(rows, batch);
      return true;
    }
    return false;
  }

  std::vector<std::string> bad_images() const override { return views_.front().bad_images(); }

 private:
  void gather(const std::vector<int64_t>& rows, Batch& batch) const {
    Shape shape = store_->layout().row;
    const int64_t width = store_->layout().row_values();
    shape.insert(shape.begin(), static_cast<int64_t>(rows.size()));
    batch.images = options_.for_gpu ? pinned_tensor(std::move(shape)) : Tensor(std::move(shape));
    float* out = batch.images.mutable_data<float>();
    std::vector<int64_t> labels;
    batch.indices.clear();
    for (const int64_t row : rows) {
      store_->read(row, out);
      out += width;
      labels.push_back(labels_[static_cast<size_t>(row)]);
      batch.indices.push_back(indices_[static_cast<size_t>(row)]);
    }
    batch.labels = Tensor::of(labels);
  }

  std::vector<ActivationStore> views_;  // of the epochs epochs_, modulo period_
  std::vector<int64_t> epochs_, labels_, indices_;
  LoaderOptions options_;
  int64_t period_;
  std::vector<int64_t> order_;
  const ActivationStore* store_ = nullptr;
  int64_t next_ = 0;
};

// Everything but the images that the prefix's results depend on.
std::string prefix_key(ImageModel& model, size_t stages, const FinetuneOptions& options,
                       const Preprocessing& p) {
  std::string all = text("graft ", version(), "\n", options.device.is_cpu() ? "cpu" : "cuda", " ",
                         model.precision(), "\nresize ", p.resize, " crop ", p.crop, " ",
                         static_cast<int>(p.crop_offset), " ", static_cast<int>(p.interpolation),
                         " channels ", options.channels, "\n");
  for (const float value : p.mean) all += text(decimal(value), " ");
  for (const float value : p.stddev) all += text(decimal(value), " ");
  for (size_t i = 0; i < stages; ++i) {
    const Stage& stage = model.stages()[i];
    all += text("\nstage ", stage.name());
    for (Module* module : stage.modules()) {
      for (const auto& [name, tensor] : module->state_dict()) {
        all += text("\n", name, " ", tensor, " ", sha256_hex_of(tensor.raw(), tensor.bytes()));
      }
    }
  }
  return all;
}

// Each image by its place in the data set and its contents.
std::string images_key(const ImageDataset& data, const std::vector<int64_t>& indices) {
  std::string all;
  for (const int64_t i : indices) {
    std::string contents = "unreadable";
    try {
      contents = sha256_hex(data.samples[static_cast<size_t>(i)].path);
    } catch (const Error&) {  // the loader will say so
    }
    all += text(i, '\t', contents, '\n');
  }
  return all;
}

std::string augmentation_key(const Augmentation& a, uint64_t seed, int64_t epoch) {
  return text("\nview ", epoch, " seed ", seed, " crop ", a.random_resized_crop, " ", a.min_scale,
              " ", a.max_scale, " ", a.min_ratio, " ", a.max_ratio, " flips ", a.horizontal_flip,
              a.vertical_flip, " jitter ", a.brightness, " ", a.contrast, " ", a.saturation, " ",
              a.hue, " randaugment ", a.randaugment_ops, " ", a.randaugment_magnitude, "\n");
}

std::string hash_of(const std::string& all) { return sha256_hex_of(all.data(), all.size()); }

}  // namespace

bool augments(const Augmentation& a) {
  return a.random_resized_crop || a.horizontal_flip || a.vertical_flip || a.brightness > 0 ||
         a.contrast > 0 || a.saturation > 0 || a.hue > 0 || a.randaugment_ops > 0;
}

size_t frozen_prefix(ImageModel& model) {
  size_t frozen = 0;
  bool any = false;
  for (const Stage& stage : model.stages()) {
    for (Module* module : stage.modules()) {
      if (!stands_still(*module)) return any ? frozen : 0;
      any = true;
    }
    ++frozen;
  }
  return any ? frozen : 0;
}

CachePlan plan_cache(ImageModel& model, const FinetuneOptions& options,
                     const Preprocessing& preprocessing, int64_t train_images,
                     int64_t validation_images, int64_t first, int64_t last) {
  CachePlan plan;
  const size_t stages = frozen_prefix(model);
  if (stages == 0) return plan;
  const CacheOptions& cache = options.cache;
  const std::string where =
      text(stages == 1 ? "stage " : "stages up to ", model.stages()[stages - 1].name());
  if (cache.kind == CacheKind::off) {
    plan.line = text("cache: off; the frozen ", where, " run for every image in every epoch");
    return plan;
  }
  if (options.regularise.mixes()) {
    plan.line = text("cache: none, because every step mixes other images, so that the frozen ",
                     where, " run each time");
    return plan;
  }
  if (options.regularise.delta > 0) {
    plan.line = "cache: none, because DELTA shows the images to the starting network, too";
    return plan;
  }
  const bool views = augments(options.augmentation);
  if (views && cache.views == 0) {
    plan.line =
        text("cache: none, because every epoch augments the images anew, so that the frozen ",
             where, " run each time; --cache-views K keeps K views of each image");
    return plan;
  }
  if (last - first == 1 && cache.folder.empty()) {
    plan.line = "cache: none, because a single epoch uses each image once";
    return plan;
  }
  std::set<int64_t> epochs;
  const int64_t period = views ? cache.views : 1;
  for (int64_t e = first; e < last && e < first + period; ++e) epochs.insert(e % period);
  {
    const NoGrad guard;
    const Device device = model.named_parameters().front().tensor->device();
    const Tensor black = Tensor::zeros(
        {1, preprocessing.crop, preprocessing.crop, options.channels}, Dtype::f32, device);
    plan.row = model.run_stages(black, 0, stages).shape();
  }
  plan.row.erase(plan.row.begin());
  plan.dtype =
      cache.kind == CacheKind::bf16 || options.precision == Dtype::bf16 ? Dtype::bf16 : Dtype::f32;
  const double row = static_cast<double>(ActivationLayout{plan.row, plan.dtype, 0, ""}.row_bytes());
  const auto stored = static_cast<int64_t>(epochs.size()) * train_images + validation_images;
  const double bytes = row * static_cast<double>(stored);
  plan.in_memory = bytes <= static_cast<double>(cache.memory) * kMiB;
  if (!plan.in_memory && cache.folder.empty()) {
    plan.line =
        text("cache: none, because what the frozen ", where, " make of ", stored,
             views ? " views" : " images", " is ", size_text(bytes), ", more than --cache-memory ",
             cache.memory, "; raise it, or give --cache-dir");
    return plan;
  }
  plan.stages = stages;
  plan.views.assign(epochs.begin(), epochs.end());
  plan.line = text("cache: the ", where, " are frozen and run once for each of ", stored,
                   views ? " views (" : " images (",
                   views ? text(epochs.size(), " an image, ") : "", size_text(bytes), " of ",
                   plan.dtype, " ", plan.in_memory ? "in memory" : "on disk", ")");
  return plan;
}

PrefixCache::PrefixCache(ImageModel& model, const FinetuneOptions& options,
                         const Preprocessing& preprocessing, CachePlan plan,
                         std::function<void(const std::string&)> say)
    : model_(model),
      options_(options),
      preprocessing_(preprocessing),
      plan_(std::move(plan)),
      say_(std::move(say)) {}

bool PrefixCache::independent_of_batch(const Tensor& images,
                                       const std::vector<int64_t>& sizes) const {
  const int64_t n = images.dim(0), pixels = images.numel() / n;
  model_.eval();
  const auto run = [&](const Tensor& x) {
    return run_prefix(model_, x.to(options_.device), plan_.stages);
  };
  const std::vector<float> whole = run(images);
  const size_t width = whole.size() / static_cast<size_t>(n);
  const auto same = [&](const std::vector<float>& part, int64_t first) {
    return std::memcmp(part.data(), whole.data() + static_cast<size_t>(first) * width,
                       part.size() * sizeof(float)) == 0;
  };
  for (const int64_t size : sizes) {
    if (size < 1 || size >= n) continue;
    if (!same(run(narrow(images, 0, size)), 0)) return false;
    if (!same(run(narrow(images, n - size, size)), n - size)) return false;
  }
  if (n < 2) return true;
  Tensor turned(images.shape());  // every image in another place
  float* out = turned.mutable_data<float>();
  std::copy_n(images.data<float>() + pixels, (n - 1) * pixels, out);
  std::copy_n(images.data<float>(), pixels, out + (n - 1) * pixels);
  std::vector<float> result = run(turned);
  std::rotate(result.begin(), result.end() - static_cast<std::ptrdiff_t>(width), result.end());
  return same(result, 0);
}

bool PrefixCache::agrees(const ActivationStore& kept, Batches& first, int64_t epoch) const {
  first.start_epoch(epoch, 0);
  Batch batch;
  const int64_t few = first.samples(), width = kept.layout().row_values();
  if (!first.next(batch) || static_cast<int64_t>(batch.indices.size()) != few) return false;
  const std::vector<float> rows =
      run_prefix(model_, batch.images.to(options_.device), plan_.stages);
  ActivationWriter writer({plan_.row, plan_.dtype, few, ""}, true, {});
  for (int64_t i = 0; i < few; ++i) writer.add(i, rows.data() + i * width);
  const ActivationStore fresh = writer.finish({});
  std::vector<float> now(static_cast<size_t>(width)), then(now.size());
  for (int64_t i = 0; i < few; ++i) {
    fresh.read(i, now.data());
    kept.read(i, then.data());
    if (std::memcmp(now.data(), then.data(), now.size() * sizeof(float)) != 0) return false;
  }
  return true;
}

std::optional<ActivationStore> PrefixCache::compute(
    Batches& images, const std::vector<int64_t>& indices, int64_t epoch, ActivationWriter& writer,
    const std::function<bool(int64_t)>& keep_going) {
  DeviceBatches there(images, options_.device);
  there.start_epoch(epoch, 0);
  int64_t row = 0, done = 0;
  for (Batch batch; there.next(batch);) {
    const NoGrad guard;
    const Tensor out = cast(model_.run_stages(batch.images, 0, plan_.stages), Dtype::f32);
    there.prefetch();
    const std::vector<float> rows = out.to_vector<float>();
    const int64_t width = out.numel() / out.dim(0);
    for (size_t i = 0; i < batch.indices.size(); ++i, ++row) {
      while (indices[static_cast<size_t>(row)] != batch.indices[i]) ++row;  // unreadable ones
      writer.add(row, rows.data() + static_cast<int64_t>(i) * width);
    }
    done += static_cast<int64_t>(batch.indices.size());
    if (!keep_going(done)) return std::nullopt;
  }
  computed_ += done;
  return writer.finish(images.bad_images());
}

std::unique_ptr<Batches> PrefixCache::batches(
    const ImageDataset& data, const std::vector<int64_t>& indices, const LoaderOptions& order,
    const std::function<bool(int64_t, int64_t)>& keep_going) {
  const bool views = order.train && augments(options_.augmentation);
  const std::vector<int64_t> epochs = views ? plan_.views : std::vector<int64_t>{0};
  LoaderOptions reading = order;
  reading.shuffle = reading.drop_last = false;
  reading.train = views;
  if (epochs.size() == 1) reading.cache_bytes = 0;
  const auto n = static_cast<int64_t>(indices.size());
  const auto open = [&](const std::vector<int64_t>& chosen) {
    return image_batches(data, chosen, preprocessing_, options_.augmentation, reading);
  };
  std::unique_ptr<Batches> source;  // opened when something has to be computed
  const fs::path& folder = options_.cache.folder;
  if (!folder.empty()) fs::create_directories(folder);
  if (!folder.empty() && weights_key_.empty()) {
    weights_key_ = prefix_key(model_, plan_.stages, options_, preprocessing_);
  }
  const std::string images = folder.empty() ? "" : images_key(data, indices);
  model_.eval();
  std::vector<ActivationStore> stores;
  for (size_t v = 0; v < epochs.size(); ++v) {
    ActivationLayout layout{plan_.row, plan_.dtype, n, ""};
    bytes_ += layout.row_bytes() * static_cast<size_t>(n);
    fs::path file;
    if (!folder.empty()) {
      const std::string view =
          views ? augmentation_key(options_.augmentation, order.seed, epochs[v]) : "";
      std::string paths;
      for (const int64_t i : indices) {
        paths += fs::absolute(data.samples[static_cast<size_t>(i)].path).string() + '\n';
      }
      // The name says what it is of, the key in what state that was: a stale file is replaced.
      const std::string name = hash_of(text(paths, model_.stages()[plan_.stages - 1].name(), " ",
                                            plan_.dtype, view.empty() ? "" : text(epochs[v])));
      file = folder / (name.substr(0, 16) + ".activations");
      layout.key = hash_of(weights_key_ + images + view);
      std::string why;
      std::optional<ActivationStore> kept = ActivationStore::open(file, layout, why);
      if (kept &&
          !agrees(*kept, *open({indices.begin(), indices.begin() + std::min(n, order.batch_size)}),
                  epochs[v])) {
        kept.reset();
        why = file.string() + ": this program computes other bits";
      }
      if (kept) {
        read_ += n;
        stores.push_back(std::move(*kept));
        continue;
      }
      if (!why.empty()) say_("cache: " + why + "; computed anew");
    }
    if (!source) source = open(indices);
    ActivationWriter writer(layout, plan_.in_memory, file);
    std::optional<ActivationStore> made =
        compute(*source, indices, epochs[v], writer, [&](int64_t done) {
          return keep_going(static_cast<int64_t>(v) * n + done,
                            static_cast<int64_t>(epochs.size()) * n);
        });
    if (!made) return nullptr;
    stores.push_back(std::move(*made));
  }
  std::vector<int64_t> labels;
  for (const int64_t i : indices) labels.push_back(data.samples[static_cast<size_t>(i)].label);
  return std::make_unique<CachedBatches>(std::move(stores), epochs, std::move(labels), indices,
                                         order, views ? options_.cache.views : 1);
}

std::string PrefixCache::summary() const {
  std::string line = text("cache: ", computed_, " computed, ", read_, " read");
  if (!options_.cache.folder.empty()) line += " from " + options_.cache.folder.string();
  return line + text("; ", size_text(static_cast<double>(bytes_)), " of ", plan_.dtype, " ",
                     plan_.in_memory ? "kept in memory" : "kept on disk");
}

}  // namespace graft
