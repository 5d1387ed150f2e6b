// Labelled image collections: a folder with one sub-folder a class, or a CSV manifest.
#pragma once

#include <cstdint>
#include <filesystem>
#include <string>
#include <vector>

#include "engine/data/image.h"
#include "engine/rng.h"

namespace graft {

struct Sample {
  std::filesystem::path path;
  int64_t label = 0;
  std::string group;  // further stratum (the manifest's "group" column), or ""
};

struct ImageDataset {
  std::vector<Sample> samples;           // sorted by path
  std::vector<std::string> class_names;  // sorted
  std::vector<int64_t> class_counts() const;
};

// root/class/image.png; hidden files are skipped, other files that are not images are errors unless
// `skipped` is given. Throws on: no such folder, fewer than two classes, an empty class, an
// unreadable folder.
ImageDataset read_image_folder(const std::filesystem::path& root,
                               std::vector<std::string>* skipped = nullptr);
// A CSV file with a header; columns path (relative to the file), label (class name), optional group
// and split ("train" / "val" / "test"). Throws naming the line.
struct Manifest {
  ImageDataset all;
  std::vector<std::string> splits;  // per sample; empty when the file has no split column
};
Manifest read_manifest(const std::filesystem::path& csv);

struct Split {
  std::vector<int64_t> train, held_out;  // indices into samples, ascending
};
// Draws `held_out_fraction` of every (label, group) stratum, at least one where it has two.
Split stratified_split(const ImageDataset& data, double held_out_fraction, uint64_t seed);

// Weights that give every class the same total: n / (classes * count).
std::vector<float> balanced_class_weights(const std::vector<int64_t>& counts);

}  // namespace graft
