// `cmake --install`, then a program outside this project that finds graft with find_package, builds
// against nothing but the installed files, and fine-tunes a model (tests/consumer).
#include <array>
#include <cstdio>
#include <cstdlib>
#include <doctest/doctest.h>
#include <filesystem>
#include <fstream>
#include <string>
#include <unistd.h>

namespace {

namespace fs = std::filesystem;

// Runs a shell command, prints its output when it fails.
std::string run(const std::string& command) {
  FILE* pipe = popen((command + " 2>&1").c_str(), "r");
  REQUIRE(pipe != nullptr);
  std::string text;
  std::array<char, 4096> buffer;
  while (const size_t n = fread(buffer.data(), 1, buffer.size(), pipe))
    text.append(buffer.data(), n);
  const int status = pclose(pipe);
  INFO(command << "\n" << text);
  REQUIRE(status == 0);
  return text;
}

std::string quoted(const fs::path& path) { return "'" + path.string() + "'"; }

struct TemporaryFolder {
  fs::path path = fs::temp_directory_path() / ("graft-install-" + std::to_string(getpid()));
  TemporaryFolder() { fs::create_directories(path); }
  ~TemporaryFolder() { fs::remove_all(path); }
};

}  // namespace

TEST_CASE("an installed graft is found, linked and fine-tunes") {
  const TemporaryFolder work;
  const fs::path prefix = work.path / "prefix", build = work.path / "build";
  run("cmake --install " + quoted(GRAFT_BINARY_DIR) + " --prefix " + quoted(prefix));
  CHECK(fs::exists(prefix / "bin/graft"));
  CHECK(fs::exists(prefix / "include/graft/engine/tensor.h"));
  CHECK_FALSE(fs::exists(prefix / "include/graft/kernels/cuda"));

  run("cmake -S " + quoted(fs::path(GRAFT_SOURCE_DIR) / "tests/consumer") + " -B " + quoted(build) +
      " -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=" + quoted(prefix));
  run("cmake --build " + quoted(build));
  const std::string output = run("cd " + quoted(work.path) + " && " + quoted(build / "consumer"));
  INFO(output);
  CHECK(output.find("accuracy") != std::string::npos);
}

TEST_CASE("installed files name no folder of this machine") {
  const TemporaryFolder work;
  run("cmake --install " + quoted(GRAFT_BINARY_DIR) + " --prefix " + quoted(work.path));
  for (const auto& entry : fs::recursive_directory_iterator(work.path)) {
    if (entry.path().extension() != ".cmake") continue;
    std::ifstream in(entry.path());
    for (std::string line; std::getline(in, line);) {
      INFO(entry.path().string() << ": " << line);
      CHECK(line.find(GRAFT_SOURCE_DIR) == std::string::npos);
    }
  }
}
