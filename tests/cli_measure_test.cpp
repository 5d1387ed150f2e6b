// The commands that measure transfer, as people and scripts see them.
#include <doctest/doctest.h>
#include <signal.h>

#include "engine/io/weights.h"
#include "tests/support/program.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using namespace testing;
using nlohmann::json;

TEST_CASE("verdict: stopped by a signal it continues to the same answer, for people and machines") {
  const TemporaryFolder folder;
  const auto arguments = [&](const fs::path& out, const std::string& epochs) {
    return std::vector<std::string>{
        "verdict", "--data", pictures().string(), "--weights", trained().string(),
        "--seeds", "2",      "--epochs",          epochs,      "--batch",
        "4",       "--out",  out.string(),        "--json"};
  };
  const Outcome whole = graft_program(arguments(folder / "whole", "3"));
  REQUIRE(whole.code == 0);
  std::vector<json> lines = json_lines(whole.out);
  REQUIRE(lines.size() == 7);
  CHECK(lines[0]["event"] == "run");
  json answer = lines.back();
  CHECK(answer["event"] == "done");
  CHECK(answer["runs"].size() == 6);
  CHECK(answer["gap"]["low"] <= answer["gap"]["high"]);
  answer.erase("event");
  answer.erase("run");
  CHECK(answer == json::parse(file_bytes(folder / "whole" / "verdict.json")));

  Run run(arguments(folder / "stopped", "3"));
  run.wait_for("\"run\"");
  run.send(SIGINT);
  const Outcome stopped = run.wait();
  CAPTURE(stopped.err);
  REQUIRE(stopped.code == 128 + SIGINT);
  CHECK(json_lines(stopped.out).back()["event"] == "interrupted");
  const std::string resume = "graft verdict --resume " + (folder / "stopped").string();
  CHECK(contains(stopped.err, resume));
  const Outcome resumed = graft_program({"verdict", "--resume", folder / "stopped"});
  CHECK(resumed.code == 0);
  CHECK(contains(resumed.out, "verdict: "));
  CHECK(contains(resumed.out, "next: "));
  CHECK(contains(resumed.out, "transfer - scratch"));
  CHECK(file_bytes(folder / "stopped" / "transfer-1" / "last.safetensors") ==
        file_bytes(folder / "whole" / "transfer-1" / "last.safetensors"));
  const json again = json::parse(file_bytes(folder / "stopped" / "verdict.json"));
  CHECK(again["gap"] == answer["gap"]);
}

TEST_CASE("rank: a table for people, an object for machines") {
  const std::string last = (trained().parent_path() / "last.safetensors").string();
  std::vector<std::string> arguments{"rank",         "--data",           pictures().string(),
                                     "--candidates", trained().string(), last,
                                     "--score",      "h-score"};
  const Outcome table = graft_program(arguments);
  CHECK(table.code == 0);
  CHECK(contains(table.out, "ordered by h-score"));
  CHECK(contains(table.out, last));
  arguments.push_back("--json");
  const json ranking = json_lines(graft_program(arguments).out).at(0);
  CHECK(ranking["images"] == 32);
  REQUIRE(ranking["candidates"].size() == 2);
  CHECK(ranking["candidates"][0]["h-score"]["value"] >=
        ranking["candidates"][1]["h-score"]["value"]);
  CHECK(ranking["candidates"][1]["leep"]["low"] <= ranking["candidates"][1]["leep"]["high"]);
}

TEST_CASE("distance and forgetting: an object for machines") {
  const std::string data = pictures().string(), last = trained().parent_path() / "last.safetensors";
  const Outcome gap =
      graft_program({"distance", "--source", data, "--target", data, "--weights", last, "--json"});
  CHECK(json_lines(gap.out).at(0)["gap"] == "none");
  const Outcome kept =
      graft_program({"forgetting", "--before", last, "--after", last, "--data", data, "--json"});
  CHECK(json_lines(kept.out).at(0)["head"]["change"]["value"] == 0);
}

TEST_CASE("--out keeps what --json prints, the options and hashes of what was measured") {
  const TemporaryFolder folder;
  const std::string data = pictures().string(), weights = trained().string(),
                    last = trained().parent_path() / "last.safetensors";
  const auto sha256 = [](const json& config, const std::string& input, const std::string& path) {
    return config["sha256"][input][path].get<std::string>();
  };
  struct Case {
    std::vector<std::string> arguments;
    std::string weights_option;
  };
  const std::vector<Case> cases{
      {{"rank", "--data", data, "--candidates", weights, last}, "candidates"},
      {{"distance", "--source", data, "--target", data, "--weights", weights}, "weights"},
      {{"forgetting", "--before", weights, "--after", last, "--data", data}, "before"},
      {{"probe", "--weights", weights, "--data", data, "--l2", "0.1,1"}, "weights"}};
  for (const Case& one : cases) {
    CAPTURE(one.arguments[0]);
    const fs::path out = folder / one.arguments[0];
    std::vector<std::string> arguments = one.arguments;
    arguments.insert(arguments.end(), {"--json", "--batch", "8", "--out", out.string()});
    const Outcome done = graft_program(arguments);
    REQUIRE_MESSAGE(done.code == 0, done.err);
    CHECK(json::parse(file_bytes(out / "result.json")) == json_lines(done.out).at(0));
    const json config = json::parse(file_bytes(out / "config.json"));
    CHECK(config["command"] == one.arguments[0]);
    CHECK(config["options"]["batch"] == 8);
    CHECK(config["options"]["device"] == "cpu");  // not given: the default
    CHECK_FALSE(config["options"].contains("json"));
    CHECK(sha256(config, one.weights_option, weights) == sha256_hex(trained()));
    const std::string images = one.arguments[0] == "distance" ? "source" : "data";
    CHECK(sha256(config, images, data).size() == 64);

    const Outcome refused = graft_program(arguments);
    CHECK(refused.code == 1);
    CHECK(contains(refused.err, "already holds a result"));
    CHECK(refused.out.empty());
    arguments.emplace_back("--force");
    CHECK(graft_program(arguments).code == 0);
  }
  const json probed = json::parse(file_bytes(folder / "probe" / "config.json"));
  CHECK(probed["options"]["l2"] == json({0.1, 1}));

  // A picture of another size is another collection.
  fs::copy(pictures(), folder / "other", fs::copy_options::recursive);
  testing::write_png(folder / "other" / "down" / "picture0.png", 4, 4, 3,
                     std::vector<uint8_t>(48, 7));
  const std::string other = (folder / "other").string();
  REQUIRE(graft_program({"distance", "--source", data, "--target", other, "--weights", weights,
                         "--out", folder / "gap"})
              .code == 0);
  const json gap = json::parse(file_bytes(folder / "gap" / "config.json"));
  CHECK(sha256(gap, "source", data) != sha256(gap, "target", other));
}

TEST_CASE("extract and probe: files that the one writes are what the other judges") {
  const TemporaryFolder folder;
  const std::string data = pictures().string(), weights = trained().string();
  const json direct = json_lines(graft_program({"probe", "--weights", weights, "--data", data,
                                                "--neighbours", "3", "--json"})
                                     .out)
                          .at(0);
  CHECK(direct["train"] == 24);
  CHECK(direct["test"] == 8);
  CHECK(direct["logistic"]["accuracy"]["low"] <= direct["logistic"]["accuracy"]["high"]);
  for (const char* name : {"f.npy", "f.safetensors"}) {
    const std::string file = folder / name;
    const Outcome written =
        graft_program({"extract", "--weights", weights, "--data", data, "--out", file, "--json"});
    REQUIRE(written.code == 0);
    CHECK(json_lines(written.out).at(0)["shape"] == json({32, 128}));
    const Outcome judged =
        graft_program({"probe", "--features", file, "--neighbours", "3", "--json"});
    CHECK(json_lines(judged.out).at(0) == direct);
    const Outcome table = graft_program({"probe", "--features", file, "--test", file});
    CHECK(table.code == 0);
    CHECK(contains(table.out, "nearest neighbours"));
  }
  const Outcome unknown = graft_program({"extract", "--weights", weights, "--data", data, "--out",
                                         folder / "g.npy", "--layer", "blok1"});
  CHECK(unknown.code == 1);
  CHECK(contains(unknown.err, "block1"));
  CHECK_FALSE(fs::exists(folder / "g.npy"));
  CHECK(graft_program({"probe", "--data", data}).code == 2);
}

}  // namespace
}  // namespace graft
