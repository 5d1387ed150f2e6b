#include "transfer/task_data.h"

#include <algorithm>

#include "engine/io/weights.h"
#include "engine/near_names.h"
#include "kernels/error.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

bool is_manifest(const fs::path& data) { return fs::is_regular_file(data); }

// root/train and root/val, the usual layout of published data sets.
bool has_split_folders(const fs::path& root) {
  return fs::is_directory(root / "train") && fs::is_directory(root / "val");
}

void check_exists(const fs::path& data) {
  GRAFT_CHECK(
      fs::exists(data), data.string(),
      ": no such file or folder; give a folder with one sub-folder a class, or a CSV manifest");
}

void add_part(ImageDataset& all, std::vector<int64_t>& indices, ImageDataset part) {
  for (Sample& sample : part.samples) {
    indices.push_back(static_cast<int64_t>(all.samples.size()));
    all.samples.push_back(std::move(sample));
  }
}

TaskData read_split_folders(const fs::path& root) {
  TaskData data;
  ImageDataset train = read_image_folder(root / "train", &data.skipped);
  ImageDataset val = read_image_folder(root / "val", &data.skipped);
  GRAFT_CHECK(train.class_names == val.class_names, root.string(), ": train/ has the classes ",
              train.class_names, " but val/ has ", val.class_names);
  data.all.class_names = train.class_names;
  add_part(data.all, data.split.train, std::move(train));
  add_part(data.all, data.split.held_out, std::move(val));
  data.split_source = "folders train/ and val/";
  return data;
}

void draw_split(TaskData& data, double held_out, uint64_t split_seed) {
  if (held_out > 0) {
    data.split = stratified_split(data.all, held_out, split_seed);
    data.drawn = true;
    data.split_source =
        text("stratified, ", held_out * 100, " % held out, split seed ", split_seed);
    return;
  }
  for (size_t i = 0; i < data.all.samples.size(); ++i) {
    data.split.train.push_back(static_cast<int64_t>(i));
  }
  data.split_source = "none held out";
}

void take_manifest_split(TaskData& data, const std::vector<std::string>& splits) {
  for (size_t i = 0; i < splits.size(); ++i) {
    if (splits[i] == "train") data.split.train.push_back(static_cast<int64_t>(i));
    if (splits[i] == "val") data.split.held_out.push_back(static_cast<int64_t>(i));
    data.left_out += splits[i] != "train" && splits[i] != "val";
  }
  data.split_source = "the manifest's split column";
}

// A manifest may name its images absolutely though it was itself named relatively.
std::string below(const fs::path& root, const fs::path& path) {
  const auto from_top = [](const fs::path& any) {
    return (fs::current_path() / any).lexically_normal();
  };
  return from_top(path).lexically_relative(from_top(root)).generic_string();
}

// In bytes; 0 where there is no such file.
uintmax_t size_of(const fs::path& path) {
  std::error_code unreadable;
  const auto bytes = fs::file_size(path, unreadable);
  return unreadable ? 0 : bytes;
}

std::string hash_of(const TaskData& data, const fs::path& root) {
  std::vector<const char*> part(data.all.samples.size(), "left out");
  for (int64_t i : data.split.train) part[static_cast<size_t>(i)] = "train";
  for (int64_t i : data.split.held_out) part[static_cast<size_t>(i)] = "val";
  std::string list;
  for (size_t i = 0; i < data.all.samples.size(); ++i) {
    const Sample& sample = data.all.samples[i];
    list += text(below(root, sample.path), '\t', sample.label, '\t', sample.group, '\t', part[i],
                 '\t', size_of(sample.path), '\n');
  }
  for (const std::string& name : data.all.class_names) list += name + '\n';
  return sha256_hex_of(list.data(), list.size());
}

void check_split(const TaskData& data, const fs::path& path) {
  std::vector<int64_t> counts(data.all.class_names.size());
  for (int64_t i : data.split.train) {
    ++counts[static_cast<size_t>(data.all.samples[static_cast<size_t>(i)].label)];
  }
  for (size_t c = 0; c < counts.size(); ++c) {
    GRAFT_CHECK(counts[c] > 0, path.string(), ": class \"", data.all.class_names[c],
                "\" has no training image; add images, or hold out less");
  }
}

}  // namespace

TaskData read_task_data(const fs::path& path, double held_out, uint64_t split_seed) {
  check_exists(path);
  TaskData data;
  fs::path root = path;
  if (is_manifest(path)) {
    root = path.parent_path();
    Manifest manifest = read_manifest(path);
    data.all = std::move(manifest.all);
    if (manifest.splits.empty()) {
      draw_split(data, held_out, split_seed);
    } else {
      take_manifest_split(data, manifest.splits);
    }
  } else if (has_split_folders(path)) {
    data = read_split_folders(path);
  } else {
    data.all = read_image_folder(path, &data.skipped);
    draw_split(data, held_out, split_seed);
  }
  check_split(data, path);
  data.sha256 = hash_of(data, root);
  return data;
}

int64_t positive_class(const std::vector<std::string>& class_names, const std::string& name) {
  if (name.empty()) return 1;
  const auto found = std::find(class_names.begin(), class_names.end(), name);
  GRAFT_CHECK(found != class_names.end(), "positive class: \"", name, "\" is not one of ",
              class_names);
  return found - class_names.begin();
}

std::string images_sha256(const ImageDataset& images, const fs::path& root) {
  std::string list;
  for (const Sample& sample : images.samples) {
    list += text(below(root, sample.path), '\t', sample.label, '\t', size_of(sample.path), '\n');
  }
  return sha256_hex_of(list.data(), list.size());
}

ImageDataset read_images(const fs::path& path, const std::string& split) {
  check_exists(path);
  if (!is_manifest(path)) {
    if (split.empty()) {
      GRAFT_CHECK(!has_split_folders(path), path.string(),
                  ": holds train/ and val/; name one of the two folders");
      return read_image_folder(path);
    }
    GRAFT_CHECK(fs::is_directory(path / split), path.string(), ": has no sub-folder \"", split,
                "\" for this split");
    return read_image_folder(path / split);
  }
  Manifest manifest = read_manifest(path);
  if (split.empty()) return std::move(manifest.all);
  GRAFT_CHECK(!manifest.splits.empty(), path.string(), ": has no split column, so no split \"",
              split, "\"");
  ImageDataset chosen{{}, manifest.all.class_names};
  for (size_t i = 0; i < manifest.splits.size(); ++i) {
    if (manifest.splits[i] == split) chosen.samples.push_back(manifest.all.samples[i]);
  }
  GRAFT_CHECK(!chosen.samples.empty(), path.string(), ": no row has the split \"", split, "\"");
  return chosen;
}

void match_classes(ImageDataset& data, const ModelCard& card, const std::string& path) {
  GRAFT_CHECK(!card.class_names.empty(), "the weights carry no class names, so ", path,
              " cannot be matched with them; convert the weights again with graft convert");
  std::vector<int64_t> index_of;
  for (const std::string& name : data.class_names) {
    const auto found = std::find(card.class_names.begin(), card.class_names.end(), name);
    if (found == card.class_names.end()) {
      std::vector<std::string> known = card.class_names;
      if (known.size() > 10) known.resize(10);
      fail(path, ": class \"", name, "\" is not one of the model's ", card.class_names.size(),
           " classes ", known, known.size() < card.class_names.size() ? " ..." : "",
           did_you_mean(name, card.class_names));
    }
    index_of.push_back(found - card.class_names.begin());
  }
  for (Sample& sample : data.samples) sample.label = index_of[static_cast<size_t>(sample.label)];
  data.class_names = card.class_names;
}

}  // namespace graft
