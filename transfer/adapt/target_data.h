// The target's images.
#pragma once

#include <filesystem>
#include <string>
#include <vector>

#include "engine/data/dataset.h"

namespace graft {

struct TargetData {
  ImageDataset images;               // with the source's class names
  bool labelled = false;             // whether the labels are the target's own; else they are all 0
  std::string sha256;                // over paths, labels and sizes
  std::vector<std::string> skipped;  // files that are not images
};

// `path` is a folder of class folders, a manifest, or a folder that holds images and no folders.
// Classes must be the source's: throws naming those that only one domain has, and on a target with
// a single class or without images.
TargetData read_target(const std::filesystem::path& path,
                       const std::vector<std::string>& source_classes);

}  // namespace graft
