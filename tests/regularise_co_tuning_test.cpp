// Co-Tuning: its relation of classes and its loss, each against a formula of its own in double, and
// whole runs.
#include <cmath>
#include <doctest/doctest.h>
#include <fstream>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "transfer/finetune.h"
#include "transfer/regularise/co_tuning.h"
#include "transfer/regularise/objective.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

constexpr int64_t kSourceClasses = 5;

const fs::path& pictures() {
  static const TemporaryFolder folder;
  static const fs::path data = [] {
    testing::write_stripes(folder / "stripes", 16, 16, 7);
    return folder / "stripes";
  }();
  return data;
}
// A network with random weights and a head for five classes, as graft convert would write it.
const fs::path& source() {
  static const TemporaryFolder folder;
  static const fs::path weights = [] {
    ModelCard card;
    card.architecture = "small_cnn";
    card.classes = kSourceClasses;
    card.preprocessing = preprocessing_of("small_cnn");
    const auto model = make_model("small_cnn", {kSourceClasses, 3, 0}, {5, 0, 0});
    write_safetensors(folder / "source.safetensors", model->state_dict(), to_metadata(card));
    return folder / "source.safetensors";
  }();
  return weights;
}
FinetuneOptions small_run(const fs::path& out) {
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.data = pictures();
  options.weights = source();
  options.image_size = 16;
  options.batch_norm = BatchNormPolicy::train;
  options.validation = 0.25;
  options.batch = 8;  // 24 images to train: 3 batches
  options.epochs = 3;
  options.workers = 0;
  options.out = out;
  options.overwrite = true;
  options.device = test::test_device();
  options.regularise.co_tuning = 2.3f;
  return options;
}

struct StopAfter : Observer {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};
struct Lines : Observer {
  void message(const std::string& line) override { all += line + "\n"; }
  std::string all;
};

std::string metrics_of(const fs::path& run) {
  std::string all;
  std::ifstream file(run / "metrics.jsonl");
  for (std::string line; std::getline(file, line);) {
    all += line.substr(0, line.find(",\"timing\"")) + "\n";
  }
  return all;
}
void check_same_run(const fs::path& a, const fs::path& b) {
  CHECK(file_bytes(a / "best.safetensors") == file_bytes(b / "best.safetensors"));
  CHECK(file_bytes(a / "last.safetensors") == file_bytes(b / "last.safetensors"));
  CHECK(metrics_of(a) == metrics_of(b));
}
std::map<std::string, Tensor> state_of(const fs::path& run) {
  std::map<std::string, Tensor> state;
  for (const FileTensor& entry : read_safetensors(run / "state.safetensors").tensors) {
    state[entry.name] = entry.tensor;
  }
  return state;
}

std::vector<double> softmax_row(const float* logits, size_t n) {
  std::vector<double> p(n);
  double sum = 0;
  for (size_t i = 0; i < n; ++i) sum += p[i] = std::exp(static_cast<double>(logits[i]));
  for (double& x : p) x /= sum;
  return p;
}

TEST_CASE("the relation is the mean of source probabilities over the images of a class") {
  constexpr size_t kImages = 11, kWidth = 7;
  const Tensor logits = normal({kImages, kWidth}, 0, 3, {1, 0, 0});
  const std::vector<int64_t> labels{0, 2, 2, 0, 3, 2, 0, 0, 3, 2, 2};  // none of class 1
  CategoryRelation relation(4, kWidth);
  // In two batches.
  relation.add(narrow(logits, 0, 4).to(test::test_device()),
               Tensor::of<int64_t>({labels.begin(), labels.begin() + 4}));
  relation.add(narrow(logits, 4, 7).to(test::test_device()),
               Tensor::of<int64_t>({labels.begin() + 4, labels.end()}));
  const std::vector<float> rows = relation.rows().to_vector<float>();
  for (size_t c = 0; c < 4; ++c) {
    std::vector<double> wanted(kWidth);
    double n = 0;
    for (size_t i = 0; i < kImages; ++i) {
      if (labels[i] != static_cast<int64_t>(c)) continue;
      n += 1;
      const std::vector<double> p = softmax_row(logits.data<float>() + i * kWidth, kWidth);
      for (size_t s = 0; s < kWidth; ++s) wanted[s] += p[s];
    }
    double total = 0;
    for (size_t s = 0; s < kWidth; ++s) {
      total += static_cast<double>(rows[c * kWidth + s]);
      REQUIRE(rows[c * kWidth + s] ==
              doctest::Approx(n > 0 ? wanted[s] / n : 0).epsilon(1e-6).scale(1e-6));
    }
    CHECK(total == doctest::Approx(n > 0 ? 1 : 0).epsilon(1e-6));
  }
}

// A batch source over given images.
class Given : public Batches {
 public:
  Given(Tensor images, std::vector<int64_t> labels)
      : images_(std::move(images)), labels_(std::move(labels)) {}
  int64_t samples() const override { return images_.dim(0); }
  int64_t count() const override { return 1; }
  void start_epoch(int64_t, int64_t) override { left_ = true; }
  bool next(Batch& batch) override {
    batch.images = images_;
    batch.labels = Tensor::of(labels_);
    return std::exchange(left_, false);
  }

 private:
  Tensor images_;
  std::vector<int64_t> labels_;
  bool left_ = false;
};

TEST_CASE("the term is the source head's cross-entropy, and so are its gradients") {
  const auto model = make_model("small_cnn", {3, 3, 0}, {1, 0, 0});
  model->to(test::test_device());
  model->eval();
  const auto start = make_model("small_cnn", {kSourceClasses, 3, 0}, {2, 0, 0});
  RegulariseOptions options;
  options.co_tuning = 0.7f;
  const Start from{{}, [] { return make_model("small_cnn", {kSourceClasses, 3, 0}, {2, 0, 0}); }};
  const auto co_tuning = make_co_tuning(*model, options, from);
  constexpr size_t kN = 6;
  const std::vector<int64_t> labels{0, 1, 2, 2, 1, 0};
  const Tensor images = normal({kN, 8, 8, 3}, 0, 1, {3, 0, 0});

  // W f + b in double, with the head of the source.
  const StateDict heads = start->state_dict();
  const std::vector<float> w = heads.at(start->head_name() + ".weight").to_vector<float>(),
                           b = heads.at(start->head_name() + ".bias").to_vector<float>();
  const std::vector<float> f = model->features(images.to(test::test_device())).to_vector<float>();
  const size_t width = f.size() / kN;
  std::vector<std::vector<double>> p;
  for (size_t i = 0; i < kN; ++i) {
    std::vector<float> logits;
    for (size_t s = 0; s < kSourceClasses; ++s) {
      double sum = b[s];
      for (size_t k = 0; k < width; ++k) {
        sum += static_cast<double>(w[s * width + k]) * f[i * width + k];
      }
      logits.push_back(static_cast<float>(sum));
    }
    p.push_back(softmax_row(logits.data(), kSourceClasses));
  }
  CHECK(co_tuning->wants_measuring());
  CHECK(co_tuning->state().empty());
  Given stopped(images, labels), given(images, labels);
  CHECK_FALSE(co_tuning->measure(stopped, [](int64_t) { return false; }));
  CHECK(co_tuning->wants_measuring());
  CHECK(co_tuning->measure(given, [](int64_t done) { return done == kN; }));
  CHECK_FALSE(co_tuning->wants_measuring());
  co_tuning->clear();

  Tensor target;
  std::vector<std::vector<double>> q(kN, std::vector<double>(kSourceClasses));
  const auto relation = [&](size_t c, size_t s) {  // two images a class
    double sum = 0;
    for (size_t i = 0; i < kN; ++i) sum += labels[i] == static_cast<int64_t>(c) ? p[i][s] / 2 : 0;
    return sum;
  };
  SUBCASE("of labels") {
    target = co_tuning->target(Tensor::of(labels));
    for (size_t i = 0; i < kN; ++i) {
      for (size_t s = 0; s < kSourceClasses; ++s) {
        q[i][s] = relation(static_cast<size_t>(labels[i]), s);
      }
    }
  }
  SUBCASE("of mixed labels") {
    Mix mix;
    mix.share = 0.3f;
    mix.shift = 2;
    target = co_tuning->target(mix_labels(Tensor::of(labels), 3, mix));
    for (size_t i = 0; i < kN; ++i) {
      for (size_t s = 0; s < kSourceClasses; ++s) {
        q[i][s] = 0.3 * relation(static_cast<size_t>(labels[i]), s) +
                  0.7 * relation(static_cast<size_t>(labels[(i + 2) % kN]), s);
      }
    }
  }
  CHECK_FALSE(co_tuning->term(images, target.to(test::test_device())).defined());  // nothing ran
  model->forward(images.to(test::test_device()));
  const Tensor term = co_tuning->term(images, target.to(test::test_device()));
  double wanted = 0;
  for (size_t i = 0; i < kN; ++i) {
    for (size_t s = 0; s < kSourceClasses; ++s) wanted -= q[i][s] * std::log(p[i][s]);
  }
  CHECK(term.item() == doctest::Approx(0.7 * wanted / kN).epsilon(1e-5));
  backward(term);

  // d / d logits = weight (p - q) / n
  const double scale = 0.7 / kN;
  const std::vector<NamedTensor> parameters = co_tuning->parameters();
  REQUIRE(parameters.size() == 2);
  const std::vector<float> dw = parameters[0].tensor->grad().to_vector<float>(),
                           db = parameters[1].tensor->grad().to_vector<float>();
  std::vector<float> df(f.size());
  for (size_t s = 0; s < kSourceClasses; ++s) {
    double sum = 0;
    for (size_t i = 0; i < kN; ++i) sum += scale * (p[i][s] - q[i][s]);
    CHECK(std::fabs(db[s] - sum) < 1e-6);
    for (size_t k = 0; k < width; ++k) {
      double g = 0;
      for (size_t i = 0; i < kN; ++i) {
        g += scale * (p[i][s] - q[i][s]) * static_cast<double>(f[i * width + k]);
      }
      REQUIRE(std::fabs(dw[s * width + k] - g) < 1e-6);
    }
  }
  for (size_t i = 0; i < kN; ++i) {
    for (size_t k = 0; k < width; ++k) {
      double g = 0;
      for (size_t s = 0; s < kSourceClasses; ++s) {
        g += scale * (p[i][s] - q[i][s]) * static_cast<double>(w[s * width + k]);
      }
      df[i * width + k] = static_cast<float>(g);
    }
  }
  // And on from the features as the tape says.
  std::vector<std::vector<float>> ours;
  for (const NamedTensor& entry : model->named_parameters()) {
    const Tensor grad = entry.tensor->grad();
    CHECK(grad.defined() == !in_head(*model, entry.name));
    ours.push_back(grad.defined() ? grad.to_vector<float>() : std::vector<float>());
  }
  model->zero_grad();
  const Tensor features = model->features(images.to(test::test_device()));
  backward(features, Tensor::of(df, features.shape()).to(test::test_device()));
  size_t at = 0;
  for (const NamedTensor& entry : model->named_parameters()) {
    const std::vector<float>& mine = ours[at++];
    if (mine.empty()) continue;
    const std::vector<float> theirs = entry.tensor->grad().to_vector<float>();
    for (size_t i = 0; i < mine.size(); ++i) REQUIRE(std::fabs(mine[i] - theirs[i]) < 1e-5);
  }
  // Frozen features have nothing to learn from it.
  for (const NamedTensor& entry : model->named_parameters()) {
    entry.tensor->set_requires_grad(false);
  }
  co_tuning->clear();
  model->forward(images.to(test::test_device()));
  CHECK_FALSE(co_tuning->term(images, target.to(test::test_device())).defined());
}

TEST_CASE("a weight of 0, or next to it, is the plain run") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "plain");
  options.regularise = {};
  finetune(options);
  options.out = folder / "zero";
  options.regularise.co_tuning = 0;
  finetune(options);
  check_same_run(folder / "plain", folder / "zero");
  // Measured and trained, but lost in the rounding: nothing but the term touches the run.
  options.out = folder / "next";
  options.regularise.co_tuning = 1e-30f;
  finetune(options);
  check_same_run(folder / "plain", folder / "next");
  CHECK(state_of(folder / "plain").count("objective/co_tuning.weight") == 0);
  CHECK(state_of(folder / "next").count("objective/co_tuning.weight") == 1);
}

TEST_CASE("the source head trains, and the relation is the starting network's") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "plain");
  options.regularise.co_tuning = 0;
  finetune(options);
  options = small_run(folder / "with");
  finetune(options);
  CHECK(file_bytes(folder / "plain" / "last.safetensors") !=
        file_bytes(folder / "with" / "last.safetensors"));
  // What comes out is a network with the new head and no other.
  CHECK(load_model(folder / "with" / "best.safetensors").card.classes == 2);

  const std::map<std::string, Tensor> state = state_of(folder / "with");
  const auto start = load_model(source()).model->state_dict();
  CHECK(state.at("objective/co_tuning.weight").to_vector<float>() !=
        start.at("fc.weight").to_vector<float>());
  CHECK(state.count("optimizer/co_tuning.weight/exp_avg") == 1);
  // Over the images that train, as they are judged.
  const TaskData data = read_task_data(options.data, options.validation, options.split_seed);
  Preprocessing shown = preprocessing_of("small_cnn");
  shown.resize = 18, shown.crop = 16;
  LoaderOptions loader;
  loader.batch_size = 64;
  loader.workers = 0;
  const auto images = image_batches(data.all, data.split.train, shown, {}, loader);
  images->start_epoch(0, 0);
  Batch batch;
  REQUIRE(images->next(batch));
  const std::vector<float> logits =
      load_model(source()).model->forward(batch.images).to_vector<float>();
  const std::vector<int64_t> labels = batch.labels.to_vector<int64_t>();
  std::vector<double> wanted(2 * kSourceClasses);
  for (size_t i = 0; i < labels.size(); ++i) {
    const std::vector<double> p = softmax_row(logits.data() + i * kSourceClasses, kSourceClasses);
    for (size_t s = 0; s < kSourceClasses; ++s) {
      wanted[static_cast<size_t>(labels[i]) * kSourceClasses + s] += p[s] / 12;
    }
  }
  const std::vector<float> rows = state.at("objective/co_tuning.relation").to_vector<float>();
  REQUIRE(rows.size() == wanted.size());
  for (size_t i = 0; i < rows.size(); ++i) CHECK(std::fabs(rows[i] - wanted[i]) < 1e-5);
}

TEST_CASE("a run resumes to the same bytes, whatever else it does") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "whole");
  SUBCASE("alone") {}
  SUBCASE("with SGD and clipped gradients") {
    options.optimizer = OptimizerKind::sgd;
    options.clip_norm = 1;
  }
  SUBCASE("in bf16") { options.precision = Dtype::bf16; }
  SUBCASE("with everything else that mixes, pulls and averages") {
    options.regularise.mixup = options.regularise.cutmix = 1;
    options.regularise.l2_sp = 0.01f;
    options.regularise.delta = 0.01f;
    options.regularise.bss = 0.001f;
    options.regularise.ema = 0.9f;
  }
  SUBCASE("in phases, the first with frozen features") {
    options.preset = "lp-ft";
    options.epochs = 4;
  }
  SUBCASE("beside adapters") {
    options.lora.rank = 2;
    options.lora.layers = {"conv2", "conv3"};
  }
  SUBCASE("behind a kept prefix") {
    options.batch_norm = BatchNormPolicy::frozen_stats;
    options.freeze = {"conv1", "bn1"};
    options.augmentation.horizontal_flip = false;
  }
  SUBCASE("on grey images") { options.channels = 1; }
  finetune(options);
  // The three first batches are those of the relation.
  for (const int64_t stop : {1, 4, 6, 9}) {
    CAPTURE(stop);
    options.out = folder / "stopped";
    StopAfter first(stop), second(2);
    CHECK(finetune(options, first).interrupted);
    CHECK(resume(options.out, {}, second).interrupted);
    Observer quiet;
    resume(options.out, {}, quiet);
    check_same_run(folder / "whole", options.out);
    CHECK(state_of(folder / "whole").at("objective/co_tuning.weight").to_vector<float>() ==
          state_of(options.out).at("objective/co_tuning.weight").to_vector<float>());
  }
}

TEST_CASE("recorded steps end with the bytes of steps run one by one") {
  if (test::test_device().is_cpu()) return;
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "recorded");
  options.epochs = 2;
  options.validation = 0.3;
  options.batch = 6;  // 22 images to train: the last batch is smaller, and not recorded
  SUBCASE("in f32") {}
  SUBCASE("in bf16, mixed") {
    options.precision = Dtype::bf16;
    options.regularise.mixup = 1;
  }
  finetune(options);
  options.out = folder / "single";
  options.graphs = false;
  finetune(options);
  check_same_run(folder / "recorded", folder / "single");
}

TEST_CASE("what Co-Tuning cannot do is refused") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  const auto refused = [&](const std::string& part) {
    CHECK_THROWS_WITH_AS(finetune(options), doctest::Contains(part.c_str()), Error);
    Observer quiet;
    CHECK_THROWS_WITH_AS(plan_finetune(options, quiet), doctest::Contains(part.c_str()), Error);
    CHECK_FALSE(fs::exists(folder / "run"));
  };
  SUBCASE("weights without a head") {
    const auto model = make_model("small_cnn", {kSourceClasses, 3, 0}, {5, 0, 0});
    StateDict features = model->state_dict();
    features.erase("fc.weight");
    features.erase("fc.bias");
    ModelCard card;
    card.architecture = "small_cnn";
    options.weights = folder / "features.safetensors";
    write_safetensors(options.weights, features, to_metadata(card));
    refused("holds features without one");
  }
  SUBCASE("frozen features") {
    options.freeze_features = true;
    refused("Co-Tuning would do nothing: nothing but the head trains");
  }
  SUBCASE("from scratch") {
    options.weights.clear();
    options.architecture = "small_cnn";
    refused("Co-Tuning holds on to pre-trained weights");
  }
  SUBCASE("a weight below 0") {
    options.regularise.co_tuning = -1;
    refused("the weight of Co-Tuning must be at least 0");
  }
  SUBCASE("other weights than at the start") {
    fs::copy_file(source(), folder / "start.safetensors");
    options.weights = folder / "start.safetensors";
    StopAfter stop(5);
    finetune(options, stop);
    fs::copy_file(folder / "run" / "last.safetensors", options.weights,
                  fs::copy_options::overwrite_existing);
    Observer quiet;
    CHECK_THROWS_WITH_AS(resume(folder / "run", {}, quiet),
                         doctest::Contains("not the weights the run was started with"), Error);
  }
}

TEST_CASE("a dry run says what Co-Tuning will do") {
  FinetuneOptions options = small_run("");
  options.preset = "lp-ft";
  Lines lines;
  const PlannedRun planned = plan_finetune(options, lines);
  CHECK(planned.objective == "cross entropy + 2.3 Co-Tuning");
  CHECK(lines.all.find("own head of 5 classes trains beside the new one") != std::string::npos);
  CHECK(lines.all.find("Co-Tuning does nothing in phase") != std::string::npos);
}

}  // namespace
}  // namespace graft
