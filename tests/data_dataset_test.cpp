#include <algorithm>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <unistd.h>

#include "engine/data/dataset.h"
#include "kernels/error.h"

namespace graft {
namespace {

namespace fs = std::filesystem;

// A folder that is removed at the end of the test.
struct TemporaryFolder {
  fs::path root = fs::temp_directory_path() / ("graft_dataset_test_" + std::to_string(::getpid()) +
                                               "_" + std::to_string(count()++));
  TemporaryFolder() { fs::create_directories(root); }
  ~TemporaryFolder() {
    std::error_code ignored;
    fs::remove_all(root, ignored);
  }
  static int& count() {
    static int n = 0;
    return n;
  }
  fs::path file(const fs::path& name, const std::string& content = "x") const {
    fs::create_directories((root / name).parent_path());
    std::ofstream(root / name, std::ios::binary) << content;
    return root / name;
  }
};

std::string fault(const fs::path& root) {
  try {
    read_image_folder(root);
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

bool contains(const std::string& text, const std::string& part) {
  INFO(text);
  CHECK(text.find(part) != std::string::npos);
  return text.find(part) != std::string::npos;
}

TEST_CASE("an image folder gives sorted samples and classes") {
  TemporaryFolder data;
  for (const char* name :
       {"dog/b.png", "dog/a.JPG", "cat/deeper/still/x.jpeg", "cat/z.png", "cat/.hidden.txt",
        ".git/config", "cat/Thumbs.db", "__MACOSX/cat/z.png"}) {
    data.file(name);
  }
  data.file("dog/no_extension", "\xFF\xD8\xFF rest");
  const ImageDataset set = read_image_folder(data.root);
  CHECK(set.class_names == std::vector<std::string>{"cat", "dog"});
  REQUIRE(set.samples.size() == 5);
  std::vector<std::string> paths;
  std::vector<int64_t> labels;
  for (const Sample& sample : set.samples) {
    paths.push_back(sample.path.lexically_relative(data.root).string());
    labels.push_back(sample.label);
  }
  CHECK(paths == std::vector<std::string>{"cat/deeper/still/x.jpeg", "cat/z.png", "dog/a.JPG",
                                          "dog/b.png", "dog/no_extension"});
  CHECK(labels == std::vector<int64_t>{0, 0, 1, 1, 1});
  CHECK(set.class_counts() == std::vector<int64_t>{2, 3});
}

TEST_CASE("names need not be UTF-8") {
  TemporaryFolder data;
  data.file("caf\xE9/\xFF\xFE.png");
  data.file("th\xC3\xA9/a b,\"c\".png");
  const ImageDataset set = read_image_folder(data.root);
  CHECK(set.class_names == std::vector<std::string>{"caf\xE9", "th\xC3\xA9"});
  CHECK(set.samples.size() == 2);
}

TEST_CASE("symbolic links are followed and loops end") {
  TemporaryFolder data;
  data.file("a/1.png");
  data.file("elsewhere/2.png");
  fs::create_directories(data.root / "set/a");
  fs::create_directories(data.root / "set/b");
  data.file("set/a/0.png");
  fs::create_symlink(data.root / "set", data.root / "set/a/up");          // a loop
  fs::create_symlink(data.root / "set/a", data.root / "set/a/self");      // another
  fs::create_symlink(data.root / "elsewhere", data.root / "set/b/link");  // a class of links
  fs::create_symlink(data.root / "a/1.png", data.root / "set/b/1.png");
  const ImageDataset set = read_image_folder(data.root / "set");
  CHECK(set.class_counts() == std::vector<int64_t>{1, 2});

  fs::create_symlink(data.root / "nothing", data.root / "set/b/dead.png");
  contains(fault(data.root / "set"), "set/b/dead.png: a symbolic link to nothing");
}

TEST_CASE("what is wrong with a folder is said in its name") {
  TemporaryFolder data;
  data.file("photos/cat/1.png");
  contains(fault(data.root / "fotos"), "fotos: no such folder (did you mean ");
  contains(fault(data.root / "something/else"), "something/else: no such folder");
  contains(fault(data.root / "photos/cat/1.png"), "not a folder");
  contains(fault(data.root / "photos"), "expected at least two class folders, got 1 [cat]");
  fs::create_directories(data.root / "photos/dog");
  contains(fault(data.root / "photos"), "photos/dog: the class has no images");
  data.file("photos/dog/notes.txt", "hello");
  contains(fault(data.root / "photos"), "photos/dog/notes.txt: not an image; remove what");
  data.file("photos/dog/1.png");
  data.file("photos/dog/2.webp", "RIFF....WEBPVP8 ");
  std::vector<std::string> skipped;
  CHECK(read_image_folder(data.root / "photos", &skipped).samples.size() == 2);
  REQUIRE(skipped.size() == 2);
  CHECK(contains(skipped[0], "2.webp: WebP; convert it to JPEG or PNG"));
  data.file("photos/loose.png");
  contains(fault(data.root / "photos"), "photos/loose.png: an image outside the class folders");

  data.file("splits/train/cat/1.png");
  data.file("splits/val/cat/1.png");
  contains(fault(data.root / "splits"), "holds splits ([train, val]), not classes");
}

TEST_CASE("a folder or file that cannot be read is an error") {
  TemporaryFolder data;
  data.file("a/1.png");
  data.file("b/1.png");
  // The superuser can read everything; look as somebody else.
  const bool superuser = ::geteuid() == 0;
  const auto fault_for_others = [&] {
    if (superuser) REQUIRE(::seteuid(65534) == 0);
    const std::string message = fault(data.root);
    if (superuser) REQUIRE(::seteuid(0) == 0);
    return message;
  };
  fs::permissions(data.root / "b/1.png", fs::perms::none);
  contains(fault_for_others(), "b/1.png: the file cannot be read (Permission denied)");
  fs::permissions(data.root / "b/1.png", fs::perms::owner_all);
  fs::permissions(data.root / "b", fs::perms::none);
  contains(fault_for_others(), "the folder cannot be read (Permission denied)");
  fs::permissions(data.root / "b", fs::perms::owner_all);
}

std::string manifest_fault(const TemporaryFolder& data, const std::string& content) {
  try {
    read_manifest(data.file("list.csv", content));
    return "";
  } catch (const Error& error) {
    return error.what();
  }
}

TEST_CASE("a manifest is read with quoting, groups, splits and any line ends") {
  TemporaryFolder data;
  data.file("b.png");
  data.file("img/a, \"big\".png");
  data.file("img/c.png");
  const Manifest manifest =
      read_manifest(data.file("list.csv",
                              "\xEF\xBB\xBFlabel,path,ignored,group,split\r\n"
                              "dog,b.png,,mono,train\r\n"
                              "\"cat\",\"img/a, \"\"big\"\".png\",\"two\nlines\",poly,train\r\n"
                              "\r\n"
                              "dog," +
                                  (data.root / "img/c.png").string() + ",3,mono,val"));
  CHECK(manifest.all.class_names == std::vector<std::string>{"cat", "dog"});
  REQUIRE(manifest.all.samples.size() == 3);
  CHECK(manifest.all.samples[0].path == data.root / "b.png");
  CHECK(manifest.all.samples[0].group == "mono");
  CHECK(manifest.all.samples[1].path == data.root / "img/a, \"big\".png");
  CHECK(manifest.all.samples[1].label == 0);
  CHECK(manifest.all.samples[1].group == "poly");
  CHECK(manifest.splits == std::vector<std::string>{"train", "train", "val"});

  const Manifest plain = read_manifest(data.file("list.csv", "path,label\nb.png,x\nimg/c.png,y\n"));
  CHECK(plain.splits.empty());
  CHECK(plain.all.samples[0].group.empty());
}

TEST_CASE("a manifest's faults name the line") {
  TemporaryFolder data;
  data.file("a.png");
  data.file("b.png");
  const std::string head = "path,label\na.png,x\n";
  contains(manifest_fault(data, ""), "the manifest is empty");
  contains(manifest_fault(data, "file,class\n"),
           "line 1: expected the columns \"path\" and \"label\"");
  contains(manifest_fault(data, "path;label\n"), "separate the columns by commas");
  contains(manifest_fault(data, "path,label,path\n"), "column \"path\" appears twice");
  contains(manifest_fault(data, head + "b.png\n"), "line 3: expected 2 fields, got 1");
  contains(manifest_fault(data, head + "b.png,\n"), "line 3: the label is empty");
  contains(manifest_fault(data, head + ",x\n"), "line 3: the path is empty");
  contains(manifest_fault(data, head + "c.png,y\n"), "line 3: no such file: ");
  contains(manifest_fault(data, head + "\r\n\r\n./a.png,y\n"), "is listed in line 2 already");
  contains(manifest_fault(data, head + "\r\n\r\n./a.png,y\n"), "line 5: ");
  contains(manifest_fault(data, head + "b.png,\"y\n\n"), "line 3: a quote is not closed");
  contains(manifest_fault(data, head + "b.png,\"y\"z\n"), "line 3: text after a closing quote");
  contains(manifest_fault(data, head), "expected at least two classes, got 1");
  contains(manifest_fault(data, "path,label,split\na.png,x,train\nb.png,y,dev\n"),
           "line 3: expected the split train, val or test, got \"dev\"");
  contains(manifest_fault(data, "path,label,split\na.png,x,train\nb.png,y,val\n"),
           "class \"y\" has no sample in the split \"train\"");
  CHECK_THROWS_AS(read_manifest(data.root / "missing.csv"), Error);
  CHECK_THROWS_AS(read_manifest(data.root), Error);
}

ImageDataset synthetic() {
  ImageDataset data;
  data.class_names = {"a", "b", "c"};
  const int counts[3][2] = {{40, 8}, {10, 2}, {1, 3}};
  for (int64_t label = 0; label < 3; ++label) {
    for (int group = 0; group < 2; ++group) {
      for (int i = 0; i < counts[label][group]; ++i) {
        data.samples.push_back({"img" + std::to_string(data.samples.size() + 100), label,
                                group == 0 ? "mono" : "poly"});
      }
    }
  }
  return data;
}

TEST_CASE("the split takes its share of every stratum and covers every sample once") {
  const ImageDataset data = synthetic();
  const Split split = stratified_split(data, 0.25, 1);
  std::vector<int64_t> all = split.train;
  all.insert(all.end(), split.held_out.begin(), split.held_out.end());
  std::sort(all.begin(), all.end());
  std::vector<int64_t> expected(data.samples.size());
  std::iota(expected.begin(), expected.end(), 0);
  CHECK(all == expected);
  CHECK(std::is_sorted(split.train.begin(), split.train.end()));
  CHECK(std::is_sorted(split.held_out.begin(), split.held_out.end()));
  std::map<std::pair<int64_t, std::string>, int> held;
  for (int64_t i : split.held_out) {
    const Sample& sample = data.samples[static_cast<size_t>(i)];
    ++held[{sample.label, sample.group}];
  }
  CHECK(held[{0, "mono"}] == 10);
  CHECK(held[{0, "poly"}] == 2);
  CHECK(held[{1, "mono"}] == 3);  // round(2.5)
  CHECK(held[{1, "poly"}] == 1);  // at least one of two
  CHECK(held[{2, "mono"}] == 0);  // an only one is kept
  CHECK(held[{2, "poly"}] == 1);
}

TEST_CASE("the split depends on the seed and the paths, not on the order of the files") {
  const ImageDataset data = synthetic();
  const auto held_paths = [](const ImageDataset& set, uint64_t seed) {
    std::set<std::string> paths;
    for (int64_t i : stratified_split(set, 0.3, seed).held_out) {
      paths.insert(set.samples[static_cast<size_t>(i)].path.string());
    }
    return paths;
  };
  ImageDataset shuffled = data;
  std::reverse(shuffled.samples.begin(), shuffled.samples.end());
  CHECK(held_paths(data, 7) == held_paths(shuffled, 7));
  CHECK(held_paths(data, 7) != held_paths(data, 8));
  CHECK(stratified_split(data, 0, 1).held_out.empty());
  CHECK_THROWS_WITH_AS(stratified_split(data, 1.0, 1),
                       "stratified_split: expected a fraction in [0, 1), got 1", Error);
  // Nothing is left empty even by a greedy fraction.
  const Split greedy = stratified_split(data, 0.99, 1);
  CHECK(greedy.train.size() == 6);
}

TEST_CASE("class weights give every class the same total") {
  const std::vector<float> weights = balanced_class_weights({30, 10, 20});
  CHECK(weights[0] == doctest::Approx(60.0 / 90));
  CHECK(weights[1] == doctest::Approx(2));
  CHECK(weights[2] == doctest::Approx(1));
  CHECK_THROWS_WITH_AS(balanced_class_weights({3, 0}),
                       "balanced_class_weights: class 1 has no samples; remove it or add some",
                       Error);
  ImageDataset data = synthetic();
  data.samples[3].label = 3;
  CHECK_THROWS_WITH_AS(data.class_counts(), "img103: label 3 is out of range, there are 3 classes",
                       Error);
}

}  // namespace
}  // namespace graft
