// What a network makes of a collection of pictures: its features, and the outputs of its own head.
// Ranking, domain distances and the forgetting meter start here.
#pragma once

#include <filesystem>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "engine/data/loader.h"
#include "layers/models/zoo.h"

namespace graft {

struct FeatureNetwork {
  std::unique_ptr<ImageModel> model;  // in inference mode
  ModelCard card;
  Device device;
  // False where the file holds features without a classifier; the model's head is then random, and
  // the card keeps 0 classes.
  bool has_head = true;
};
// Opens converted weights, with or without a head. Throws as load_model() does.
FeatureNetwork open_features(const std::filesystem::path& weights, Device device = kCpu,
                             Dtype precision = Dtype::f32);

struct ExtractOptions {
  int64_t batch = 32;
  int64_t workers = 1;
  BadImage bad_image = BadImage::error;
};

struct ExtractedFeatures {
  Tensor features;                      // f32 (n, feature width) on the CPU: the head's inputs
  Tensor logits;                        // f32 (n, classes) on the CPU; undefined without a head
  std::vector<int64_t> labels;          // n, the data set's
  std::vector<int64_t> indices;         // n, into the data set: ascending
  std::vector<std::string> bad_images;  // left out, with reasons
};
// One pass without a tape over the pictures as the network's own preprocessing shows them, in the
// data set's order. `keep_going` is called after every batch with the number of pictures done; when
// it returns false the result is empty. Throws when no picture can be read.
ExtractedFeatures extract_features(FeatureNetwork& network, const ImageDataset& data,
                                   const ExtractOptions& options,
                                   const std::function<bool(int64_t)>& keep_going);

// The network's own head over features of its width, its own or another's: f32 (n, classes) on the
// CPU.
Tensor head_outputs(FeatureNetwork& network, const Tensor& features, int64_t batch);

}  // namespace graft
