// DELTA, with attention and without: the term, its gradients and the attention, each against a
// formula of its own in double, and whole runs with attention.
#include <algorithm>
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
#include "transfer/measure/logistic.h"
#include "transfer/regularise/regulariser.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

std::unique_ptr<ImageModel> small_model(uint64_t seed, Device device = test::test_device()) {
  auto model = make_model("small_cnn", {3, 3, 0}, {seed, 0, 0});
  model->to(device);
  model->eval();
  return model;
}
Start start_of(uint64_t seed) {
  return {[seed] { return small_model(seed, kCpu); }, {}};
}
Tensor random_images(int64_t n, uint64_t seed) {
  return normal({n, 8, 8, 3}, 0, 1, {seed, 0, 0}).to(test::test_device());
}
double sum_of_squares(const Tensor& a, const Tensor& b) {
  const std::vector<float> x = a.to_vector<float>(), y = b.to_vector<float>();
  double sum = 0;
  for (size_t i = 0; i < x.size(); ++i) {
    sum += (static_cast<double>(x[i]) - y[i]) * (static_cast<double>(x[i]) - y[i]);
  }
  return sum;
}
double value(const Tensor& x) { return static_cast<double>(x.item()); }

TEST_CASE("DELTA measures how far the feature maps are from the starting network's") {
  const auto model = small_model(1), start = small_model(2);
  const Tensor images = random_images(4, 6);
  RegulariseOptions options;
  options.delta = 0.4f;
  const auto own = make_delta(*model, options, start_of(1));
  model->forward(images);
  CHECK(value(own->term(images, Tensor())) <
        1e-9);  // without gradients the layers are fused: rounding
  const auto other = make_delta(*model, options, start_of(2));
  model->forward(images);
  const Tensor term = other->term(images, Tensor());

  // Of the stages with weights: those after which the maps get smaller, and the last.
  double expected = 0;
  std::vector<std::pair<Tensor, Tensor>> maps;
  for (size_t i = 0; i < model->stages().size(); ++i) {
    if (model->stages()[i].modules().empty()) continue;
    maps.emplace_back(model->run_stages(images, 0, i + 1), start->run_stages(images, 0, i + 1));
  }
  for (size_t i = 0; i < maps.size(); ++i) {
    const Tensor& map = maps[i].first;
    const auto places = static_cast<double>(map.numel() / map.dim(-1));
    if (i + 1 < maps.size() && map.dim(1) == maps[i + 1].first.dim(1)) continue;
    expected += 0.2 * sum_of_squares(maps[i].first, maps[i].second) / places;
  }
  CHECK(expected > 0);
  CHECK(value(term) == doctest::Approx(expected).epsilon(1e-4));
  backward(term);
  for (const NamedTensor& p : model->named_parameters()) {
    CHECK(p.tensor->grad().defined() == !in_head(*model, p.name));
  }
}

// Batches of four of some images.
class Given : public Batches {
 public:
  Given(Tensor images, std::vector<int64_t> labels)
      : images_(std::move(images)), labels_(std::move(labels)) {}
  int64_t samples() const override { return images_.dim(0); }
  int64_t count() const override { return samples() / 4; }
  void start_epoch(int64_t, int64_t) override { next_ = 0; }
  bool next(Batch& batch) override {
    if (next_ == samples()) return false;
    batch.images = narrow(images_, next_, 4);
    batch.labels = Tensor::of<int64_t>({labels_.begin() + next_, labels_.begin() + next_ + 4});
    next_ += 4;
    return true;
  }

 private:
  Tensor images_;
  std::vector<int64_t> labels_;
  int64_t next_ = 0;
};

const std::vector<int64_t> kLabels{0, 1, 2, 2, 1, 0, 0, 2, 1, 1, 2, 0};
constexpr int64_t kJudged = 6;  // one and a half batches
const Tensor& judged_images() {
  static const Tensor images = normal({12, 8, 8, 3}, 0, 1, {7, 0, 0});
  return images;
}
bool keep_going(int64_t) { return true; }

// The sum of the losses of the first images under a linear head, in double.
double loss_of(const std::vector<float>& features, const std::vector<float>& w,
               const std::vector<float>& b) {
  const size_t classes = b.size(), width = w.size() / classes;
  double loss = 0;
  for (size_t i = 0; i < kJudged; ++i) {
    double own = 0, sum = 0;
    for (size_t c = 0; c < classes; ++c) {
      double logit = b[c];
      for (size_t k = 0; k < width; ++k) {
        logit += static_cast<double>(w[c * width + k]) * features[i * width + k];
      }
      sum += std::exp(logit);
      if (kLabels[i] == static_cast<int64_t>(c)) own = logit;
    }
    loss += std::log(sum) - own;
  }
  return loss;
}

TEST_CASE("attention is what the loss gains when a channel is silenced in its batch norm") {
  RegulariseOptions options;
  options.delta = 0.4f;
  options.delta_images = kJudged;
  const auto model = small_model(1);
  const auto delta = make_delta(*model, options, start_of(2));
  CHECK(delta->wants_measuring());
  CHECK(delta->state().empty());
  Given stopped(judged_images(), kLabels), given(judged_images(), kLabels);
  int64_t calls = 0;
  CHECK_FALSE(delta->measure(stopped, [&](int64_t) { return ++calls < 5; }));
  CHECK(delta->wants_measuring());
  CHECK(delta->measure(given, keep_going));
  CHECK_FALSE(delta->wants_measuring());

  const auto start = small_model(2, kCpu);
  const NoGrad no_grad;
  const Tensor features = start->features(judged_images());
  std::vector<float> w, b;
  LogisticRegression::fit(features, kLabels, 3, {}).linear_layer(w, b);
  const double whole = loss_of(features.to_vector<float>(), w, b);
  const std::map<std::string, Tensor> state = delta->state();
  REQUIRE(state.size() == 3);
  for (const char* number : {"1", "2", "3"}) {
    CAPTURE(number);
    std::vector<double> increase;
    const auto channels =
        static_cast<size_t>(start->state_dict().at(text("bn", number, ".weight")).numel());
    for (size_t c = 0; c < channels; ++c) {
      const auto silenced = small_model(2, kCpu);
      for (const NamedTensor& entry : silenced->named_parameters()) {
        if (entry.name.starts_with(text("bn", number, "."))) {
          entry.tensor->detach().mutable_data<float>()[c] = 0;
        }
      }
      increase.push_back(loss_of(silenced->features(judged_images()).to_vector<float>(), w, b) -
                         whole);
    }
    double mean = 0, variance = 0, total = 0;
    for (const double d : increase) mean += d / static_cast<double>(channels);
    for (const double d : increase) {
      variance += (d - mean) * (d - mean) / static_cast<double>(channels);
    }
    for (const double d : increase) total += std::exp((d - mean) / std::sqrt(variance) / 5);
    const std::vector<float> attention =
        state.at(text("delta.attention.block", number)).to_vector<float>();
    REQUIRE(attention.size() == channels);
    CHECK(*std::max_element(attention.begin(), attention.end()) > 1.2f);
    for (size_t c = 0; c < channels; ++c) {
      const double wanted = static_cast<double>(channels) *
                            std::exp((increase[c] - mean) / std::sqrt(variance) / 5) / total;
      REQUIRE(attention[c] == doctest::Approx(wanted).epsilon(1e-3));
    }
  }
}

TEST_CASE("the term counts each channel as its attention says, and so do its gradients") {
  RegulariseOptions options;
  options.delta = 0.4f;
  options.delta_images = kJudged;
  const auto model = small_model(1), start = small_model(2);
  const Tensor images = random_images(4, 6);
  const auto delta = make_delta(*model, options, start_of(2));
  std::map<std::string, Tensor> state;
  for (size_t i = 1; i <= 3; ++i) {
    state[text("delta.attention.block", i)] = uniform({int64_t{16} << i}, 0.2f, 3, {i, 0, 0});
  }
  delta->load(state);
  CHECK_FALSE(delta->wants_measuring());
  model->forward(images);
  const Tensor term = delta->term(images, Tensor());
  backward(term);
  std::vector<std::vector<float>> ours;
  for (const NamedTensor& entry : model->named_parameters()) {
    const Tensor grad = entry.tensor->grad();
    CHECK(grad.defined() == !in_head(*model, entry.name));
    ours.push_back(grad.defined() ? grad.to_vector<float>() : std::vector<float>());
  }
  model->zero_grad();
  double expected = 0;
  for (size_t i = 1; i <= 3; ++i) {
    const Tensor map = model->run_stages(images, 0, i);
    const std::vector<float> now = map.to_vector<float>(),
                             before = start->run_stages(images, 0, i).to_vector<float>(),
                             a = state.at(text("delta.attention.block", i)).to_vector<float>();
    const double places = static_cast<double>(now.size() / a.size());
    std::vector<float> gradient(now.size());
    for (size_t k = 0; k < now.size(); ++k) {
      const double difference = static_cast<double>(now[k]) - before[k];
      const auto weight = static_cast<double>(a[k % a.size()]);
      expected += 0.2 * weight * difference * difference / places;
      gradient[k] = static_cast<float>(0.4 * weight * difference / places);
    }
    backward(map, Tensor::of(gradient, map.shape()).to(test::test_device()));
  }
  CHECK(value(term) == doctest::Approx(expected).epsilon(1e-4));
  size_t at = 0;
  for (const NamedTensor& entry : model->named_parameters()) {
    const std::vector<float>& mine = ours[at++];
    if (mine.empty()) continue;
    const std::vector<float> theirs = entry.tensor->grad().to_vector<float>();
    const float largest =
        std::fabs(*std::max_element(theirs.begin(), theirs.end(),
                                    [](float x, float y) { return std::fabs(x) < std::fabs(y); }));
    for (size_t i = 0; i < mine.size(); ++i) {
      REQUIRE(std::fabs(mine[i] - theirs[i]) <= 1e-4f * largest);
    }
  }
  // Attention of 1 is none.
  for (auto& [name, attention] : state) attention.fill(1);
  delta->load(state);
  model->forward(images);
  options.delta_images = 0;
  const auto plain = make_delta(*model, options, start_of(2));
  const float weighed = delta->term(images, Tensor()).item();
  model->forward(images);
  CHECK(weighed == plain->term(images, Tensor()).item());
}

FinetuneOptions small_run(const TemporaryFolder& folder) {
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.data = folder / "stripes";
  options.weights = folder / "source.safetensors";
  options.image_size = 16;
  options.batch_norm = BatchNormPolicy::train;
  options.validation = 0.25;
  options.batch = 8;  // 24 images to train: 3 batches
  options.epochs = 2;
  options.workers = 0;
  options.overwrite = true;
  options.device = test::test_device();
  options.regularise.delta = 0.1f;
  options.regularise.delta_images = 10;
  testing::write_stripes(options.data, 16, 16, 7);
  ModelCard card;
  card.architecture = "small_cnn";
  card.classes = 3;
  write_safetensors(options.weights, small_model(5, kCpu)->state_dict(), to_metadata(card));
  return options;
}
struct StopAfter : Observer {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
};

TEST_CASE("a run with attention resumes to the same bytes, from within the measurement, too") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder);
  SUBCASE("alone") {}
  SUBCASE("in bf16, beside Co-Tuning") {
    options.precision = Dtype::bf16;
    options.regularise.co_tuning = 1;
  }
  options.out = folder / "whole";
  finetune(options);
  // Three batches of features, then two of three maps each; then training.
  for (const int64_t stop : {2, 5, 8, 11, 13}) {
    CAPTURE(stop);
    options.out = folder / "stopped";
    StopAfter first(stop), second(3);
    CHECK(finetune(options, first).interrupted);
    CHECK(resume(options.out, {}, second).interrupted);
    Observer quiet;
    resume(options.out, {}, quiet);
    CHECK(file_bytes(folder / "whole" / "best.safetensors") ==
          file_bytes(options.out / "best.safetensors"));
    CHECK(file_bytes(folder / "whole" / "last.safetensors") ==
          file_bytes(options.out / "last.safetensors"));
  }
  options.out = folder / "plain";
  options.regularise.delta_images = 0;
  finetune(options);
  CHECK(file_bytes(folder / "whole" / "last.safetensors") !=
        file_bytes(folder / "plain" / "last.safetensors"));
}

TEST_CASE("recorded steps with attention end with the bytes of steps run one by one") {
  if (test::test_device().is_cpu()) return;
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder);
  options.out = folder / "recorded";
  finetune(options);
  options.out = folder / "single";
  options.graphs = false;
  finetune(options);
  CHECK(file_bytes(folder / "recorded" / "last.safetensors") ==
        file_bytes(folder / "single" / "last.safetensors"));
}

TEST_CASE("attention without DELTA is refused, and a dry run says what it costs") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder);
  Observer quiet;
  CHECK(plan_finetune(options, quiet).objective ==
        "cross entropy + 0.1 DELTA, attention from 10 images");
  options.regularise.delta = 0;
  CHECK_THROWS_WITH_AS(finetune(options), doctest::Contains("says nothing without"), Error);
  options.regularise.delta_images = -1;
  CHECK_THROWS_WITH_AS(finetune(options), doctest::Contains("must be at least 0"), Error);
}

}  // namespace
}  // namespace graft
