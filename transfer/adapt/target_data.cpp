#include "transfer/adapt/target_data.h"

#include <algorithm>
#include <iterator>

#include "kernels/error.h"
#include "transfer/task_data.h"

namespace graft {
namespace fs = std::filesystem;
namespace {

// The names of the folders in a folder, without hidden ones.
std::vector<std::string> folders_in(const fs::path& root) {
  std::vector<std::string> names;
  std::error_code unreadable;
  for (fs::directory_iterator it(root, unreadable), end; !unreadable && it != end;
       it.increment(unreadable)) {
    const std::string name = it->path().filename().string();
    if (it->is_directory(unreadable) && !name.starts_with('.')) names.push_back(name);
  }
  return names;
}

std::vector<std::string> only_in_first(const std::vector<std::string>& a,
                                       const std::vector<std::string>& b) {
  std::vector<std::string> names;
  std::set_difference(a.begin(), a.end(), b.begin(), b.end(), std::back_inserter(names));
  return names;
}

}  // namespace

TargetData read_target(const fs::path& path, const std::vector<std::string>& source_classes) {
  GRAFT_CHECK(fs::exists(path), path.string(),
              ": no such file or folder; --target wants a folder of images, with or without class "
              "folders, or a CSV manifest");
  TargetData target;
  const std::vector<std::string> folders =
      fs::is_directory(path) ? folders_in(path) : std::vector<std::string>{};
  GRAFT_CHECK(folders.size() != 1, path.string(), ": the target has a single class, \"",
              folders.empty() ? "" : folders.front(),
              "\"; adaptation would pull every class of the source onto it. Add the other classes, "
              "or put images without labels straight into the folder");
  if (fs::is_directory(path) && folders.empty()) {
    target.images = read_unlabelled_images(path, &target.skipped);
    GRAFT_CHECK(!target.images.samples.empty(), path.string(), ": the target holds no image");
  } else {
    TaskData read = read_task_data(path, 0, 0);
    target.images = std::move(read.all);
    target.skipped = std::move(read.skipped);
    target.labelled = true;
    const std::vector<std::string>& own = target.images.class_names;
    const std::vector<std::string> missing = only_in_first(source_classes, own);
    const std::vector<std::string> foreign = only_in_first(own, source_classes);
    GRAFT_CHECK(missing.empty() && foreign.empty(), path.string(),
                ": the classes of the domains differ",
                missing.empty() ? "" : text("; only the source has ", missing),
                foreign.empty() ? "" : text("; only the target has ", foreign),
                "; rename or remove class folders, or give the target's images without any");
  }
  target.images.class_names = source_classes;
  target.sha256 = images_sha256(target.images, fs::is_directory(path) ? path : path.parent_path());
  return target;
}

}  // namespace graft
