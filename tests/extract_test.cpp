// Extraction of layers: the numbers against a forward pass through the tap, pooling, and .npy files
// good and hostile.
#include "transfer/extract.h"

#include <doctest/doctest.h>
#include <fstream>
#include <numeric>

#include "engine/autograd.h"
#include "engine/io/npy.h"
#include "engine/io/weights.h"
#include "kernels/error.h"
#include "layers/tap.h"
#include "tests/support/pictures.h"
#include "tests/support/test_device.h"
#include "tests/support/weight_bytes.h"
#include "transfer/batches.h"

namespace graft {
namespace {

namespace fs = std::filesystem;
using testing::file_bytes;
using testing::TemporaryFolder;

TEST_CASE("any layer's outputs are those of one forward pass through the tap") {
  const TemporaryFolder folder;
  testing::write_stripes(folder / "data", 5, 16, 7);
  const ImageDataset data = read_image_folder(folder / "data");
  FeatureNetwork network;
  network.model = make_model("small_cnn", {2, 3, -1}, {3, 0, 0});
  network.device = test::test_device();
  network.model->to(network.device);
  network.card.preprocessing = preprocessing_of("small_cnn");
  network.card.preprocessing.crop = network.card.preprocessing.resize = 16;

  std::vector<int64_t> everything(data.samples.size());
  std::iota(everything.begin(), everything.end(), int64_t{0});
  LoaderOptions one_batch;
  one_batch.batch_size = 10;
  const auto batches = image_batches(data, everything, network.card.preprocessing, {}, one_batch);
  Batch all;
  batches->start_epoch(0, 0);
  REQUIRE(batches->next(all));

  for (const char* layer : {"", "block1", "bn2", "conv3", "block3", "avgpool", "fc"}) {
    CAPTURE(layer);
    std::vector<float> rows;
    std::vector<int64_t> indices;
    const std::vector<std::string> bad = extract_layer(
        network, data, layer, Pooling::none, {.batch = 3}, [&](const Tensor& part, const Batch& b) {
          const std::vector<float> values = part.to_vector<float>();
          rows.insert(rows.end(), values.begin(), values.end());
          indices.insert(indices.end(), b.indices.begin(), b.indices.end());
          return true;
        });
    CHECK(bad.empty());
    CHECK(indices == everything);
    const NoGrad guard;
    network.model->eval();
    const Tap tap(*network.model, layer[0] == 0 ? "avgpool" : layer);
    network.model->forward(all.images.to(network.device));
    const std::vector<float> whole = tap.output().to_vector<float>();
    REQUIRE(rows.size() == whole.size());
    for (size_t i = 0; i < rows.size(); ++i) {
      REQUIRE(rows[i] == doctest::Approx(whole[i]).epsilon(1e-5));
    }
  }
  CHECK_THROWS_WITH_AS(extract_layer(network, data, "blok1", Pooling::none, {},
                                     [](const Tensor&, const Batch&) { return true; }),
                       doctest::Contains("block1"), Error);
}

TEST_CASE("pooling over positions") {
  std::vector<float> values(2 * 2 * 3 * 2);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>((i * 7) % 24);
  const auto expect = [&](Pooling pooling, const auto& combine) {
    for (const Shape& shape : {Shape{2, 2, 3, 2}, Shape{2, 6, 2}}) {
      const Tensor result = pooled(Tensor::of(values, shape).to(test::test_device()), pooling);
      CHECK(result.shape() == Shape{2, 2});
      const std::vector<float> got = result.to_vector<float>();
      for (size_t n = 0; n < 2; ++n) {
        for (size_t c = 0; c < 2; ++c) {
          std::vector<float> column;
          for (size_t p = 0; p < 6; ++p) column.push_back(values[(n * 6 + p) * 2 + c]);
          CHECK(got[n * 2 + c] == doctest::Approx(combine(column)));
        }
      }
    }
  };
  expect(Pooling::avg,
         [](const std::vector<float>& x) { return std::accumulate(x.begin(), x.end(), 0.0) / 6; });
  expect(Pooling::max,
         [](const std::vector<float>& x) { return *std::max_element(x.begin(), x.end()); });
  CHECK(pooled(Tensor::of(values, {2, 6, 2}), Pooling::cls).to_vector<float>() ==
        std::vector<float>{values[0], values[1], values[12], values[13]});
  CHECK(pooled(Tensor::of(values, {12, 2}), Pooling::avg).to_vector<float>() == values);
  CHECK_THROWS_WITH_AS(pooled(Tensor::of(values, {2, 2, 3, 2}), Pooling::cls),
                       doctest::Contains("pool with avg or max"), Error);
}

TEST_CASE("a .npy file reads back, and its header is what NumPy writes") {
  const TemporaryFolder folder;
  {
    NpyWriter writer(folder / "a.npy", {2, 3}, Dtype::f32);
    CHECK_FALSE(fs::exists(folder / "a.npy"));
    writer.add(Tensor::of(std::vector<float>{1, 2, 3, 4, 5, 6}, {1, 2, 3}));
    writer.add(Tensor::of(std::vector<float>(12, 7), {2, 2, 3}));
    CHECK_THROWS_AS(writer.add(Tensor::of(std::vector<float>(6), {1, 3, 2})), Error);
    writer.finish();
  }
  const std::string bytes = file_bytes(folder / "a.npy");
  CHECK(bytes.size() == 192 + 18 * 4);
  CHECK(bytes.substr(0, 8) == std::string("\x93NUMPY\x01\x00", 8));
  CHECK(bytes.substr(10, 62) == "{'descr': '<f4', 'fortran_order': False, 'shape': (3, 2, 3), }");
  CHECK(bytes[191] == '\n');
  const Tensor back = read_npy(folder / "a.npy");
  CHECK(back.shape() == Shape{3, 2, 3});
  CHECK(back.to_vector<float>()[5] == 6);

  NpyWriter labels(folder / "b.npy", {}, Dtype::i64);
  labels.add(Tensor::of(std::vector<int64_t>{3, -1}));
  labels.finish();
  CHECK(file_bytes(folder / "b.npy").find("'shape': (2,), }") != std::string::npos);
  CHECK(read_npy(folder / "b.npy").to_vector<int64_t>() == std::vector<int64_t>{3, -1});
}

TEST_CASE("hostile .npy files are refused") {
  const TemporaryFolder folder;
  const fs::path file = folder / "x.npy";
  const auto npy = [&](const std::string& dictionary, size_t data, size_t claimed = 0) {
    const size_t length = claimed > 0 ? claimed : dictionary.size();
    std::ofstream(file, std::ios::binary | std::ios::trunc)
        << std::string("\x93NUMPY\x01\x00", 8) << test::little(length, 2) << dictionary
        << std::string(data, '\0');
    return test::error_of([&] { read_npy(file); });
  };
  const auto dictionary = [](const std::string& shape) {
    return "{'descr': '<f4', 'fortran_order': False, 'shape': " + shape + "}";
  };
  CHECK(npy(dictionary("(2, 2)"), 16).empty());
  CHECK(npy("{ 'shape':(4,) ,'descr':'<f4','fortran_order':False,}  \n", 16).empty());
  const auto refused = [&](const std::string& error, const std::string& part) {
    CAPTURE(error);
    CHECK(error.find(part) != std::string::npos);
  };
  refused(npy(dictionary("(2, 2)"), 15), "bytes follow");
  refused(npy(dictionary("(2, 2)"), 17), "bytes follow");
  refused(npy(dictionary("(4294967296, 4294967296)"), 16), "bytes follow");
  refused(npy(dictionary("(9223372036854775807, 2)"), 16), "bytes follow");
  refused(npy(dictionary("(99999999999999999999,)"), 16), "no number");
  refused(npy(dictionary("(-4,)"), 16), "no number");
  refused(npy(dictionary("(4 4)"), 64), "malformed");
  refused(npy(dictionary("()"), 4), "single number");
  refused(npy(dictionary("(4,"), 16), "no number");
  refused(npy("{'descr': '|O', 'fortran_order': False, 'shape': (4,)}", 16), "type \"|O\"");
  refused(npy("{'descr': '<f4', 'fortran_order': True, 'shape': (4,)}", 16), "Fortran");
  refused(npy("{'descr': '<f4', 'shape': (4,)}", 16), "malformed");
  refused(npy("{'descr': '<f4', 'descr': '<f4', 'shape': (4,)}", 16), "twice");
  refused(npy("{'descr': '<f4", 16), "malformed");
  refused(npy(dictionary("(4,)") + "x", 16), "malformed");
  refused(npy(dictionary("(4,)"), 0, 60000), "cut short");
  std::ofstream(file, std::ios::trunc) << "\x93NUM";
  refused(test::error_of([&] { read_npy(file); }), "no .npy file");
}

}  // namespace
}  // namespace graft
