// The longest frozen prefix of a network, run once an image instead of once an image and epoch.
//
// What comes out of stages that are frozen and draw no random numbers is a function of the image
// alone. So it is kept, and the rest of the network trains from it: to the same bytes as without,
// because kept rows are what the same kernels gave (batch norms folded in, as in any frozen
// prefix), and because a prefix whose results depend on the batch around an image is not cached.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "transfer/activation_store.h"
#include "transfer/batches.h"
#include "transfer/plan.h"

namespace graft {

// The number of stages, from the first, whose parameters all stand still, without adapters, with
// batch norms that use running statistics and neither dropout nor drop path: of a model in the
// training mode of its phase (set_training_mode).
size_t frozen_prefix(ImageModel& model);

// What a phase keeps.
struct CachePlan {
  size_t stages = 0;  // 0: nothing
  Shape row;
  Dtype dtype = Dtype::f32;
  std::vector<int64_t> views;  // of each training image: the epochs whose pictures are taken
  bool in_memory = true;
  std::string line;  // for people; "" where nothing is frozen
};
// For the epochs first..last-1 of a phase that the model is set up for. Runs the prefix on one
// black image to know its size.
CachePlan plan_cache(ImageModel& model, const FinetuneOptions& options,
                     const Preprocessing& preprocessing, int64_t train_images,
                     int64_t validation_images, int64_t first, int64_t last);

bool augments(const Augmentation& augmentation);

// Makes and serves batches of kept activations for one phase.
class PrefixCache {
 public:
  // `say` gets lines for people.
  PrefixCache(ImageModel& model, const FinetuneOptions& options, const Preprocessing& preprocessing,
              CachePlan plan, std::function<void(const std::string&)> say);

  // Whether an image's activations are the same bits in batches of all these sizes and at any place
  // in them, tried on `images` (one batch, as a loader gives it).
  bool independent_of_batch(const Tensor& images, const std::vector<int64_t>& sizes) const;

  // Batches of the prefix's activations in the order of the loader with these options, computed now
  // or read from files. Augmented views where order.train. `keep_going` gets the numbers of images
  // done and in all; when it returns false the result is null.
  std::unique_ptr<Batches> batches(const ImageDataset& data, const std::vector<int64_t>& indices,
                                   const LoaderOptions& order,
                                   const std::function<bool(int64_t, int64_t)>& keep_going);
  // What was kept, how large it is and how much of it came from files.
  std::string summary() const;

 private:
  // Whether the first images come out as they were kept: another build or machine may round
  // otherwise.
  bool agrees(const ActivationStore& kept, Batches& first, int64_t epoch) const;
  // Nothing when keep_going() returned false.
  std::optional<ActivationStore> compute(Batches& images, const std::vector<int64_t>& indices,
                                         int64_t epoch, ActivationWriter& writer,
                                         const std::function<bool(int64_t)>& keep_going);

  ImageModel& model_;
  const FinetuneOptions& options_;
  Preprocessing preprocessing_;
  CachePlan plan_;
  std::function<void(const std::string&)> say_;
  std::string weights_key_;  // of the prefix; made when a file is first asked for
  int64_t computed_ = 0, read_ = 0;
  size_t bytes_ = 0;
};

}  // namespace graft
