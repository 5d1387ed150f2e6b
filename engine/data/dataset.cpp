#include "engine/data/dataset.h"

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cmath>
#include <fcntl.h>
#include <fstream>
#include <map>
#include <set>
#include <string_view>
#include <system_error>
#include <unistd.h>

#include "engine/data/file_structure.h"
#include "kernels/error.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

std::string lower(std::string word) {
  for (char& c : word) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return word;
}

// The number of single-character edits between two names (Levenshtein).
size_t edits_between(std::string_view a, std::string_view b) {
  std::vector<size_t> row(b.size() + 1);
  for (size_t j = 0; j <= b.size(); ++j) row[j] = j;
  for (size_t i = 1; i <= a.size(); ++i) {
    size_t diagonal = row[0];
    row[0] = i;
    for (size_t j = 1; j <= b.size(); ++j) {
      const size_t replaced = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, replaced});
    }
  }
  return row[b.size()];
}

// ", did you mean NAME?" when the parent holds a folder of nearly the same name.
std::string near_name(const fs::path& missing) {
  const fs::path wanted = missing.has_filename() ? missing : missing.parent_path();
  const fs::path parent = wanted.has_parent_path() ? wanted.parent_path() : fs::path(".");
  std::string best;
  size_t best_edits = 3;
  std::error_code error;
  for (fs::directory_iterator it(parent, error), end; !error && it != end; it.increment(error)) {
    const std::string name = it->path().filename().string();
    const size_t edits = edits_between(lower(name), lower(wanted.filename().string()));
    std::error_code ignored;
    if (edits < best_edits && it->is_directory(ignored)) {
      best_edits = edits;
      best = it->path().string();
    }
  }
  return best.empty() ? "" : text(" (did you mean ", best, "?)");
}

// " (and 3 more)" behind the first of several.
std::string and_more(size_t count) { return count > 1 ? text(" (and ", count - 1, " more)") : ""; }

bool is_litter(const std::string& name) {
  return name.starts_with('.') || name == "Thumbs.db" || name == "desktop.ini" ||
         name == "__MACOSX";
}

// The entries of a folder in the order of their names, without hidden ones.
std::vector<fs::path> list(const fs::path& folder) {
  std::vector<fs::path> entries;
  std::error_code error;
  for (fs::directory_iterator it(folder, error), end; !error && it != end; it.increment(error)) {
    if (!is_litter(it->path().filename().string())) entries.push_back(it->path());
  }
  GRAFT_CHECK(!error, folder.string(), ": the folder cannot be read (", error.message(),
              "); check its permissions");
  std::sort(entries.begin(), entries.end());
  return entries;
}

// "" when the file is a JPEG or PNG by its extension or its first bytes, else what it is.
std::string fault_of(const fs::path& path) {
  const std::string extension = lower(path.extension().string());
  if (extension == ".jpg" || extension == ".jpeg" || extension == ".png") return "";
  std::ifstream file(path, std::ios::binary);
  char head[32];
  file.read(head, sizeof head);
  const SniffedKind kind =
      sniff({reinterpret_cast<const uint8_t*>(head), static_cast<size_t>(file.gcount())});
  if (kind.kind != FileKind::other) return "";
  return kind.name.empty() ? "not an image" : text(kind.name, "; ", kind.remedy);
}

struct Walk {
  std::set<fs::path> visited;         // canonical folders
  std::vector<std::string> rejected;  // "path: reason"

  // Appends the images below a folder.
  void gather(const fs::path& folder, std::vector<fs::path>& images) {
    std::error_code error;
    const fs::path canonical = fs::canonical(folder, error);
    GRAFT_CHECK(!error, folder.string(), ": the folder cannot be read (", error.message(), ")");
    if (!visited.insert(canonical).second) return;
    for (const fs::path& entry : list(folder)) {
      const fs::file_status status = fs::status(entry, error);
      GRAFT_CHECK(fs::exists(status), entry.string(),
                  ": a symbolic link to nothing; remove it or restore its target");
      if (fs::is_directory(status)) {
        gather(entry, images);
        continue;
      }
      GRAFT_CHECK(::faccessat(AT_FDCWD, entry.c_str(), R_OK, AT_EACCESS) == 0, entry.string(),
                  ": the file cannot be read (", std::generic_category().message(errno),
                  "); check its permissions");
      const std::string fault = fs::is_regular_file(status) ? fault_of(entry) : "not a plain file";
      if (fault.empty()) {
        images.push_back(entry);
      } else {
        rejected.push_back(text(entry.string(), ": ", fault));
      }
    }
  }
};

void check_not_splits(const fs::path& root, const std::vector<std::string>& names) {
  static const std::set<std::string> kSplits{"train",      "training", "val",    "valid",
                                             "validation", "test",     "testing"};
  const bool all = std::all_of(names.begin(), names.end(),
                               [](const std::string& name) { return kSplits.count(lower(name)); });
  GRAFT_CHECK(names.empty() || !all, root.string(), ": holds splits (", names,
              "), not classes; name the folder of one split, for instance ",
              (root / names.front()).string());
}

}  // namespace

std::vector<int64_t> ImageDataset::class_counts() const {
  std::vector<int64_t> counts(class_names.size(), 0);
  for (const Sample& sample : samples) {
    GRAFT_CHECK(sample.label >= 0 && sample.label < static_cast<int64_t>(counts.size()),
                sample.path.string(), ": label ", sample.label, " is out of range, there are ",
                counts.size(), " classes");
    ++counts[static_cast<size_t>(sample.label)];
  }
  return counts;
}

ImageDataset read_image_folder(const fs::path& root, std::vector<std::string>* skipped) {
  std::error_code error;
  const fs::file_status status = fs::status(root, error);
  GRAFT_CHECK(fs::exists(status), root.string(), ": no such folder", near_name(root));
  GRAFT_CHECK(fs::is_directory(status), root.string(),
              ": not a folder; give a folder with one sub-folder a class, or a .csv manifest");
  Walk walk;
  walk.visited.insert(fs::canonical(root, error));
  ImageDataset data;
  std::vector<std::string> stray;  // pictures that belong to no class
  std::vector<std::vector<fs::path>> images;
  for (const fs::path& entry : list(root)) {
    if (fs::is_directory(entry, error)) {
      data.class_names.push_back(entry.filename().string());
      images.emplace_back();
      walk.gather(entry, images.back());
    } else if (const std::string fault = fault_of(entry); fault.empty()) {
      stray.push_back(entry.string());
    } else {
      walk.rejected.push_back(text(entry.string(), ": ", fault));
    }
  }
  GRAFT_CHECK(stray.empty(), stray.front(), and_more(stray.size()),
              ": an image outside the class folders; move it into ", root.string(), "/CLASS/");
  check_not_splits(root, data.class_names);
  if (skipped != nullptr) {
    *skipped = walk.rejected;
  } else {
    GRAFT_CHECK(walk.rejected.empty(), walk.rejected.front(), and_more(walk.rejected.size()),
                "; remove what is not JPEG or PNG, or allow it to be skipped");
  }
  GRAFT_CHECK(data.class_names.size() >= 2, root.string(),
              ": expected at least two class folders, got ", data.class_names.size(), " ",
              data.class_names, "; make one sub-folder a class");
  for (size_t c = 0; c < images.size(); ++c) {
    GRAFT_CHECK(!images[c].empty(), (root / data.class_names[c]).string(),
                ": the class has no images; add some or remove the folder");
    for (fs::path& path : images[c]) {
      data.samples.push_back({std::move(path), static_cast<int64_t>(c), ""});
    }
  }
  std::sort(data.samples.begin(), data.samples.end(),
            [](const Sample& a, const Sample& b) { return a.path.native() < b.path.native(); });
  return data;
}

ImageDataset read_unlabelled_images(const fs::path& root, std::vector<std::string>* skipped) {
  GRAFT_CHECK(fs::is_directory(root), root.string(), ": no such folder", near_name(root));
  Walk walk;
  std::vector<fs::path> images;
  walk.gather(root, images);
  if (skipped != nullptr) *skipped = walk.rejected;
  ImageDataset data;
  for (fs::path& path : images) data.samples.push_back({std::move(path), 0, ""});
  std::sort(data.samples.begin(), data.samples.end(),
            [](const Sample& a, const Sample& b) { return a.path.native() < b.path.native(); });
  return data;
}

Split stratified_split(const ImageDataset& data, double held_out_fraction, uint64_t seed) {
  GRAFT_CHECK(held_out_fraction >= 0 && held_out_fraction < 1,
              "stratified_split: expected a fraction in [0, 1), got ", held_out_fraction);
  std::map<std::pair<int64_t, std::string>, std::vector<int64_t>> strata;
  for (size_t i = 0; i < data.samples.size(); ++i) {
    strata[{data.samples[i].label, data.samples[i].group}].push_back(static_cast<int64_t>(i));
  }
  Split split;
  // Key words of their own, so that the split shares no numbers with shuffling or augmentation.
  RngKey key{seed ^ 0x73706C69'74000000ull, 0, 0};
  for (auto& [stratum, members] : strata) {
    std::stable_sort(members.begin(), members.end(), [&](int64_t a, int64_t b) {
      return data.samples[static_cast<size_t>(a)].path.native() <
             data.samples[static_cast<size_t>(b)].path.native();
    });
    const int64_t n = static_cast<int64_t>(members.size());
    int64_t held = std::llround(held_out_fraction * static_cast<double>(n));
    if (held_out_fraction > 0) held = std::max<int64_t>(held, 1);
    held = std::min(held, n - 1);
    const std::vector<int64_t> order = permutation(n, key);
    ++key.stream;
    for (int64_t i = 0; i < n; ++i) {
      const int64_t sample = members[static_cast<size_t>(order[static_cast<size_t>(i)])];
      (i < held ? split.held_out : split.train).push_back(sample);
    }
  }
  std::sort(split.train.begin(), split.train.end());
  std::sort(split.held_out.begin(), split.held_out.end());
  return split;
}

std::vector<float> balanced_class_weights(const std::vector<int64_t>& counts) {
  int64_t total = 0;
  for (size_t c = 0; c < counts.size(); ++c) {
    GRAFT_CHECK(counts[c] > 0, "balanced_class_weights: class ", c,
                " has no samples; remove it or add some");
    total += counts[c];
  }
  std::vector<float> weights;
  for (int64_t count : counts) {
    weights.push_back(
        static_cast<float>(static_cast<double>(total) /
                           (static_cast<double>(counts.size()) * static_cast<double>(count))));
  }
  return weights;
}

}  // namespace graft
