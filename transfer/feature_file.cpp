#include "transfer/feature_file.h"

#include <algorithm>
#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>
#include <optional>

#include "engine/io/npy.h"
#include "engine/ops.h"
#include "kernels/error.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

// X.npy -> X.labels.npy
fs::path beside(const fs::path& path, const char* what) {
  return fs::path(path).replace_extension(what);
}

std::string lines(const std::vector<std::string>& all) {
  std::string joined;
  for (const std::string& one : all) joined += one + '\n';
  return joined;
}

std::vector<std::string> read_lines(const fs::path& path) {
  std::vector<std::string> all;
  std::ifstream file(path);
  for (std::string line; std::getline(file, line);) all.push_back(line);
  return all;
}

bool is_npy(const fs::path& path) {
  GRAFT_CHECK(path.extension() == ".npy" || path.extension() == ".safetensors", path.string(),
              ": expected a file of features to end in .npy or .safetensors");
  return path.extension() == ".npy";
}

void check(FeatureTable& table, const std::string& name) {
  const Tensor& x = table.features;
  GRAFT_CHECK(x.rank() == 2 && x.dim(1) > 0, name,
              ": expected one row of features an image, f32 (n, width), got ", x,
              "; extract with --pool avg");
  GRAFT_CHECK(static_cast<int64_t>(table.labels.size()) == x.dim(0), name, ": has ", x.dim(0),
              " rows of features and ", table.labels.size(), " labels");
  GRAFT_CHECK(!table.labels.empty(), name, ": holds no features");
  const auto [low, high] = std::minmax_element(table.labels.begin(), table.labels.end());
  GRAFT_CHECK(*low >= 0 && *high < std::max<int64_t>(x.dim(0), 1 << 20), name, ": has labels from ",
              *low, " to ", *high, "; expected classes numbered from 0");
  if (table.class_names.empty()) {
    for (int64_t c = 0; c <= *high; ++c) table.class_names.push_back(std::to_string(c));
  }
  GRAFT_CHECK(*high < static_cast<int64_t>(table.class_names.size()), name, ": has a label ", *high,
              ", but only ", table.class_names.size(), " classes");
  const float* values = x.data<float>();
  for (int64_t i = 0; i < x.numel(); ++i) {
    GRAFT_CHECK(std::isfinite(values[i]), name, ": row ", i / x.dim(1), " has a feature that is ",
                values[i]);
  }
}

FeatureTable read_npy_table(const fs::path& path) {
  FeatureTable table;
  table.features = cast(read_npy(path), Dtype::f32);
  const fs::path labels = beside(path, "labels.npy"), classes = beside(path, "classes.txt");
  GRAFT_CHECK(fs::exists(labels), labels.string(), " is missing: the labels of ", path.string(),
              ", whole numbers from 0 (int64)");
  const Tensor values = read_npy(labels);
  GRAFT_CHECK(values.dtype() == Dtype::i64 && values.rank() == 1, labels.string(),
              ": expected int64 labels (n), got ", values);
  table.labels = values.to_vector<int64_t>();
  if (fs::exists(classes)) table.class_names = read_lines(classes);
  return table;
}

FeatureTable read_safetensors_table(const fs::path& path) {
  const WeightFile file = read_safetensors(path);
  FeatureTable table;
  const auto find = [&](const char* name, Dtype dtype) {
    const Tensor* found = file.find(name);
    GRAFT_CHECK(found != nullptr, path.string(), ": has no tensor \"", name,
                "\"; expected a file of graft extract");
    GRAFT_CHECK(found->dtype() == dtype, path.string(), ": expected ", name, " to be ", dtype,
                ", got ", *found);
    return *found;
  };
  table.features = find("features", Dtype::f32);
  const Tensor labels = find("labels", Dtype::i64);
  GRAFT_CHECK(labels.rank() == 1, path.string(), ": expected labels (n), got ", labels);
  table.labels = labels.to_vector<int64_t>();
  const auto classes = file.metadata.find("classes");
  if (classes == file.metadata.end()) return table;
  const nlohmann::json names = nlohmann::json::parse(classes->second, nullptr, false);
  GRAFT_CHECK(names.is_array() && std::all_of(names.begin(), names.end(),
                                              [](const auto& name) { return name.is_string(); }),
              path.string(), ": its metadata \"classes\" is no list of names");
  table.class_names = names.get<std::vector<std::string>>();
  return table;
}

}  // namespace

struct FeatureWriter::Rows {
  std::optional<NpyWriter> npy;
  std::vector<Tensor> parts;  // for safetensors
};

FeatureWriter::FeatureWriter(fs::path path) : path_(std::move(path)), rows_(new Rows) {
  is_npy(path_);
}
FeatureWriter::~FeatureWriter() = default;

void FeatureWriter::add(const Tensor& rows, const ImageDataset& data,
                        const std::vector<int64_t>& samples) {
  GRAFT_CHECK(rows.rank() >= 1 && rows.dim(0) == static_cast<int64_t>(samples.size()),
              "features: expected ", samples.size(), " rows, got ", rows);
  if (shape_.empty()) {
    shape_ = rows.shape();
    shape_[0] = 0;
    if (is_npy(path_))
      rows_->npy.emplace(path_, Shape(shape_.begin() + 1, shape_.end()), Dtype::f32);
  }
  if (rows_->npy) {
    rows_->npy->add(rows);
  } else {
    rows_->parts.push_back(rows);
  }
  shape_[0] += rows.dim(0);
  for (const int64_t i : samples) {
    const Sample& sample = data.samples[static_cast<size_t>(i)];
    labels_.push_back(sample.label);
    images_.push_back(sample.path.string());
  }
}

std::vector<fs::path> FeatureWriter::finish(const std::vector<std::string>& class_names,
                                            const Metadata& about) {
  GRAFT_CHECK(!labels_.empty(), path_.string(), ": there are no features to write");
  if (!rows_->npy) {
    Metadata metadata = about;
    metadata["classes"] = nlohmann::json(class_names).dump();
    metadata["images"] = nlohmann::json(images_).dump();
    write_safetensors(path_, {{"features", concat(rows_->parts)}, {"labels", Tensor::of(labels_)}},
                      metadata);
    return {path_};
  }
  const fs::path labels = beside(path_, "labels.npy"), classes = beside(path_, "classes.txt"),
                 images = beside(path_, "paths.txt");
  NpyWriter label_writer(labels, {}, Dtype::i64);
  label_writer.add(Tensor::of(labels_));
  label_writer.finish();
  write_file_atomically(classes, lines(class_names));
  write_file_atomically(images, lines(images_));
  rows_->npy->finish();
  return {path_, labels, classes, images};
}

FeatureTable read_features(const fs::path& path) {
  FeatureTable table = is_npy(path) ? read_npy_table(path) : read_safetensors_table(path);
  check(table, path.string());
  return table;
}

}  // namespace graft
