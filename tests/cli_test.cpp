// The built program as people and scripts see it: exit codes, messages, JSON, signals, files.
#include <doctest/doctest.h>
#include <fstream>
#include <signal.h>

#include "kernels/types.h"
#include "tests/support/program.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using namespace testing;
using nlohmann::json;

TEST_CASE("help with examples for the program and every command") {
  const Outcome all = graft_program({"--help"});
  CHECK(all.code == 0);
  for (const char* name :
       {"finetune", "adapt", "plan", "evaluate", "verdict", "rank", "distance", "forgetting",
        "predict", "extract", "probe", "convert", "merge", "experiment", "inspect", "info"}) {
    CHECK(contains(all.out, name));
    const Outcome one = graft_program({name, "--help"});
    CHECK(one.code == 0);
    CHECK(contains(one.out, "Examples:\n  graft " + std::string(name)));
    CHECK(one.err.empty());
  }
  CHECK(contains(graft_program({"--version"}).out, "graft 0."));
}

TEST_CASE("adapt: two domains to a model that predict takes, and its table in JSON") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "target", 16, 16, 9);
  const std::string run = (folder / "run").string();
  const Outcome done = graft_program({"adapt", "--source", pictures().string(), "--target",
                                      (folder / "target").string(), "--target-labels", "--arch",
                                      "small_cnn", "--image-size", "16", "--batch", "8", "--epochs",
                                      "2", "--set", "hidden=16", "--out", run, "--json"});
  REQUIRE_MESSAGE(done.code == 0, done.err);
  const std::vector<json> lines = json_lines(done.out);
  REQUIRE(lines.size() == 3);
  CHECK(lines[0].at("event") == "epoch");
  CHECK(lines[0].at("validators").size() == 8);
  CHECK(lines[2].at("event") == "done");
  CHECK(lines[2].at("choices").back().at("validator") == "oracle");
  CHECK(contains(done.err, "domains told apart"));
  const std::string picture = (folder / "target" / "down" / "picture0.png").string();
  CHECK(graft_program({"predict", "--weights", run + "/best.safetensors", picture}).code == 0);
  const Outcome again = graft_program({"adapt", "--resume", run});
  CHECK(again.code == 0);
  CHECK(contains(again.out, "chosen by"));
  CHECK(graft_program({"adapt", "--resume", run, "--epochs", "9"}).code == 2);
  CHECK(contains(graft_program({"adapt", "--list-methods"}).out, "cdan_e"));
}

TEST_CASE("wrong usage is exit code 2 with advice on stderr and nothing on stdout") {
  const TemporaryFolder folder;
  const std::string out = (folder / "run").string(), data = pictures().string();
  struct Case {
    std::vector<std::string> arguments;
    std::string advice;
  };
  const std::vector<Case> cases{
      {{}, "see graft --help"},
      {{"finetun"}, "did you mean \"graft finetune\"?"},
      {{"xyzzy"}, "\"xyzzy\" is not a command"},
      {{"finetune", "--epoch", "3"}, "did you mean --epochs?"},
      {{"finetune", "--epochs", "three", "--data", data, "--out", out}, "--epochs"},
      {{"finetune", "--data", data}, "--out RUN is missing"},
      {{"adapt", "--source", data, "--out", out}, "--target is missing"},
      {{"adapt", "--source", data, "--target", data, "--out", out}, "give either --weights"},
      {{"adapt", "--source", data, "--target", data, "--out", out, "--arch", "mlp", "--method",
        "dann_"},
       "did you mean dann"},
      {{"adapt", "--source", data, "--target", data, "--out", out, "--arch", "mlp", "--set",
        "wieght=1"},
       "did you mean weight?"},
      {{"finetune", "--data", data, "--out", out, "--cache", "f16"}, "--cache"},
      {{"finetune", "--out", out}, "--data is missing"},
      {{"finetune", "--data", data, "--out", out}, "--weights is missing"},
      {{"finetune", "--data", data, "--out", out, "--arch", "mlp"}, "go together"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--batch", "0"},
       "batch must be at least 1"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--drop-path", "1"},
       "drop path must be below 1"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--hue", "0.6"},
       "at most 0.5 for the hue"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--lr", "-1"},
       "learning rate must be at least 0"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--optimizer", "adam"},
       "--optimizer"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--lora", "0"}, "rank from 1"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--lora-alpha", "8"},
       "give a rank"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--l2-sp", "0.1,0.2,0.3"},
       "--l2-sp"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--ema", "-0.5"}, "--ema"},
      {{"finetune", "--data", data, "--out", out, "--weights", "w", "--ema", "0.9", "--swa", "0.5"},
       "give one of the two"},
      {{"merge", "--weights", "w", "--delta", "d", "model.pt"}, "must end in .safetensors"},
      {{"finetune", "--resume", out, "--epochs", "9"}, "--epochs cannot change"},
      {{"finetune", "--data", data, "--out", out, "--from-scratch", "--arch", "resnet5"},
       "resnet50"},
      {{"convert", "in.pth", "out.safetensors", "--arch", "resnet5"}, "resnet50"},
      {{"predict", "picture.png"}, "--weights"},
      {{"predict", "--weights", "w", "--top", "0", "picture.png"}, "--top"},
      {{"predict", "--weights", "w", "--device", "tpu", "picture.png"}, "cpu, cuda or cuda:N"},
      {{"evaluate", "--weights", "w"}, "--data"},
      {{"verdict", "--data", data, "--weights", "w"}, "--out is missing"},
      {{"verdict", "--data", data, "--weights", "w", "--out", out, "--seeds", "1"}, "--seeds"},
      {{"verdict", "--data", data, "--weights", "w", "--out", out, "--steps", "3", "--epochs", "3"},
       "contradict"},
      {{"verdict", "--resume", out, "--lr", "0.1"}, "--lr cannot change"},
      {{"rank", "--data", data, "--candidates", "w"}, "at least 2"},
      {{"distance", "--source", data, "--weights", "w"}, "--target"},
      {{"forgetting", "--before", "w", "--data", data}, "--after"},
      {{"rank", "--data", data, "--candidates", "w", "v", "--score", "prob"},
       "did you mean probe?"},
  };
  for (const Case& one : cases) {
    const Outcome outcome = graft_program(one.arguments);
    CAPTURE(one.advice);
    CAPTURE(outcome.err);
    CHECK(outcome.code == 2);
    CHECK(contains(outcome.err, one.advice));
    CHECK(contains(outcome.err, "--help"));
    CHECK(outcome.out.empty());
    CHECK_FALSE(fs::exists(out));
  }
}

TEST_CASE("work that cannot be done is exit code 1, names the file and leaves nothing behind") {
  const TemporaryFolder folder;
  const std::string out = (folder / "run").string(), data = pictures().string();
  std::ofstream(folder / "text.png") << "this is no picture";
  std::ofstream(folder / "cut.safetensors") << file_bytes(trained()).substr(0, 5000);
  fs::create_directories(folder / "one" / "only");
  fs::copy(pictures() / "down", folder / "one" / "only");
  fs::copy(pictures(), folder / "bad", fs::copy_options::recursive);
  for (const fs::directory_entry& entry : fs::directory_iterator(folder / "bad" / "down")) {
    fs::resize_file(entry.path(), fs::file_size(entry.path()) / 2);
  }
  const std::string text = (folder / "text.png").string();
  const std::string cut = (folder / "cut.safetensors").string();
  const std::string state = (trained().parent_path() / "state.safetensors").string();
  const std::string last = (trained().parent_path() / "last.safetensors").string();
  struct Case {
    std::vector<std::string> arguments;
    std::string message;
  };
  std::vector<Case> cases{
      {{"finetune", "--data", "/nowhere", "--weights", trained(), "--out", out}, "/nowhere"},
      {{"finetune", "--data", data, "--weights", "/none.pth", "--out", out}, "/none.pth"},
      {{"finetune", "--data", data, "--weights", text, "--out", out}, "text.png"},
      {{"finetune", "--data", data, "--weights", cut, "--out", out}, "cut.safetensors"},
      {{"finetune", "--data", folder / "bad", "--weights", trained(), "--out", out},
       "--on-bad-image skip"},
      {{"finetune", "--data", folder / "one", "--weights", trained(), "--out", out}, "class"},
      {{"finetune", "--data", data, "--weights", trained(), "--freeze", "layer9", "--out", out},
       "no layer matches \"layer9\""},
      {{"finetune", "--resume", out}, "no run to resume"},
      {{"evaluate", "--weights", trained(), "--data", "/nowhere"}, "/nowhere"},
      {{"verdict", "--data", data, "--weights", "/none.pth", "--out", out}, "/none.pth"},
      {{"verdict", "--data", data, "--weights", trained(), "--out", out, "--seeds", "17"},
       "too few for 17 seeds"},
      {{"verdict", "--resume", out}, "no verdict to resume"},
      {{"rank", "--data", data, "--candidates", trained(), "/none.pth"}, "/none.pth"},
      {{"distance", "--source", data, "--target", "/nowhere", "--weights", last}, "/nowhere"},
      {{"forgetting", "--before", cut, "--after", last, "--data", data}, "cut.safetensors"},
      {{"rank", "--data", data, "--candidates", trained(), trained()}, "given twice"},
      {{"rank", "--data", folder / "one", "--candidates", trained(), last}, "class"},
      {{"predict", "--weights", "/none.safetensors", text}, "/none.safetensors"},
      {{"predict", "--weights", state, text}, "state.safetensors"},
      {{"predict", "--weights", trained(), text}, "text.png"},
  };
  if (!kHasCuda) {
    cases.push_back(
        {{"predict", "--weights", trained(), "--device", "cuda", text}, "--device cpu"});
  }
  for (const Case& one : cases) {
    const Outcome outcome = graft_program(one.arguments);
    CAPTURE(one.message);
    CAPTURE(outcome.err);
    CHECK(outcome.code == 1);
    CHECK(contains(outcome.err, one.message));
    CHECK(outcome.out.empty());
    CHECK_FALSE(fs::exists(out));
  }
}

TEST_CASE("a run that is there is not overwritten without --force") {
  const TemporaryFolder folder;
  CHECK(graft_program(training(folder / "run", "1")).code == 0);
  const std::string before = file_bytes(folder / "run" / "best.safetensors");
  const Outcome refused = graft_program(training(folder / "run", "2"));
  CHECK(refused.code == 1);
  CHECK(contains(refused.err, "--resume"));
  CHECK(file_bytes(folder / "run" / "best.safetensors") == before);
  std::vector<std::string> forced = training(folder / "run", "2");
  forced.push_back("--force");
  CHECK(graft_program(forced).code == 0);
  CHECK(file_bytes(folder / "run" / "best.safetensors") != before);
}

TEST_CASE("finetune: plain text tells what to do next, JSON is one object a line") {
  const TemporaryFolder folder;
  std::vector<std::string> arguments = training(folder / "text", "2");
  const Outcome plain = graft_program(arguments);
  CHECK(plain.code == 0);
  CHECK(contains(plain.out, "graft predict --weights " + (folder / "text").string()));
  CHECK(contains(plain.err, "epoch 2: train loss"));
  CHECK_FALSE(contains(plain.err, "\033"));
  CHECK_FALSE(contains(plain.err, "\r"));

  arguments = training(folder / "json", "2");
  arguments.push_back("--json");
  const std::vector<json> lines = json_lines(graft_program(arguments).out);
  REQUIRE(lines.size() == 3);
  CHECK(lines[0]["event"] == "epoch");
  CHECK(lines[1]["epoch"] == 2);
  CHECK(lines[1]["val_accuracy"].is_number());
  CHECK(lines[2]["event"] == "done");
  CHECK(lines[2]["weights"] == (folder / "json" / "best.safetensors").string());

  const json config = json::parse(file_bytes(folder / "json" / "config.json"));
  CHECK(config["classes"] == json{"across", "down"});
  CHECK(config["options"]["batch"] == 8);
  CHECK(config["options"]["optimizer"] == "adamw");
  CHECK(config["data_sha256"].get<std::string>().size() == 64);
  CHECK(config["graft"].is_string());
  for (const json& line : json_lines(file_bytes(folder / "json" / "metrics.jsonl"))) {
    CHECK(line["timing"]["seconds"].is_number());
  }
}

TEST_CASE("evaluate and predict agree with each other and with metrics.jsonl") {
  const std::vector<std::string> evaluation{"evaluate", "--weights", trained(), "--data",
                                            pictures()};
  std::vector<std::string> as_json = evaluation;
  as_json.push_back("--json");
  const std::vector<json> lines = json_lines(graft_program(as_json).out);
  REQUIRE(lines.size() == 1);
  const json& result = lines[0];
  CHECK(result["samples"] == 32);
  CHECK(result["positive_class"] == "down");
  CHECK(result["classes"][0]["class"] == "across");
  CHECK(result["classes"][0]["count"] == 16);
  const int64_t right =
      result["confusion"][0][0].get<int64_t>() + result["confusion"][1][1].get<int64_t>();
  CHECK(result["accuracy"].get<double>() == doctest::Approx(static_cast<double>(right) / 32));
  CHECK(result["accuracy"] > 0.8);
  as_json.insert(as_json.end(), {"--positive", "across"});
  const json other = json_lines(graft_program(as_json).out).at(0);
  CHECK(other["positive_f1"] == result["classes"][0]["f1"]);
  CHECK(result["positive_f1"] == result["classes"][1]["f1"]);
  const Outcome text = graft_program(evaluation);
  CHECK(text.code == 0);
  CHECK(contains(text.out, "balanced accuracy"));

  std::vector<std::string> prediction{"predict", "--weights", trained(), "--json"};
  for (int i = 0; i < 16; ++i) {
    prediction.push_back(pictures() / "down" / ("picture" + std::to_string(i) + ".png"));
  }
  int64_t down = 0;
  for (const json& line : json_lines(graft_program(prediction).out)) {
    REQUIRE(line["top"].size() == 2);
    const json& first = line["top"][0];
    CHECK(first["probability"] >= line["top"][1]["probability"]);
    CHECK(first["class"] == (first["index"] == 1 ? "down" : "across"));
    down += first["index"] == 1;
  }
  CHECK(down == result["confusion"][1][1]);
}

TEST_CASE(
    "finetune --lora writes a delta, inspect tells what it is, merge makes the best model of it") {
  const TemporaryFolder folder;
  const fs::path run = folder / "run", delta = run / "lora.safetensors",
                 out = folder / "m.safetensors";
  const Outcome trained_again = graft_program(
      {"finetune", "--data", pictures(), "--weights", trained(), "--batch", "8", "--epochs", "1",
       "--lora", "2", "--lora-layers", "conv2", "--lora-layers", "conv3", "--out", run});
  CAPTURE(trained_again.err);
  REQUIRE(trained_again.code == 0);
  CHECK(contains(trained_again.err, "adapters of 2112 values beside 2 layers"));
  CHECK(contains(trained_again.out, delta.string()));

  const Outcome shown = graft_program({"inspect", delta});
  CHECK(contains(shown.out, "adapters of rank 2 beside 2 layers (2112 values)"));
  CHECK(contains(shown.out, "graft merge --weights BASE --delta " + delta.string()));
  const json details = json_lines(graft_program({"inspect", delta, "--json"}).out).front();
  CHECK(details["delta"]["adapted_layers"] == 2);
  CHECK(details["delta"]["tensors_in_full"] == 2);

  const Outcome other =
      graft_program({"merge", "--weights", run / "best.safetensors", "--delta", delta, out});
  CHECK(other.code == 1);
  CHECK(contains(other.err, details["delta"]["base_sha256"]));
  CHECK_FALSE(fs::exists(out));
  const std::vector<std::string> merge{"merge", "--weights", trained(), "--delta", delta, out};
  REQUIRE(graft_program(merge).code == 0);
  CHECK(file_bytes(out) == file_bytes(run / "best.safetensors"));
  CHECK(contains(graft_program(merge).err, "--force"));
  CHECK(graft_program({"predict", "--weights", out, pictures() / "down" / "picture0.png"}).code ==
        0);
}

TEST_CASE("predict answers for every readable picture and fails for the others") {
  const std::string good = pictures() / "down" / "picture0.png";
  const Outcome outcome = graft_program(
      {"predict", "--weights", trained(), "--json", "--top", "1", good, "/missing.png", good});
  CHECK(outcome.code == 1);
  const std::vector<json> lines = json_lines(outcome.out);
  REQUIRE(lines.size() == 3);
  CHECK(lines[0]["top"].size() == 1);
  CHECK(contains(lines[1]["error"], "/missing.png"));
  CHECK(lines[2] == lines[0]);
  CHECK(contains(outcome.err, "1 of 3 images failed"));
}

TEST_CASE("info and inspect have JSON; a full disk behind stdout is an error") {
  const json info = json::parse(graft_program({"info", "--json"}).out);
  CHECK(info["devices"][0] == "cpu");
  CHECK(info["architectures"].size() >= 10);
  CHECK(info["threads"] >= 1);
  CHECK(info["cuda_build"] == kHasCuda);
  const Outcome inspected = graft_program({"inspect", trained(), "--json"});
  CHECK(inspected.code == 0);
  CHECK(contains(inspected.out, "fc.weight"));
  if (fs::exists("/dev/full")) {
    CHECK(Run({"info"}, "/dev/full").wait().code == 1);
    CHECK(Run({"info", "--json"}, "/dev/full").wait().code == 1);
  }
}

std::string without_timing(const fs::path& metrics) {
  std::string all;
  for (json line : json_lines(file_bytes(metrics))) {
    line.erase("timing");
    all += line.dump() + "\n";
  }
  return all;
}

TEST_CASE("a run stopped by a signal continues to the same bytes") {
  const TemporaryFolder folder;
  const std::string epochs = "60";
  REQUIRE(graft_program(training(folder / "whole", epochs)).code == 0);
  for (const int signal : {SIGINT, SIGTERM, SIGKILL}) {
    CAPTURE(signal);
    const fs::path out = folder / ("signal" + std::to_string(signal));
    std::vector<std::string> arguments = training(out, epochs);
    arguments.push_back("--json");
    Run run(arguments);
    // Until it trains for certain; it has 59 epochs left.
    run.wait_for("\"epoch\":1");
    run.send(signal);
    const Outcome stopped = run.wait();
    CAPTURE(stopped.err);
    REQUIRE(stopped.code == 128 + signal);
    if (signal != SIGKILL) {
      CHECK(contains(stopped.err, "graft finetune --resume " + out.string()));
      CHECK(json_lines(stopped.out).back()["event"] == "interrupted");
    }
    std::ofstream(out / ".state.safetensors.123-4.tmp") << "a write that was cut short";
    const Outcome resumed = graft_program({"finetune", "--resume", out});
    CHECK(resumed.code == 0);
    for (const char* file : {"best.safetensors", "last.safetensors"}) {
      CHECK(file_bytes(out / file) == file_bytes(folder / "whole" / file));
    }
    CHECK(without_timing(out / "metrics.jsonl") ==
          without_timing(folder / "whole" / "metrics.jsonl"));
    // No temporary file is left.
    CHECK(std::distance(fs::directory_iterator(out), fs::directory_iterator()) == 7);
  }
}

}  // namespace
}  // namespace graft
