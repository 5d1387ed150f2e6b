// Where a training or judging pass gets its batches from: decoded images, or stored features of a
// frozen network.
#pragma once

#include <exception>
#include <functional>
#include <memory>
#include <vector>

#include "engine/data/loader.h"
#include "engine/upload.h"
#include "layers/models/zoo.h"

namespace graft {

class Batches {
 public:
  virtual ~Batches() = default;
  virtual int64_t samples() const = 0;
  virtual int64_t count() const = 0;  // batches of an epoch
  virtual void start_epoch(int64_t epoch, int64_t first_batch) = 0;
  // False at the end of the epoch. batch.images is what forward() of the same pass takes.
  virtual bool next(Batch& batch) = 0;
  // The same, but for images that are still packed: batch.packed.
  virtual bool next_packed(Batch& batch) { return next(batch); }
  virtual std::vector<std::string> bad_images() const { return {}; }
};

// Batches with their images on a device. While it works on one, those of the next are copied.
class DeviceBatches {
 public:
  DeviceBatches(Batches& batches, Device device);
  void start_epoch(int64_t epoch, int64_t first_batch);
  // As Batches::next(). batch.images is valid until the next call: what reads it must have been
  // launched by then. Labels stay on the host.
  bool next(Batch& batch);
  // Reads the batch after this one and starts its copy. To be called as soon as the device has
  // something to do; errors wait for next().
  void prefetch();

 private:
  Batches& batches_;
  std::unique_ptr<Upload> upload_;  // null on the CPU
  Batch ahead_;
  bool fetched_ = false, more_ = false;
  std::exception_ptr fault_;
};

std::unique_ptr<Batches> image_batches(const ImageDataset& data, std::vector<int64_t> indices,
                                       const Preprocessing& preprocessing,
                                       const Augmentation& augmentation,
                                       const LoaderOptions& options);

// The head's inputs for a list of images, in the list's order.
struct Features {
  Tensor values;                 // f32 (n, feature width)
  std::vector<int64_t> labels;   // n
  std::vector<int64_t> indices;  // n, into the data set
};
// One forward pass without a tape, in inference mode. `keep_going` is called after every batch with
// the number of images done; when it returns false the result has no values.
Features compute_features(ImageModel& model, Batches& images, Device device,
                          const std::function<bool(int64_t)>& keep_going);
// Batches of stored features; when options.shuffle, in the order in which the loader shuffles
// images.
std::unique_ptr<Batches> feature_batches(Features features, const LoaderOptions& options);

}  // namespace graft
