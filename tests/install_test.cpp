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
#include <vector>

#include "engine/io/weights.h"
#include "layers/models/zoo.h"

#define STB_IMAGE_WRITE_STATIC
#define STB_IMAGE_WRITE_IMPLEMENTATION
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Wunused-function"
#include <stb/stb_image_write.h>
#pragma GCC diagnostic pop

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

// Two classes that differ in colour, and weights of a small model with another number of classes.
void write_task(const fs::path& folder) {
  constexpr int kSide = 32;
  for (int label = 0; label < 2; ++label) {
    const fs::path photos = folder / "photos" / (label == 0 ? "blue" : "red");
    fs::create_directories(photos);
    for (int i = 0; i < 16; ++i) {
      std::vector<unsigned char> pixels(3 * kSide * kSide);
      for (int k = 0; k < kSide * kSide; ++k) {
        const int shade = (k * 7 + i * 31) % 64;
        pixels[3 * k] = static_cast<unsigned char>(label == 0 ? shade : 255 - shade);
        pixels[3 * k + 2] = static_cast<unsigned char>(label == 0 ? 255 - shade : shade);
      }
      const std::string path = (photos / (std::to_string(i) + ".png")).string();
      REQUIRE(stbi_write_png(path.c_str(), kSide, kSide, 3, pixels.data(), 3 * kSide) != 0);
    }
  }
  graft::ModelCard card;
  card.architecture = "small_cnn";
  card.classes = 5;
  card.preprocessing = graft::preprocessing_of("small_cnn");
  const auto model = graft::make_model("small_cnn", {.classes = 5}, {.seed = 1});
  graft::write_safetensors(folder / "weights.safetensors", model->state_dict(),
                           graft::to_metadata(card));
}

}  // namespace

TEST_CASE("an installed graft is found, linked and fine-tunes") {
  const TemporaryFolder work;
  const fs::path prefix = work.path / "prefix", build = work.path / "build";
  run("cmake --install " + quoted(GRAFT_BINARY_DIR) + " --prefix " + quoted(prefix));
  CHECK(fs::exists(prefix / "bin/graft"));
  CHECK(fs::exists(prefix / "include/graft/engine/tensor.h"));
  // Headers of the back ends stay here, above all the simulator's cuda_runtime.h.
  for (const char* folder : {"cpu", "cuda", "simt"}) {
    CHECK_FALSE(fs::exists(prefix / "include/graft/kernels" / folder));
  }

  run("cmake -S " + quoted(fs::path(GRAFT_SOURCE_DIR) / "tests/consumer") + " -B " + quoted(build) +
      " -DCMAKE_BUILD_TYPE=Release -DCMAKE_PREFIX_PATH=" + quoted(prefix));
  run("cmake --build " + quoted(build));
  write_task(work.path);
  const std::string output = run("cd " + quoted(work.path) + " && " + quoted(build / "consumer") +
                                 " photos weights.safetensors photos/red/0.png");
  INFO(output);
  CHECK(output.find("epoch 3: loss ") != std::string::npos);
  CHECK(output.find("photos/red/0.png: ") != std::string::npos);
  CHECK(output.find(", probability ") != std::string::npos);
  CHECK(fs::exists(work.path / "run/best.safetensors"));
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
