// Workers take samples one by one, in order, from a window of batches ahead of the reader. A batch
// is owned by shared_ptr: a new epoch just drops the window, and a worker that is still busy with a
// dropped batch writes into memory of its own. Every wait ends on stop or on progress of a worker,
// and workers never wait for the reader while they hold a sample.
#include "engine/data/loader.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <cstring>
#include <deque>
#include <exception>
#include <mutex>
#include <numeric>
#include <set>
#include <span>
#include <stop_token>
#include <thread>
#include <utility>

#include "engine/data/augment.h"
#include "kernels/error.h"

namespace graft {
namespace {

// Seeds of its own keep shuffling and augmentation apart from each other and from the model's
// streams.
constexpr uint64_t kShuffleSeed = 0x73687566'666C6500ull;
constexpr uint64_t kAugmentSeed = 0x6175676D'656E7400ull;

// Images by position in the loader's list, up to a number of bytes.
class ImageCache {
 public:
  ImageCache(size_t entries, size_t limit) : images_(limit > 0 ? entries : 0), limit_(limit) {}

  std::shared_ptr<const Image> find(size_t position) const {
    if (limit_ == 0) return nullptr;
    std::lock_guard lock(mutex_);
    return images_[position];
  }
  void keep(size_t position, std::shared_ptr<const Image> image) {
    if (limit_ == 0) return;
    std::lock_guard lock(mutex_);
    if (images_[position] || bytes_ + image->pixels.size() > limit_) return;
    bytes_ += image->pixels.size();
    images_[position] = std::move(image);
  }

 private:
  mutable std::mutex mutex_;
  std::vector<std::shared_ptr<const Image>> images_;
  size_t bytes_ = 0, limit_;
};

// A batch that is being filled. `started` and `finished` are guarded by the loader's mutex; a
// slot's pixels and outcome belong to the worker that took it until it counts as finished.
struct PendingBatch {
  int64_t number = 0;
  std::vector<size_t> positions;
  Tensor images;
  float* pixels = nullptr;
  std::vector<PackedView> packed;          // instead of images, for a GPU
  std::vector<std::exception_ptr> faults;  // per slot; null where the image is there
  size_t started = 0, finished = 0;
};

}  // namespace

struct Loader::State {
  std::vector<Sample> samples;   // the ones of `indices`
  std::vector<int64_t> indices;  // into the data set
  Preprocessing preprocessing;
  Augmentation augmentation;
  LoaderOptions options;
  ImageCache cache;
  int64_t batch_count = 0;

  mutable std::mutex mutex;
  std::condition_variable_any work, done;
  int64_t epoch = -1;
  int64_t opened = 0;  // number of the next batch to open
  std::vector<size_t> order;
  std::deque<std::shared_ptr<PendingBatch>> window;
  int64_t started_at = 0;  // the epoch's first batch
  int64_t handed_out = 0;  // samples, this epoch
  std::set<size_t> bad_positions;
  std::vector<std::string> bad_images;
  // Last, so that the threads are joined before anything they use is gone.
  std::vector<std::jthread> threads;

  State(size_t count, size_t cache_bytes) : cache(count, cache_bytes) {}

  size_t window_size() const {
    return static_cast<size_t>(options.workers == 0 ? 1 : std::max<int64_t>(options.prefetch, 1));
  }

  // Opens the next batch of the epoch; the mutex is held.
  void open_batch() {
    auto batch = std::make_shared<PendingBatch>();
    const size_t size = static_cast<size_t>(options.batch_size);
    const size_t begin = static_cast<size_t>(opened) * size;
    const size_t end = std::min(begin + size, order.size());
    batch->number = opened;
    batch->positions.assign(order.begin() + static_cast<int64_t>(begin),
                            order.begin() + static_cast<int64_t>(end));
    batch->faults.resize(end - begin);
    if (options.for_gpu) {
      batch->packed.resize(end - begin);
    } else {
      batch->images = Tensor({static_cast<int64_t>(end - begin), preprocessing.crop,
                              preprocessing.crop, options.channels});
      batch->pixels = batch->images.mutable_data<float>();
    }
    window.push_back(std::move(batch));
    ++opened;
  }

  void fill_window() {
    while (window.size() < window_size() && opened < batch_count) open_batch();
  }

  // The first slot that nobody has taken; null when there is none. The mutex is held.
  std::shared_ptr<PendingBatch> batch_with_work() const {
    for (const auto& batch : window) {
      if (batch->started < batch->positions.size()) return batch;
    }
    return nullptr;
  }

  // Takes a slot, loads it and marks it finished.
  void load_one(const std::shared_ptr<PendingBatch>& batch, size_t slot, int64_t of_epoch) {
    try {
      const size_t position = batch->positions[slot];
      if (options.for_gpu) {
        batch->packed[slot] = pack(position, of_epoch);
      } else {
        load(position, of_epoch, batch->pixels + static_cast<int64_t>(slot) * stride());
      }
    } catch (...) {
      batch->faults[slot] = std::current_exception();
    }
  }

  int64_t stride() const { return preprocessing.crop * preprocessing.crop * options.channels; }

  bool random_crop() const { return options.train && augmentation.random_resized_crop; }

  RandomStream draws(size_t position, int64_t of_epoch) const {
    return RandomStream({options.seed ^ kAugmentSeed, static_cast<uint64_t>(of_epoch),
                         static_cast<uint32_t>(indices[position])});
  }

  // What the cache keeps of a sample: the decoded picture, or the crop where it is always the same.
  std::shared_ptr<const Image> picture(size_t position, bool cropped) {
    std::shared_ptr<const Image> image = cache.find(position);
    if (image != nullptr) return image;
    Image decoded = load_image(samples[position].path, options.channels);
    image = std::make_shared<const Image>(cropped ? eval_view(decoded, preprocessing)
                                                  : std::move(decoded));
    cache.keep(position, image);
    return image;
  }

  // The 8-bit view of a picture().
  Image view(const Image& image, size_t position, int64_t of_epoch) const {
    RandomStream random = draws(position, of_epoch);
    return random_crop() ? train_view(image, preprocessing, augmentation, random)
                         : augment(image, augmentation, random);
  }

  void load(size_t position, int64_t of_epoch, float* out) {
    const std::shared_ptr<const Image> image = picture(position, !random_crop());
    normalise(options.train ? view(*image, position, of_epoch) : *image, preprocessing, out);
  }

  PackedView pack(size_t position, int64_t of_epoch) {
    const int64_t size = preprocessing.crop;
    const ViewGeometry as_it_is{0, 0, size, size, size, size, 0, 0, size, size};
    // A crop that is kept is resized once, here.
    const bool cropped = !random_crop() && options.cache_bytes > 0;
    const std::shared_ptr<const Image> image = picture(position, cropped);
    RandomStream random = draws(position, of_epoch);
    ViewGeometry geometry = as_it_is;
    if (!cropped) {
      geometry = options.train ? train_geometry(image->width, image->height, preprocessing,
                                                augmentation, random)
                               : eval_geometry(image->width, image->height, preprocessing);
    } else if (options.train) {
      const Flips flips = draw_flips(augmentation, random);
      geometry.flip_horizontal = flips.horizontal;
      geometry.flip_vertical = flips.vertical;
    }
    std::vector<PictureChange> changes;
    if (options.train) changes = draw_changes(augmentation, size, size, random);
    return pack_view(*image, geometry, preprocessing.interpolation, std::move(changes));
  }

  void run(std::stop_token stop) {
    std::unique_lock lock(mutex);
    for (;;) {
      std::shared_ptr<PendingBatch> batch;
      const bool found =
          work.wait(lock, stop, [&] { return (batch = batch_with_work()) != nullptr; });
      if (!found || stop.stop_requested()) return;
      const size_t slot = batch->started++;
      const int64_t of_epoch = epoch;
      lock.unlock();
      load_one(batch, slot, of_epoch);
      lock.lock();
      if (++batch->finished == batch->positions.size()) done.notify_all();
    }
  }

  // The oldest batch of the window, complete; null at the end of the epoch.
  std::shared_ptr<PendingBatch> take_front() {
    std::unique_lock lock(mutex);
    fill_window();
    if (window.empty()) return nullptr;
    work.notify_all();
    const std::shared_ptr<PendingBatch> front = window.front();
    if (options.workers == 0) {
      while (front->started < front->positions.size()) {
        load_one(front, front->started++, epoch);
        ++front->finished;
      }
    }
    done.wait(lock, [&] { return front->finished == front->positions.size(); });
    return front;
  }

  // Removes the front and lets the workers go on with the next batches.
  void drop_front() {
    std::lock_guard lock(mutex);
    window.pop_front();
    fill_window();
    work.notify_all();
  }

  // Throws or notes what is wrong with a complete batch.
  void judge(const PendingBatch& batch) {
    for (size_t slot = 0; slot < batch.faults.size(); ++slot) {
      if (!batch.faults[slot]) continue;
      try {
        std::rethrow_exception(batch.faults[slot]);
      } catch (const Error& error) {
        if (options.bad_image == BadImage::error) {
          fail(error.what(),
               "; replace or remove the file, or skip bad images (BadImage::skip, "
               "--on-bad-image skip)");
        }
        if (bad_positions.insert(batch.positions[slot]).second) bad_images.push_back(error.what());
      }
    }
  }

  // Closes the gaps of skipped samples and fills in labels and indices.
  void assemble(PendingBatch& pending, Batch& batch) const {
    batch.indices.clear();
    batch.number = pending.number;
    std::vector<int64_t> labels;
    int64_t kept = 0;
    for (size_t slot = 0; slot < pending.positions.size(); ++slot) {
      if (pending.faults[slot]) continue;
      const bool moves = kept != static_cast<int64_t>(slot);
      if (moves && options.for_gpu) {
        pending.packed[static_cast<size_t>(kept)] = std::move(pending.packed[slot]);
      } else if (moves) {
        std::memcpy(pending.pixels + kept * stride(),
                    pending.pixels + static_cast<int64_t>(slot) * stride(),
                    static_cast<size_t>(stride()) * sizeof(float));
      }
      labels.push_back(samples[pending.positions[slot]].label);
      batch.indices.push_back(indices[pending.positions[slot]]);
      ++kept;
    }
    if (options.for_gpu) {
      const auto views = std::span(pending.packed).first(static_cast<size_t>(kept));
      batch.packed = pack_batch(views, preprocessing, options.channels, true);
    } else {
      batch.images =
          kept == pending.images.dim(0) ? pending.images : narrow(pending.images, 0, kept);
    }
    batch.labels = Tensor::of(labels);
  }
};

std::vector<int64_t> shuffled_order(int64_t samples, uint64_t seed, int64_t epoch) {
  return permutation(samples, {seed ^ kShuffleSeed, static_cast<uint64_t>(epoch), 0});
}

Loader::Loader(const ImageDataset& data, std::vector<int64_t> indices,
               const Preprocessing& preprocessing, const Augmentation& augmentation,
               const LoaderOptions& options)
    : state_(std::make_unique<State>(indices.size(), options.cache_bytes)) {
  GRAFT_CHECK(options.batch_size >= 1, "loader: expected a batch size of at least 1, got ",
              options.batch_size);
  GRAFT_CHECK(options.channels == 1 || options.channels == 3,
              "loader: expected 1 or 3 channels, got ", options.channels);
  GRAFT_CHECK(options.workers >= 0 && options.prefetch >= 0,
              "loader: expected workers and prefetch of at least 0, got ", options.workers, " and ",
              options.prefetch);
  GRAFT_CHECK(preprocessing.crop >= 1, "loader: expected a crop of at least 1, got ",
              preprocessing.crop);
  if (options.train) check_augmentation(augmentation);
  GRAFT_CHECK(!indices.empty(), "loader: there are no samples to load");
  const int64_t total = static_cast<int64_t>(data.samples.size());
  const int64_t classes = static_cast<int64_t>(data.class_names.size());
  for (int64_t index : indices) {
    GRAFT_CHECK(index >= 0 && index < total, "loader: sample ", index,
                " is out of range, there are ", total);
    const Sample& sample = data.samples[static_cast<size_t>(index)];
    GRAFT_CHECK(sample.label >= 0 && sample.label < classes, sample.path.string(), ": label ",
                sample.label, " is out of range, there are ", classes, " classes");
    state_->samples.push_back(sample);
  }
  const int64_t n = static_cast<int64_t>(indices.size());
  state_->batch_count =
      options.drop_last ? n / options.batch_size : (n - 1) / options.batch_size + 1;
  GRAFT_CHECK(state_->batch_count > 0, "loader: ", n, " samples do not fill one batch of ",
              options.batch_size, "; take a smaller batch");
  state_->indices = std::move(indices);
  state_->preprocessing = preprocessing;
  state_->augmentation = augmentation;
  state_->options = options;
  for (int64_t i = 0; i < options.workers; ++i) {
    state_->threads.emplace_back(
        [state = state_.get()](std::stop_token stop) { state->run(stop); });
  }
}

Loader::~Loader() {
  // All are told before the first is joined, so that they finish their samples side by side.
  for (std::jthread& thread : state_->threads) thread.request_stop();
}

int64_t Loader::samples() const { return static_cast<int64_t>(state_->indices.size()); }
int64_t Loader::batches() const { return state_->batch_count; }

void Loader::start_epoch(int64_t epoch, int64_t first_batch) {
  GRAFT_CHECK(epoch >= 0, "loader: expected an epoch of at least 0, got ", epoch);
  GRAFT_CHECK(first_batch >= 0 && first_batch <= batches(),
              "loader: expected a first batch of 0 to ", batches(), ", got ", first_batch);
  std::lock_guard lock(state_->mutex);
  state_->window.clear();
  state_->epoch = epoch;
  state_->opened = first_batch;
  state_->started_at = first_batch;
  state_->handed_out = 0;
  std::vector<size_t>& order = state_->order;
  order.resize(state_->indices.size());
  std::iota(order.begin(), order.end(), size_t{0});
  if (state_->options.shuffle) {
    const std::vector<int64_t> shuffled = shuffled_order(samples(), state_->options.seed, epoch);
    std::copy(shuffled.begin(), shuffled.end(), order.begin());
  }
  if (state_->options.workers > 0) {
    state_->fill_window();
    state_->work.notify_all();
  }
}

bool Loader::next(Batch& batch) {
  if (state_->epoch < 0) start_epoch(0);
  while (const std::shared_ptr<PendingBatch> front = state_->take_front()) {
    state_->judge(*front);
    state_->drop_front();
    state_->assemble(*front, batch);
    if (!batch.indices.empty()) {
      state_->handed_out += static_cast<int64_t>(batch.indices.size());
      return true;
    }
  }
  // After a resume the readable images may all lie behind.
  GRAFT_CHECK(state_->handed_out > 0 || state_->started_at > 0, "loader: none of the ", samples(),
              " images can be read; the first: ",
              state_->bad_images.empty() ? "" : state_->bad_images.front());
  return false;
}

std::vector<std::string> Loader::bad_images() const { return state_->bad_images; }

}  // namespace graft
