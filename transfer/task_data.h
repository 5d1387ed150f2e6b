// The images of a task and who trains and who judges.
#pragma once

#include <filesystem>
#include <string>

#include "engine/data/dataset.h"
#include "layers/models/zoo.h"

namespace graft {

struct TaskData {
  ImageDataset all;
  Split split;               // train and validation
  int64_t left_out = 0;      // in neither: a manifest's "test" rows
  bool drawn = false;        // the split is one of `split_seed`, not the data's own
  std::string split_source;  // for people: "folders train/ and val/", "stratified, 20 % held out"
  std::vector<std::string> skipped;  // files that are not images
  // SHA-256 over every image's path below the data's root, label, group, split and size in bytes.
  std::string sha256;
};

// `data` is a CSV manifest, a folder with sub-folders train/ and val/ of classes, or a folder of
// classes. A manifest with a split column and train/val folders bring their own split; otherwise
// `held_out` of every class is drawn with `split_seed`. Throws on what read_image_folder and
// read_manifest throw on, and when a class has no training image or (for a held-out part) nothing
// is held out.
TaskData read_task_data(const std::filesystem::path& data, double held_out, uint64_t split_seed);

// The index of a class by its name; "" means the second one. Throws with the names there are.
int64_t positive_class(const std::vector<std::string>& class_names, const std::string& name);

// All images of a folder of classes, or a manifest's rows with this split ("" for all).
ImageDataset read_images(const std::filesystem::path& data, const std::string& split = "");
// SHA-256 over every image's path below `root`, label and size in bytes.
std::string images_sha256(const ImageDataset& images, const std::filesystem::path& root);

// Turns the data's labels into a model's class indices, by name. Throws on a class that the model
// does not have, and on a model without names.
void match_classes(ImageDataset& data, const ModelCard& card, const std::string& path);

}  // namespace graft
