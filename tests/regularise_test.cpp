// What runs do against overfitting: each formula against one of its own in double, its limits, and
// whole runs that resume to the same bytes.
#include <algorithm>
#include <cmath>
#include <doctest/doctest.h>
#include <fstream>

#include "engine/autograd.h"
#include "engine/io/weights.h"
#include "engine/rng.h"
#include "kernels/error.h"
#include "layers/norm.h"
#include "layers/tap.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "transfer/finetune.h"
#include "transfer/regularise/objective.h"
#include "transfer/regularise/weight_average.h"
#include "transfer/task_data.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

constexpr double kRounding = 1e-5;  // relative; of sums of up to a few thousand f32 numbers

std::unique_ptr<ImageModel> small_model(uint64_t seed) {
  auto model = make_model("small_cnn", {3, 3, 0}, {seed, 0, 0});
  model->to(test::test_device());
  model->eval();
  return model;
}
Start start_of(uint64_t seed) {
  return {[seed] { return make_model("small_cnn", {3, 3, 0}, {seed, 0, 0}); }, {}};
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

TEST_CASE("L2-SP pulls the features towards their start and the head towards 0") {
  const auto model = small_model(1);
  const auto start = start_of(2).model();
  RegulariseOptions options;
  options.l2_sp = 0.3f;
  options.l2_sp_head = 0.7f;
  const auto regulariser = make_l2_sp(*model, options, start_of(2));
  std::vector<NamedTensor> before = start->named_parameters();
  // One layer is frozen and adds nothing.
  for (const NamedTensor& p : model->named_parameters()) {
    if (p.name == "conv2.weight") p.tensor->set_requires_grad(false);
  }
  double expected = 0;
  const std::vector<NamedTensor> parameters = model->named_parameters();
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].tensor->requires_grad()) continue;
    const bool head = in_head(*model, parameters[i].name);
    const Tensor towards = head ? zeros_like(*before[i].tensor) : *before[i].tensor;
    expected += (head ? 0.7 : 0.3) / 2 * sum_of_squares(*parameters[i].tensor, towards);
  }
  const Tensor term = regulariser->term(Tensor(), Tensor());
  CHECK(value(term) == doctest::Approx(expected).epsilon(kRounding));
  backward(term);
  for (size_t i = 0; i < parameters.size(); ++i) {
    if (!parameters[i].tensor->requires_grad()) {
      CHECK_FALSE(parameters[i].tensor->grad().defined());
      continue;
    }
    const bool head = in_head(*model, parameters[i].name);
    const std::vector<float> w = parameters[i].tensor->to_vector<float>(),
                             w0 = before[i].tensor->to_vector<float>(),
                             g = parameters[i].tensor->grad().to_vector<float>();
    for (size_t k = 0; k < w.size(); ++k) {
      const double wanted = head ? 0.7 * w[k] : 0.3 * (static_cast<double>(w[k]) - w0[k]);
      REQUIRE(std::fabs(g[k] - wanted) <= 1e-6);
    }
  }
}

TEST_CASE("BSS shrinks the smallest singular values of the features") {
  const auto model = small_model(1);
  const Tensor images = random_images(2, 5);
  RegulariseOptions options;
  options.bss = 0.5f;
  const auto term_of = [&](int64_t values) {
    options.bss_values = values;
    const auto regulariser = make_bss(*model, options, {});
    model->forward(images);
    return regulariser->term(images, Tensor());
  };
  // Of two rows: the eigenvalues of a 2 x 2 matrix.
  const std::vector<float> f = model->features(images).to_vector<float>();
  const size_t width = f.size() / 2;
  double a = 0, b = 0, c = 0;
  for (size_t i = 0; i < width; ++i) {
    const double x = f[i], y = f[width + i];
    a += x * x, b += x * y, c += y * y;
  }
  const double smaller = (a + c - std::sqrt((a - c) * (a - c) + 4 * b * b)) / 2;
  CHECK(value(term_of(1)) == doctest::Approx(0.5 * smaller).epsilon(1e-4));
  CHECK(value(term_of(2)) == doctest::Approx(0.5 * (a + c)).epsilon(kRounding));
  CHECK(value(term_of(9)) == value(term_of(2)));

  // All values together are the Frobenius norm, whose gradient needs no decomposition.
  Tensor bias;
  for (const NamedTensor& p : model->named_parameters()) {
    if (p.name == "bn3.bias") bias = *p.tensor;
  }
  backward(term_of(2));
  const std::vector<float> ours = bias.grad().to_vector<float>();
  model->zero_grad();
  const Tensor features = model->features(images);
  backward(mul(sum(mul(features, features)), 0.5f));
  const std::vector<float> plain = bias.grad().to_vector<float>();
  for (size_t i = 0; i < plain.size(); ++i) REQUIRE(std::fabs(ours[i] - plain[i]) < 1e-4);

  // Frozen features have nothing to learn from it.
  for (const NamedTensor& p : model->named_parameters()) p.tensor->set_requires_grad(false);
  CHECK_FALSE(term_of(1).defined());
}

struct NormRun {
  std::vector<float> y, dx, mean;
};
NormRun run_norm(float probability, bool training, bool residual) {
  const Tensor start = normal({4, 3, 3, 64}, 1, 2, {3, 0, 0}).to(test::test_device());
  Tensor x = start.clone();
  x.set_requires_grad();
  BatchNorm2d norm(64);
  norm.running_mean = normal({64}, 0, 1, {4, 0, 0});
  norm.running_var = uniform({64}, 0.5f, 2, {5, 0, 0});
  norm.weight = normal({64}, 0, 1, {6, 0, 0}).set_requires_grad();
  norm.to(test::test_device());
  norm.train(training);
  norm.set_stochastic(probability);
  begin_rng_step(11, 4);
  const Tensor y = norm.apply(x, Activation::relu, residual ? start : Tensor());
  backward(y, normal(y.shape(), 0, 1, {7, 0, 0}).to(test::test_device()));
  return {y.to_vector<float>(), x.grad().to_vector<float>(), norm.running_mean.to_vector<float>()};
}

TEST_CASE("StochNorm picks the statistics of each channel") {
  for (const bool residual : {false, true}) {
    CAPTURE(residual);
    const NormRun batch = run_norm(0, true, residual), running = run_norm(0, false, residual);
    const NormRun all_running = run_norm(1, true, residual), mixed = run_norm(0.5f, true, residual);
    CHECK(run_norm(0.5f, true, residual).y == mixed.y);
    // The running ones move as without it.
    CHECK(mixed.mean == batch.mean);
    CHECK(all_running.mean == batch.mean);
    CHECK(running.mean != batch.mean);
    int by_batch = 0, by_running = 0;
    for (size_t c = 0; c < 64; ++c) {
      const auto near = [&](const NormRun& a, const NormRun& b) {
        for (size_t i = c; i < a.y.size(); i += 64) {
          if (std::fabs(a.y[i] - b.y[i]) > 1e-5f || std::fabs(a.dx[i] - b.dx[i]) > 1e-5f) {
            return false;
          }
        }
        return true;
      };
      REQUIRE(near(all_running, running));
      by_batch += near(mixed, batch);
      by_running += near(mixed, running);
    }
    CHECK(by_batch + by_running == 64);
    CHECK(std::abs(by_batch - 32) < 16);  // four standard deviations
  }
}

TEST_CASE("mixup and cutmix draw from Beta(a, a), by seed and step alone") {
  RegulariseOptions options;
  for (const float a : {0.2f, 1.0f, 4.0f}) {
    options.mixup = a;
    double sum = 0, squares = 0;
    constexpr int kDraws = 4000;
    for (uint64_t step = 0; step < kDraws; ++step) {
      const Mix mix = draw_mix(options, 8, 16, 16, 3, step);
      CHECK_FALSE(mix.box);
      REQUIRE(mix.shift >= 1);
      REQUIRE(mix.shift <= 7);
      sum += mix.share;
      squares += static_cast<double>(mix.share) * mix.share;
    }
    const double mean = sum / kDraws, variance = squares / kDraws - mean * mean;
    const double wanted = 1 / (4 * (2 * static_cast<double>(a) + 1));
    CHECK(std::fabs(mean - 0.5) < 4 * std::sqrt(wanted / kDraws));
    CHECK(variance == doctest::Approx(wanted).epsilon(0.1));
  }
  options.cutmix = 1;
  int boxes = 0;
  for (uint64_t step = 0; step < 400; ++step) {
    const Mix mix = draw_mix(options, 8, 12, 20, 3, step),
              again = draw_mix(options, 8, 12, 20, 3, step);
    CHECK(again.share == mix.share);
    CHECK(again.top == mix.top);
    if (!mix.box) continue;
    ++boxes;
    REQUIRE(mix.top >= 0);
    REQUIRE(mix.bottom <= 12);
    REQUIRE(mix.left >= 0);
    REQUIRE(mix.right <= 20);
    const auto area = static_cast<double>((mix.bottom - mix.top) * (mix.right - mix.left));
    CHECK(mix.share == doctest::Approx(1 - area / 240));
  }
  CHECK(std::abs(boxes - 200) < 40);
  CHECK(draw_mix(options, 1, 8, 8, 3, 0).share == 1);
}

TEST_CASE("mixed images and targets") {
  const Tensor x = random_images(5, 9);
  const std::vector<float> before = x.to_vector<float>();
  constexpr size_t kImage = 8 * 8 * 3;
  Mix mix;
  mix.share = 0.3f;
  mix.shift = 2;
  std::vector<float> y = mix_images(x, mix).to_vector<float>();
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t other = (i / kImage + 2) % 5 * kImage + i % kImage;
    const double wanted = 0.3 * before[i] + 0.7 * before[other];
    REQUIRE(std::fabs(y[i] - wanted) < 1e-6);
  }
  mix.box = true;
  mix.top = 1, mix.bottom = 4, mix.left = 2, mix.right = 8;
  y = mix_images(x, mix).to_vector<float>();
  for (size_t i = 0; i < y.size(); ++i) {
    const size_t row = i % kImage / 24, column = i % 24 / 3;
    const bool pasted = row >= 1 && row < 4 && column >= 2;
    const size_t other = (i / kImage + 2) % 5 * kImage + i % kImage;
    REQUIRE(y[i] == (pasted ? before[other] : before[i]));
  }
  // The loss of the mixed target is the mixed loss of both.
  const Tensor labels = Tensor::of<int64_t>({0, 2, 1, 1, 0});
  const Tensor partners = Tensor::of<int64_t>({1, 1, 0, 0, 2});
  const Tensor logits = normal({5, 3}, 0, 2, {8, 0, 0});
  for (const float smoothing : {0.0f, 0.2f}) {
    CrossEntropyOptions options;
    options.label_smoothing = smoothing;
    const double mixed = value(cross_entropy(logits, mix_labels(labels, 3, mix), options));
    const double parts = 0.3 * value(cross_entropy(logits, labels, options)) +
                         0.7 * value(cross_entropy(logits, partners, options));
    CHECK(mixed == doctest::Approx(parts).epsilon(1e-6));
  }
  mix.share = 1;
  CHECK(mix_images(x, mix).to_vector<float>() == before);
  CHECK(mix_labels(labels, 3, mix).to_vector<float>() ==
        std::vector<float>{1, 0, 0, 0, 0, 1, 0, 1, 0, 0, 1, 0, 1, 0, 0});
}

// Moves every parameter as a step might.
void disturb(ImageModel& model, uint64_t step) {
  uint32_t stream = 0;
  for (const NamedTensor& p : model.named_parameters()) {
    const Tensor noise = normal(p.tensor->shape(), 0, 0.1f, {21, step, stream++});
    p.tensor->copy_from(add(p.tensor->detach(), noise.to(p.tensor->device())));
  }
}
std::vector<float> weights_of(ImageModel& model) {
  return model.state_dict().at("conv2.weight").to_vector<float>();
}

TEST_CASE("EMA and SWA average the weights, and the model gets its own back") {
  Phase phase;
  phase.batch_norm = BatchNormPolicy::train;
  RegulariseOptions ema, swa, last;
  ema.ema = 0.6f;
  swa.swa = 0.5f;
  last.ema = 0;
  const auto model = small_model(1);
  WeightAverage moving(*model, phase, ema), mean(*model, phase, swa), none(*model, phase, last);
  std::vector<float> w = weights_of(*model);
  std::vector<double> expected(w.begin(), w.end()), sum(w.size());
  CHECK_FALSE(moving.begun());
  for (uint64_t step = 1; step <= 6; ++step) {
    disturb(*model, step);
    moving.after_step();
    none.after_step();
    mean.after_epoch(static_cast<int64_t>(step), 6);
    CHECK(mean.begun() == (step > 3));
    mean.after_epoch(static_cast<int64_t>(step), 6);  // judged twice, counted once
    w = weights_of(*model);
    const double t = static_cast<double>(step), d = std::min(0.6, (1 + t) / (10 + t));
    for (size_t i = 0; i < w.size(); ++i) {
      expected[i] = d * expected[i] + (1 - d) * w[i];
      if (step > 3) sum[i] += w[i] / 3.0;
    }
  }
  CHECK(mean.count() == 3);
  const StateDict before = model->state_dict();
  const auto check_average = [&](WeightAverage& average, const std::vector<double>& wanted) {
    const WeightAverage::Guard guard(average);
    const std::vector<float> got = weights_of(*model);
    for (size_t i = 0; i < got.size(); ++i) REQUIRE(std::fabs(got[i] - wanted[i]) < 1e-6);
  };
  check_average(moving, expected);
  check_average(mean, sum);
  {
    const WeightAverage::Guard guard(none);
    CHECK(weights_of(*model) == w);
  }
  for (const auto& [name, tensor] : model->state_dict()) {
    if (tensor.dtype() != Dtype::f32) continue;
    CHECK(tensor.to_vector<float>() == before.at(name).to_vector<float>());
  }
  // A state goes on where it stood, and not in another model.
  WeightAverage resumed(*model, phase, ema);
  resumed.load(moving.state(), moving.count());
  check_average(resumed, expected);
  CHECK_THROWS_WITH_AS(resumed.load({}, 1), doctest::Contains("start the run again"), Error);
}

// --- whole runs

const fs::path& pictures() {
  static const TemporaryFolder folder;
  static const fs::path data = [] {
    testing::write_stripes(folder / "stripes", 16, 16, 7);
    return folder / "stripes";
  }();
  return data;
}
// Weights to start from, made by a short run.
const fs::path& pretrained() {
  static const TemporaryFolder folder;
  static const fs::path weights = [] {
    FinetuneOptions options = FinetuneOptions::from_scratch();
    options.data = pictures();
    options.architecture = "small_cnn";
    options.image_size = 16;
    options.epochs = 1;
    options.batch = 8;
    options.workers = 0;
    options.out = folder / "base";
    finetune(options);
    return folder / "base" / "best.safetensors";
  }();
  return weights;
}
FinetuneOptions small_run(const fs::path& out) {
  FinetuneOptions options = FinetuneOptions::fine_tuning();
  options.data = pictures();
  options.weights = pretrained();
  options.batch_norm = BatchNormPolicy::train;
  options.validation = 0.25;
  options.batch = 8;  // 24 images to train: 3 batches
  options.epochs = 3;
  options.workers = 0;
  options.out = out;
  options.overwrite = true;
  options.device = test::test_device();
  return options;
}

struct StopAfter : Observer {
  explicit StopAfter(int64_t batches) : left(batches) {}
  void progress(const Progress&) override { --left; }
  bool stop_requested() override { return left <= 0; }
  int64_t left;
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

TEST_CASE("weight 0 is the plain run, and EMA 0 judges the last weights") {
  const TemporaryFolder folder;
  finetune(small_run(folder / "plain"));
  FinetuneOptions options = small_run(folder / "zero");
  options.regularise.l2_sp_head = 0.5f;  // counts with l2_sp only
  finetune(options);
  check_same_run(folder / "plain", folder / "zero");
  options.out = folder / "ema";
  options.regularise.ema = 0;
  finetune(options);
  check_same_run(folder / "plain", folder / "ema");
}

TEST_CASE("every method changes the run, and resumes to the same bytes") {
  const TemporaryFolder folder;
  finetune(small_run(folder / "plain"));
  FinetuneOptions options = small_run(folder / "whole");
  SUBCASE("L2-SP") { options.regularise.l2_sp = 0.1f; }
  SUBCASE("DELTA") { options.regularise.delta = 0.1f; }
  SUBCASE("BSS") { options.regularise.bss = 0.01f; }
  SUBCASE("StochNorm") { options.regularise.stoch_norm = 0.5f; }
  SUBCASE("mixup and cutmix") { options.regularise.mixup = options.regularise.cutmix = 1; }
  SUBCASE("EMA") { options.regularise.ema = 0.9f; }
  SUBCASE("SWA") { options.regularise.swa = 0.3f; }
  finetune(options);
  const bool averages = options.regularise.ema >= 0 || options.regularise.swa >= 0;
  const bool last_differs = file_bytes(folder / "plain" / "last.safetensors") !=
                            file_bytes(folder / "whole" / "last.safetensors");
  CHECK(last_differs == !averages);  // which leave training alone
  CHECK(metrics_of(folder / "plain") != metrics_of(folder / "whole"));
  for (const int64_t stop : {2, 4, 7, 9}) {
    CAPTURE(stop);
    options.out = folder / "stopped";
    StopAfter first(stop), second(2);
    CHECK(finetune(options, first).interrupted);
    CHECK(resume(options.out, {}, second).interrupted);
    Observer quiet;
    resume(options.out, {}, quiet);
    check_same_run(folder / "whole", options.out);
  }
}

TEST_CASE("all together learn, with phases") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.preset = "lp-ft";
  options.epochs = 8;
  options.regularise.l2_sp = 1e-3f;
  options.regularise.delta = 1e-3f;
  options.regularise.bss = 1e-4f;
  options.regularise.stoch_norm = 0.2f;
  options.regularise.mixup = 0.2f;
  options.regularise.ema = 0.9f;
  const FinetuneResult result = finetune(options);
  CHECK(result.best()->validation->accuracy > 0.8);
}

TEST_CASE("recorded steps end with the bytes of steps run one by one") {
  if (test::test_device().is_cpu()) return;
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "recorded");
  options.epochs = 2;
  options.regularise.l2_sp = 0.1f;
  options.regularise.delta = 0.1f;
  options.regularise.stoch_norm = 0.5f;
  options.regularise.bss = 0.001f;
  options.regularise.mixup = options.regularise.cutmix = 1;
  options.regularise.ema = 0.9f;
  finetune(options);
  options.out = folder / "single";
  options.graphs = false;
  finetune(options);
  check_same_run(folder / "recorded", folder / "single");
}

TEST_CASE("statistics of averaged weights are those of the training images") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  options.augmentation.horizontal_flip = false;
  options.batch = 64;  // one batch
  options.epochs = 2;
  options.regularise.swa = 0;
  const FinetuneResult result = finetune(options);
  const TaskData data = read_task_data(options.data, options.validation, options.split_seed);
  LoaderOptions loader;
  loader.batch_size = 64;
  loader.workers = 0;
  const auto images =
      image_batches(data.all, data.split.train, result.card.preprocessing, {}, loader);
  images->start_epoch(0, 0);
  Batch batch;
  REQUIRE(images->next(batch));
  result.model->to(kCpu);
  Tap tap(*result.model, "conv1");
  result.model->forward(batch.images);
  const std::vector<float> x = tap.output().to_vector<float>();
  const std::vector<float> mean =
      result.model->state_dict().at("bn1.running_mean").to_vector<float>();
  for (size_t c = 0; c < mean.size(); ++c) {
    double sum = 0;
    for (size_t i = c; i < x.size(); i += mean.size()) sum += x[i];
    const double wanted = sum / static_cast<double>(x.size() / mean.size());
    REQUIRE(std::fabs(mean[c] - wanted) < 1e-4);
  }
}

TEST_CASE("what can do nothing is refused, and what does nothing in a phase is said") {
  const TemporaryFolder folder;
  FinetuneOptions options = small_run(folder / "run");
  const auto refused = [&](const std::string& part) {
    CHECK_THROWS_WITH_AS(finetune(options), doctest::Contains(part.c_str()), Error);
    CHECK_FALSE(fs::exists(folder / "run"));
  };
  RegulariseOptions& o = options.regularise;
  SUBCASE("features that are frozen") {
    options.freeze_features = true;
    SUBCASE("BSS") { o.bss = 1; }
    SUBCASE("DELTA") { o.delta = 1; }
    refused("would do nothing: nothing but the head trains");
  }
  SUBCASE("statistics that are frozen") {
    options.batch_norm = BatchNormPolicy::frozen_stats;
    o.stoch_norm = 0.5f;
    refused("--batch-norm train");
  }
  SUBCASE("no start") {
    options.weights.clear();
    options.architecture = "small_cnn";
    o.l2_sp = 1;
    refused("from scratch there are none");
  }
  SUBCASE("two averages") {
    o.ema = 0.9f;
    o.swa = 0.5f;
    refused("give one of the two");
  }
  SUBCASE("out of range") {
    SUBCASE("EMA") { o.ema = 1; }
    SUBCASE("SWA") { o.swa = std::nanf(""); }
    SUBCASE("mixup") { o.mixup = -1; }
    SUBCASE("StochNorm") { o.stoch_norm = 1.5f; }
    refused("must ");
  }
  SUBCASE("idle in a phase") {
    options.preset = "lp-ft";
    o.bss = 0.01f;
    struct Lines : Observer {
      void message(const std::string& line) override { all += line + "\n"; }
      std::string all;
    } lines;
    const PlannedRun planned = plan_finetune(options, lines);
    CHECK(lines.all.find("BSS does nothing in phase") != std::string::npos);
    CHECK(planned.objective == "cross entropy + 0.01 BSS of 1");
  }
}

TEST_CASE("a resumed run holds on to the weights it was started with, and to no others") {
  const TemporaryFolder folder;
  fs::copy_file(pretrained(), folder / "start.safetensors");
  FinetuneOptions options = small_run(folder / "run");
  options.weights = folder / "start.safetensors";
  options.regularise.l2_sp = 0.1f;
  StopAfter stop(2);
  finetune(options, stop);
  fs::copy_file(folder / "run" / "last.safetensors", options.weights,
                fs::copy_options::overwrite_existing);
  Observer quiet;
  CHECK_THROWS_WITH_AS(resume(folder / "run", {}, quiet),
                       doctest::Contains("not the weights the run was started with"), Error);
}

}  // namespace
}  // namespace graft
