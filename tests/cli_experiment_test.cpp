// The experiments as people and scripts see them, at sizes of seconds.
#include <doctest/doctest.h>
#include <fstream>

#include "kernels/error.h"
#include "tests/support/program.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using namespace testing;
using nlohmann::json;

std::vector<std::string> with(std::vector<std::string> command,
                              const std::vector<std::string>& more) {
  command.insert(command.end(), more.begin(), more.end());
  return command;
}

TEST_CASE("moons: a row a method, the same from what is kept, and only for the same settings") {
  const TemporaryFolder folder;
  const std::vector<std::string> command{"experiment", "moons", "--out",   folder / "out",
                                         "--steps",    "20",    "--seeds", "2"};
  const Outcome first = graft_program(command);
  REQUIRE_MESSAGE(first.code == 0, first.err);
  CHECK(contains(first.out, "oracle"));
  CHECK(contains(first.out, "source_only"));
  // One run again, one changed by hand: what is kept is what is shown.
  const fs::path kept = folder / "out" / "moons-dann-seed2.json";
  const std::string known = file_bytes(kept);
  fs::remove(kept);
  std::ofstream(folder / "out" / "moons-dann-seed1.json")
      << R"({"last": 0.125, "chosen": 0.25, "oracle": 0.5})";
  const Outcome second = graft_program(with(command, {"--json"}));
  REQUIRE(second.code == 0);
  CHECK(file_bytes(kept) == known);
  const std::vector<json> lines = json_lines(second.out);
  REQUIRE(lines.size() == 14);
  CHECK(lines[0]["method"] == "source_only");
  CHECK(lines[0]["gain"]["value"] == 0);
  const json& dann = lines[1];
  CHECK(dann["method"] == "dann");
  CHECK(dann["last"][0] == 0.125);
  CHECK(dann["bnm"][0] == 0.25);
  CHECK(dann["last"][1] == json::parse(known)["last"]);

  CHECK(contains(graft_program(with(command, {"--degrees", "10"})).err, "--force"));
  std::ofstream(kept) << "{";
  CHECK(contains(graft_program(command).err, "moons-dann-seed2.json: is damaged"));
  std::ofstream(kept) << R"({"last": 1})";
  CHECK(contains(graft_program(command).err, "moons-dann-seed2.json: is damaged"));
  CHECK(graft_program(with(command, {"--degrees", "10", "--force"})).code == 0);
  // Another experiment's folder is nobody's to replace.
  std::ofstream(folder / "out" / "config.json") << R"({"experiment": "solar"})";
  CHECK(contains(graft_program(with(command, {"--force"})).err, "something else"));
}

TEST_CASE("amazon: the paper's pairs beside ours, and a word where the reviews are not") {
  const TemporaryFolder folder;
  const std::string data = (folder / "data").string();
  const std::vector<std::string> command{"experiment",   "amazon",  "--data", data,       "--out",
                                         folder / "out", "--seeds", "2",      "--epochs", "2"};
  CHECK(contains(graft_program(command).err, "GRAAL-Research"));
  CHECK_FALSE(fs::exists(folder / "out"));
  fs::create_directories(data);
  // Word 0 says that a review is good, another word of which product it is.
  int product = 1;
  for (const char* name : {"books", "dvd", "electronics", "kitchen"}) {
    for (const char* part : {"train", "test"}) {
      std::ofstream file(fs::path(data) / text(name, "_", part, ".svmlight"));
      for (int i = 0; i < 40; ++i) {
        file << (i % 2 ? "1 0:9 " : "-1 ") << product << ":2 " << 100 + i << ":1\n";
      }
    }
    ++product;
  }
  const Outcome done = graft_program(with(command, {"--json"}));
  REQUIRE_MESSAGE(done.code == 0, done.err);
  const std::vector<json> lines = json_lines(done.out);
  REQUIRE(lines.size() == 13);
  CHECK(lines[3]["pair"] == "dvd -> books");
  CHECK(lines[3]["paper_dann"] == 0.723);
  CHECK(lines[12]["pair"] == "mean");
  CHECK(lines[12]["paper_nn"].get<double>() == doctest::Approx(0.7608).epsilon(0.001));
  double mean = 0;
  for (size_t i = 0; i < 12; ++i) mean += lines[i]["dann"].get<double>() / 12;
  CHECK(lines[12]["dann"].get<double>() == doctest::Approx(mean));
  CHECK(lines[12]["gain"]["value"].get<double>() ==
        doctest::Approx(mean - lines[12]["nn"].get<double>()));
  CHECK(contains(graft_program(command).out, "books -> dvd"));
  // The data are part of the settings.
  std::ofstream(fs::path(data) / "books_train.svmlight", std::ios::app) << "1 0:1\n";
  CHECK(contains(graft_program(command).err, "--force"));
  std::ofstream(fs::path(data) / "books_train.svmlight", std::ios::app) << "7 0:1\n";
  CHECK(contains(graft_program(with(command, {"--force"})).err, "labels of -1 and 1, got 7"));
}

TEST_CASE("solar: tables, a curve, nothing run twice, and a word where the data are not") {
  const TemporaryFolder folder;
  const std::string out = (folder / "out").string(), data = (folder / "elpv").string();
  const std::vector<std::string> command{
      "experiment", "solar",   "--data",  data, "--weights",    trained(), "--out",
      out,          "--quick", "--steps", "2",  "--image-size", "16"};
  const Outcome nothing = graft_program(command);
  CHECK(nothing.code == 1);
  CHECK(contains(nothing.err, "tools/fetch elpv"));
  CHECK_FALSE(fs::exists(out));
  testing::write_stripes(folder / "elpv", 24, 16, 9);
  {
    std::ofstream list(folder / "elpv" / "labels.csv");
    for (int i = 0; i < 48; ++i) {
      list << (i % 2 ? "down" : "across") << "/picture" << i / 2 << ".png  " << i % 2 << ".0   "
           << (i < 24 ? "mono" : "poly") << "\n";
    }
  }
  const Outcome first = graft_program(command);
  CAPTURE(first.err);
  REQUIRE(first.code == 0);
  for (const char* part : {"fine-tuning - scratch", "judged on poly", "from the other type"}) {
    CHECK(contains(first.out, part));
  }
  CHECK(contains(file_bytes(folder / "out" / "curve.svg"), "scratch"));
  CHECK(contains(file_bytes(folder / "out" / "fine-tuning-25-seed1.json"), "balanced_accuracy"));
  CHECK_FALSE(fs::exists(folder / "out" / "fine-tuning-25-seed1"));

  // What is there is not run again; what is not, is, with the same result.
  const std::string known = file_bytes(folder / "out" / "mono-to-poly-seed1.json");
  fs::remove(folder / "out" / "mono-to-poly-seed1.json");
  std::ofstream(folder / "out" / "scratch-5-seed0.json")
      << R"({"labels": 2, "steps": 2, "scores": {"cells": {"accuracy": 0.125, "balanced_accuracy": 0.0625}}})";
  std::vector<std::string> as_json = command;
  as_json.push_back("--json");
  const Outcome second = graft_program(as_json);
  REQUIRE(second.code == 0);
  CHECK(file_bytes(folder / "out" / "mono-to-poly-seed1.json") == known);
  const std::vector<json> lines = json_lines(second.out);
  REQUIRE(lines.size() == 3 + 2 + 2);
  CHECK(lines[0]["scratch"]["balanced_accuracy"][0] == 0.0625);
  CHECK(lines[0]["labels"] == 2);
  CHECK(lines[2]["labels"] == 36);
  CHECK(lines[2]["gain_over_frozen"]["low"] <= lines[2]["gain_over_frozen"]["high"]);
  CHECK(lines[5]["from"] == "mono");
  // A run that cannot go on says how the experiment does.
  const fs::path run = folder / "out" / "mono-to-poly-seed1";
  fs::remove(folder / "out" / "mono-to-poly-seed1.json");
  fs::create_directory(run);
  for (const char* file : {"state.safetensors", "config.json"}) std::ofstream(run / file) << "{";
  const Outcome broken = graft_program(command);
  CHECK(broken.code == 1);
  CHECK(contains(broken.err, "run 28/30 mono-to-poly-seed1: "));
  CHECK(contains(broken.err, "27 of 30 runs are finished and saved; the same command continues"));
  CHECK_FALSE(contains(broken.err, "graft finetune"));
  // Other settings are another experiment.
  for (const auto& [option, value] :
       {std::pair("--cells", "40"), std::pair("--precision", "bf16")}) {
    std::vector<std::string> other = command;
    other.insert(other.end(), {option, value});
    CHECK(contains(graft_program(other).err, "--force"));
  }
  CHECK(contains(graft_program({"experiment", "solar"}).err, "--data"));
}

}  // namespace
}  // namespace graft
