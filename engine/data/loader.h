// Batches of images, decoded and augmented by worker threads ahead of time. The order and every
// random draw depend on the seed, the epoch and the sample only, never on the number of workers.
#pragma once

#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/data/dataset.h"
#include "engine/data/device_views.h"
#include "engine/data/transform.h"
#include "engine/tensor.h"

namespace graft {

struct Batch {
  Tensor images;                 // f32 (n, crop, crop, channels)
  PackedBatch packed;            // instead of images, where the options say so
  Tensor labels;                 // i64 (n)
  std::vector<int64_t> indices;  // into the data set
  int64_t number = 0;            // within the epoch; resume with start_epoch(epoch, number + 1)
};

enum class BadImage : uint8_t { error, skip };

// The order in which a shuffled epoch visits its samples.
std::vector<int64_t> shuffled_order(int64_t samples, uint64_t seed, int64_t epoch);

struct LoaderOptions {
  int64_t batch_size = 32;
  bool shuffle = false;
  bool drop_last = false;
  bool train = false;  // train_view with `augmentation`, else eval_view
  int64_t channels = 3;
  int64_t workers = 1;   // 0: decode in the calling thread
  int64_t prefetch = 2;  // batches kept ready
  uint64_t seed = 0;
  BadImage bad_image = BadImage::error;
  // In pinned memory, and images packed: batch.packed instead of batch.images, and render() of it
  // has the same bits. What is kept in memory as a crop, and what more than geometry changes, is
  // resized by the workers.
  bool for_gpu = false;
  // Bytes of 8-bit images kept in memory, so that later epochs skip decoding; 0 turns it off. Kept
  // is the crop where no random crop is asked for, else the decoded image; nothing is evicted,
  // because every epoch visits every sample once.
  size_t cache_bytes = size_t{1} << 30;
};

class Loader {
 public:
  // Loads the samples `indices` of the data set. Throws on an index or a label out of range. Only
  // start_epoch(), next() and the destructor may wait for the workers; all calls from one thread.
  Loader(const ImageDataset& data, std::vector<int64_t> indices, const Preprocessing& preprocessing,
         const Augmentation& augmentation, const LoaderOptions& options);
  ~Loader();

  int64_t samples() const;
  int64_t batches() const;
  // Starts an epoch at a batch (for a resume in mid-epoch); what was loaded ahead is dropped.
  void start_epoch(int64_t epoch, int64_t first_batch = 0);
  // The next batch; false at the end of the epoch. Throws Error naming the file on a bad image, and
  // again at each further call until the next start_epoch(). Before the first start_epoch() it is
  // epoch 0.
  bool next(Batch& batch);
  // Files left out of the batches handed out so far because they could not be read, each once:
  // "path: reason". A skipped sample leaves its batch smaller, never replaced; a batch with no
  // readable sample is passed over, an epoch with none throws.
  std::vector<std::string> bad_images() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace graft
