// Choices kept in a file: what is read back, what of a damaged or strange file, and what becomes of
// several writers.
#include "kernels/choices.h"

#include <algorithm>
#include <cstdlib>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>
#include <vector>

#include "tests/support/pictures.h"

namespace {

using namespace graft;
using graft::testing::TemporaryFolder;
namespace fs = std::filesystem;

std::string read(const fs::path& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream out;
  out << in.rdbuf();
  return out.str();
}
void write(const fs::path& path, const std::string& contents) {
  std::ofstream(path, std::ios::binary) << contents;
}

}  // namespace

TEST_CASE("a choice is found again by the next process, and the first one stands") {
  const TemporaryFolder folder;
  const fs::path file = folder / "made/on/the/way/choices";
  {
    Choices first(file);
    CHECK_FALSE(first.find("gemm 64 64 64"));
    CHECK(first.agree("gemm 64 64 64", "3/8") == "3/8");
    CHECK(first.agree("gemm 64 64 64", "4/8") == "3/8");
    CHECK(first.find("gemm 64 64 64") == "3/8");
  }
  Choices next(file);
  CHECK(next.find("gemm 64 64 64") == "3/8");
  CHECK_FALSE(next.find("gemm 64 64 65"));
  // Two that began with the same file: the second takes the first one's, and sees its others.
  Choices late(file);
  CHECK(next.agree("gemm 1 1 1", "0/8") == "0/8");
  CHECK(next.agree("gemm 2 2 2", "7/8") == "7/8");
  CHECK_FALSE(late.find("gemm 1 1 1"));
  CHECK(late.agree("gemm 1 1 1", "5/8") == "0/8");
  CHECK(late.find("gemm 2 2 2") == "7/8");
}

TEST_CASE("without a file choices hold for the process") {
  Choices memory;
  CHECK(memory.agree("key", "1") == "1");
  CHECK(memory.agree("key", "2") == "1");
  // So they do where nothing can be written.
  for (const char* path : {"/proc/choices", "/dev/null", "/dev/null/choices", "/"}) {
    Choices nowhere{fs::path(path)};
    CHECK(nowhere.agree("key", "1") == "1");
    CHECK(nowhere.find("key") == "1");
  }
  const TemporaryFolder folder;
  REQUIRE(mkfifo((folder / "pipe").c_str(), 0600) == 0);  // would block a reader
  Choices pipe(folder / "pipe");
  CHECK(pipe.agree("key", "1") == "1");
}

TEST_CASE("what does not fit into a line stays out of the file") {
  const TemporaryFolder folder;
  const fs::path file = folder / "choices";
  Choices choices(file);
  int number = 0;
  for (const std::string& odd : {std::string("a\tb"), std::string("a\nb"), std::string(),
                                 std::string(1001, 'x'), std::string("a\0b", 3)}) {
    CHECK(choices.agree(odd, "1") == "1");
    CHECK(choices.agree("key " + std::to_string(number++), odd) == odd);
  }
  CHECK_FALSE(fs::exists(file));
}

TEST_CASE("of a damaged file the whole lines count, and it can be added to") {
  const TemporaryFolder folder;
  const fs::path file = folder / "choices";
  {
    Choices choices(file);
    for (int i = 0; i < 5; ++i) choices.agree("key " + std::to_string(i), std::to_string(i));
  }
  const std::string whole = read(file);
  const size_t header = whole.find('\n') + 1;
  SUBCASE("cut off anywhere") {
    for (size_t length = 0; length < whole.size(); ++length) {
      write(file, whole.substr(0, length));
      // A line that has only lost its end is whole.
      const auto end = whole.begin() + static_cast<long>(std::min(length + 1, whole.size()));
      const auto lines =
          length < header ? 0 : std::count(whole.begin() + static_cast<long>(header), end, '\n');
      Choices cut(file);
      for (int i = 0; i < 5; ++i) {
        CHECK(cut.find("key " + std::to_string(i)).has_value() == (i < lines));
      }
      const std::string wanted = lines == 5 ? "4" : "new";
      CHECK(cut.agree("key 4", "new") == wanted);
      CHECK(Choices(file).find("key 4") == wanted);
    }
  }
  SUBCASE("any byte changed: that line or none") {
    for (size_t i = 0; i < whole.size(); ++i) {
      std::string damaged = whole;
      damaged[i] = static_cast<char>(damaged[i] ^ 0x15);
      write(file, damaged);
      const Choices read_back(file);
      int found = 0;
      for (int key = 0; key < 5; ++key) {
        const auto value = read_back.find("key " + std::to_string(key));
        if (!value) continue;
        CHECK(*value == std::to_string(key));
        ++found;
      }
      // A new line end may cut a line in two, a lost one make one of two.
      CHECK(found >= (i < header ? 0 : 3));
    }
  }
  SUBCASE("somebody else's file is left alone") {
    for (const std::string& other : {std::string("graft choices 2\nx\ty\tz\n"), std::string("\n"),
                                     std::string(3000, '\0'), std::string("{}")}) {
      write(file, other);
      Choices choices(file);
      CHECK(choices.agree("key", "1") == "1");
      CHECK(read(file) == other);
    }
  }
  SUBCASE("a file too large is neither read nor added to") {
    std::ofstream out(file, std::ios::binary | std::ios::app);
    const std::string line(1 << 16, '#');
    for (size_t bytes = 0; bytes <= Choices::kMostBytes; bytes += line.size()) out << line;
    out.close();
    const auto size = fs::file_size(file);
    Choices choices(file);
    CHECK_FALSE(choices.find("key 0"));
    CHECK(choices.agree("key", "1") == "1");
    CHECK(fs::file_size(file) == size);
  }
}

// Processes that all want to decide the same twenty things: whoever comes first, all agree.
TEST_CASE("processes that choose at the same time agree") {
  const TemporaryFolder folder;
  const fs::path file = folder / "choices";
  constexpr int kProcesses = 6, kKeys = 20;
  std::vector<pid_t> children;
  for (int p = 0; p < kProcesses; ++p) {
    const pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      Choices choices(file);
      std::string decided;
      for (int k = 0; k < kKeys; ++k) {
        const int key = (k * 7 + p) % kKeys;
        choices.agree("key " + std::to_string(key), "of " + std::to_string(p));
      }
      for (int k = 0; k < kKeys; ++k) decided += *choices.find("key " + std::to_string(k)) + "\n";
      write(folder / ("decided-" + std::to_string(p)), decided);
      _exit(0);
    }
    children.push_back(child);
  }
  for (const pid_t child : children) {
    int status = 0;
    REQUIRE(waitpid(child, &status, 0) == child);
    REQUIRE(status == 0);
  }
  const Choices after(file);
  std::string stands;
  for (int k = 0; k < kKeys; ++k)
    stands += after.find("key " + std::to_string(k)).value_or("none") + "\n";
  for (int p = 0; p < kProcesses; ++p) {
    CHECK(read(folder / ("decided-" + std::to_string(p))) == stands);
  }
  const std::string contents = read(file);
  CHECK(std::count(contents.begin(), contents.end(), '\n') == kKeys + 1);
}

TEST_CASE("the environment says where choices are kept") {
  struct Variable {
    const char* name;
    std::string before;
    explicit Variable(const char* variable, const char* value)
        : name(variable), before(std::getenv(variable) == nullptr ? "" : std::getenv(variable)) {
      set(value);
    }
    ~Variable() { set(before.empty() ? nullptr : before.c_str()); }
    void set(const char* value) const {
      if (value == nullptr) {
        unsetenv(name);
      } else {
        setenv(name, value, 1);
      }
    }
  };
  const Variable home("HOME", "/somebody"), cache("XDG_CACHE_HOME", nullptr);
  const Variable wish("GRAFT_CHOICES", nullptr);
  CHECK(choice_setting().file == "/somebody/.cache/graft/choices");
  CHECK(choice_setting().timed);
  cache.set("/caches");
  CHECK(choice_setting().file == "/caches/graft/choices");
  wish.set("here/choices");
  CHECK(choice_setting().file == "here/choices");
  wish.set("0");
  CHECK(choice_setting().file.empty());
  CHECK(choice_setting().timed);
  wish.set("untimed");
  CHECK(choice_setting().file.empty());
  CHECK_FALSE(choice_setting().timed);
  wish.set(nullptr);
  cache.set(nullptr);
  home.set(nullptr);
  CHECK(choice_setting().file.empty());
}
