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

// root/class/image.png: one sub-folder a class, searched to any depth; symbolic links are followed,
// a folder that was visited already is not entered again. Hidden files and desktop litter
// (Thumbs.db,
// __MACOSX) are passed over. Other files that are not JPEG or PNG (by content where the extension
// does not tell) are an error, or go into `skipped` as "path: reason" where it is given. Throws on:
// no such folder, pictures outside a class folder, fewer than two classes, an empty class, a folder
// or file that cannot be read, a root that holds splits (train/, val/) instead of classes.
ImageDataset read_image_folder(const std::filesystem::path& root,
                               std::vector<std::string>* skipped = nullptr);
// Every image below a folder, sorted by path, without classes: all labels are 0. Throws as
// read_image_folder does on what cannot be read; other files go into `skipped`.
ImageDataset read_unlabelled_images(const std::filesystem::path& root,
                                    std::vector<std::string>* skipped);
// A CSV file (RFC 4180 quoting, UTF-8, header line) with the columns path (absolute, or relative to
// the file), label (class name) and optionally group and split ("train", "val" or "test"); further
// columns are ignored. Throws naming the line: a field missing, a file missing or listed twice, an
// unknown split, a quote that is not closed; and on fewer than two classes or a class without a
// train sample.
struct Manifest {
  ImageDataset all;
  std::vector<std::string> splits;  // per sample; empty when the file has no split column
};
Manifest read_manifest(const std::filesystem::path& csv);

struct Split {
  std::vector<int64_t> train, held_out;  // indices into samples, ascending
};
// Draws round(held_out_fraction * n) of the n samples of every (label, group) stratum; where it has
// two or more, at least one is held out and one kept. A function of the paths, the labels and the
// seed.
Split stratified_split(const ImageDataset& data, double held_out_fraction, uint64_t seed);

// Weights that give every class the same total: n / (classes * count).
std::vector<float> balanced_class_weights(const std::vector<int64_t>& counts);

}  // namespace graft
