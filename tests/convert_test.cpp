// From checkpoints of others to files that graft opens.
#include "layers/models/convert.h"

#include <cmath>
#include <cstring>
#include <doctest/doctest.h>
#include <functional>
#include <map>
#include <regex>
#include <unistd.h>

#include "layers/models/recognise.h"

using namespace graft;

namespace {

WeightFile file_of(const StateDict& state) {
  WeightFile file;
  for (const auto& [name, tensor] : state) file.tensors.push_back({name, tensor, ""});
  return file;
}

// Tensors of the right names and shapes, contents unset.
WeightFile shapes_of(const std::string& architecture, const ModelOptions& options) {
  WeightFile file;
  const auto model = make_blank_model(architecture, options);
  for (const NamedTensor& entry : model->named_tensors()) {
    file.tensors.push_back({entry.name, Tensor(file_shape(entry), entry.tensor->dtype()), ""});
  }
  return file;
}

StateDict small_cnn(int64_t classes) {
  return make_model("small_cnn", {.classes = classes}, {1})->state_dict();
}

std::string message_of(const std::function<void()>& work) {
  try {
    work();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}
bool contains(const std::string& text, const std::string& part) {
  return text.find(part) != std::string::npos;
}
bool same_bytes(const Tensor& a, const Tensor& b) {
  return a.shape() == b.shape() && a.dtype() == b.dtype() &&
         std::memcmp(a.raw(), b.raw(), a.bytes()) == 0;
}

struct TemporaryFolder {
  std::filesystem::path path =
      std::filesystem::temp_directory_path() / text("graft-convert-", getpid());
  TemporaryFolder() { std::filesystem::create_directory(path); }
  ~TemporaryFolder() { std::filesystem::remove_all(path); }
};

}  // namespace

TEST_CASE("every architecture is recognised, whatever its classes and channels") {
  std::vector<std::string> names = architectures();
  names.insert(names.end(), {"mobilenet_v2_x0.5", "mobilenet_v2_x1.4"});
  for (const std::string& name : names) {
    CHECK(recognise(shapes_of(name, {})) == name);
    CHECK(recognise(shapes_of(name, {.classes = 2, .in_channels = 1})) == name);
  }
  CHECK(recognise(file_of({{"x", Tensor::zeros({1})}})) == "");
}

TEST_CASE("a checkpoint wrapped by a training program converts to the same bytes") {
  const StateDict state = small_cnn(3);
  StateDict wrapped;
  for (const auto& [name, tensor] : state) wrapped["state_dict.module." + name] = tensor;
  const Converted result = convert(file_of(wrapped), {}, "a.pt", "00");
  CHECK(result.card.architecture == "small_cnn");
  CHECK(result.card.classes == 3);
  CHECK(result.card.source == "a.pt");
  CHECK(result.card.licence == "unknown");
  REQUIRE(result.tensors.size() == state.size());
  for (const auto& [name, tensor] : state) CHECK(same_bytes(result.tensors.at(name), tensor));
  // 3 filters, 3 norms of two, head
  CHECK(result.parameters == 32 * 27 + 64 * 288 + 128 * 576 + 2 * (32 + 64 + 128) + 3 * 129);
}

TEST_CASE("half precision, absent counters and the class names") {
  StateDict state = small_cnn(1000);
  state["conv2.weight"] = cast(state["conv2.weight"], Dtype::f16);
  state.erase("bn1.num_batches_tracked");
  const Converted result = convert(file_of(state), {.licence = "MIT"}, "a.pt", "");
  CHECK(result.tensors.at("conv2.weight").dtype() == Dtype::f32);
  CHECK(*result.tensors.at("bn1.num_batches_tracked").data<int64_t>() == 0);
  CHECK(result.card.licence == "MIT");
  REQUIRE(result.card.class_names.size() == 1000);
  CHECK(result.card.class_names[0] == "tench");
  CHECK(result.card.class_names[698] == "palace");
  CHECK(result.card.class_names[985] == "daisy");

  const Converted named =
      convert(file_of(small_cnn(2)), {.class_names = {"yes", "no"}}, "a.pt", "");
  CHECK(named.card.class_names == std::vector<std::string>{"yes", "no"});
  CHECK(contains(
      message_of([] { convert(file_of(small_cnn(2)), {.class_names = {"yes"}}, "a.pt", ""); }),
      "has 2 classes, but 1 names"));
}

TEST_CASE("unexplained tensors are an error that lists them") {
  StateDict state = small_cnn(3);
  state.erase("bn2.running_var");
  state["optimizer.step"] = Tensor::zeros({1});
  state["conv1.weight"] = Tensor::zeros({16, 3, 3, 3});
  for (const std::string architecture : {"", "small_cnn"}) {
    const std::string message = message_of(
        [&] { convert(file_of(state), {.architecture = architecture}, "broken.pt", ""); });
    CHECK(contains(message, "broken.pt"));
    CHECK(contains(message, "small_cnn"));
    CHECK(contains(message, "bn2.running_var"));
    CHECK(contains(message, "optimizer.step"));
    CHECK(contains(message,
                   "conv1.weight: small_cnn wants [32, 3, 3, 3], the file has [16, 3, 3, 3]"));
  }
  CHECK(contains(message_of([] { convert({}, {}, "empty.pt", ""); }), "holds no tensors"));
  CHECK(contains(
      message_of([] { convert(file_of(small_cnn(3)), {.architecture = "resnet18"}, "a.pt", ""); }),
      "the tensors do not fit resnet18"));
}

TEST_CASE("numbers that are not finite are an error that names the tensor") {
  for (const float bad : {NAN, INFINITY}) {
    StateDict state = small_cnn(3);
    state["bn2.bias"].mutable_data<float>()[5] = bad;
    const std::string message = message_of([&] { convert(file_of(state), {}, "nan.pt", ""); });
    CHECK(contains(message, "nan.pt: bn2.bias has 1 values"));
  }
}

TEST_CASE("MobileNetV2 under its old flat names and without a classifier") {
  const StateDict state = make_model("mobilenet_v2_x0.25", {.classes = 10}, {1})->state_dict();
  StateDict flat;
  const std::map<std::string, std::string> expanded{{"0.0", "0"}, {"0.1", "1"}, {"1.0", "3"},
                                                    {"1.1", "4"}, {"2", "6"},   {"3", "7"}};
  const std::map<std::string, std::string> plain{
      {"0.0", "0"}, {"0.1", "1"}, {"1", "3"}, {"2", "4"}};
  const std::regex pattern(R"((features\.(\d+)\.conv\.)(\d(?:\.\d)?)(\.[a-z_]+))");
  for (const auto& [name, tensor] : state) {
    std::smatch part;
    if (name.rfind("classifier", 0) == 0) continue;
    if (std::regex_match(name, part, pattern)) {
      const auto& table = part[2] == "1" ? plain : expanded;
      flat[part[1].str() + table.at(part[3].str()) + part[4].str()] = tensor;
    } else {
      flat[name] = tensor;
    }
  }
  REQUIRE(flat.size() == state.size() - 2);
  const Converted result = convert(file_of(flat), {}, "old.pt", "");
  CHECK(result.card.architecture == "mobilenet_v2_x0.25");
  CHECK(result.card.classes == 0);
  REQUIRE(result.tensors.size() == flat.size());
  for (const auto& [name, tensor] : result.tensors) CHECK(same_bytes(tensor, state.at(name)));

  const TemporaryFolder folder;
  const auto path = folder.path / "features.safetensors";
  write_safetensors(path, result.tensors, to_metadata(result.card));
  CHECK(contains(message_of([&] { load_model(path); }), "without a classifier"));
  const AdaptedModel adapted = load_for_task(path, 4, 3, 0, {2});
  CHECK(adapted.model->classes() == 4);
  CHECK(adapted.changes.size() == 1);
}

TEST_CASE("files: the same input gives the same bytes, nothing is overwritten unasked") {
  const TemporaryFolder folder;
  const auto in = folder.path / "in.safetensors", out = folder.path / "out.safetensors",
             again = folder.path / "again.safetensors";
  write_safetensors(in, small_cnn(3));
  const ConvertReport report = convert_file(in, out, {.class_names = {"a", "b", "c"}}, false);
  CHECK(report.card.source == "in.safetensors");
  CHECK(report.card.source_sha256 == sha256_hex(in));
  CHECK(report.output_sha256 == sha256_hex(out));
  convert_file(in, again, {.class_names = {"a", "b", "c"}}, false);
  CHECK(sha256_hex(again) == sha256_hex(out));

  CHECK(contains(message_of([&] { convert_file(in, out, {}, false); }), "--force"));
  CHECK(sha256_hex(again) == sha256_hex(out));
  CHECK(contains(message_of([&] { convert_file(in, in, {}, true); }), "is the input itself"));
  // A file that graft wrote keeps its card.
  convert_file(out, again, {}, true);
  CHECK(card_of(read_weights(again)).class_names == std::vector<std::string>{"a", "b", "c"});
  CHECK(load_model(again).card.classes == 3);
}
