// Views made on a device, against the ones that the data room makes on the CPU (which equal
// Pillow's and torchvision's bytes): the same bits.
#include <cstring>
#include <doctest/doctest.h>
#include <set>

#include "engine/data/augment.h"
#include "engine/data/device_views.h"
#include "engine/ops.h"
#include "kernels/error.h"
#include "tests/support/test_device.h"

namespace graft::test {
namespace {

Image picture(int64_t width, int64_t height, int64_t channels, uint64_t seed) {
  RandomStream random({seed, 0, 1});
  Image image{width, height, channels, {}};
  image.pixels.resize(static_cast<size_t>(width * height * channels));
  // Extremes in half of them: what overshoots a byte is clipped.
  for (uint8_t& p : image.pixels) {
    p = static_cast<uint8_t>(seed % 2 ? random.below(256) : 255 * random.below(2));
  }
  return image;
}

// Sides of 1, of a crop, odd ones; pictures that are all width or all height.
std::vector<Image> pictures(int64_t channels) {
  const int64_t sizes[][2] = {{1, 1},  {1, 7},    {7, 1},   {16, 16}, {15, 16}, {31, 9},  {9, 31},
                              {64, 3}, {3, 64},   {700, 1}, {1, 700}, {40, 40}, {53, 38}, {14, 150},
                              {2, 2},  {150, 14}, {33, 70}, {16, 90}, {90, 16}};
  std::vector<Image> images;
  for (const auto& [width, height] : sizes) {
    images.push_back(picture(width, height, channels, images.size()));
  }
  return images;
}

Tensor rendered(const std::vector<PackedView>& views, const Preprocessing& preprocessing,
                int64_t channels, Dtype dtype = Dtype::f32) {
  const PackedBatch batch = pack_batch(views, preprocessing, channels, false);
  return render(batch, batch.bytes.to(test_device()), dtype).to(kCpu);
}

// How many pictures differ in a bit from the CPU's views.
int different(const Tensor& batch, const std::vector<Image>& views,
              const Preprocessing& preprocessing) {
  const int64_t size = preprocessing.crop * preprocessing.crop * views[0].channels;
  std::vector<float> expected(static_cast<size_t>(size));
  int count = 0;
  for (size_t i = 0; i < views.size(); ++i) {
    normalise(views[i], preprocessing, expected.data());
    count += std::memcmp(expected.data(), batch.data<float>() + static_cast<int64_t>(i) * size,
                         expected.size() * sizeof(float)) != 0;
  }
  return count;
}

std::vector<Preprocessing> preprocessings() {
  std::vector<Preprocessing> list;
  for (const Interpolation interpolation : {Interpolation::bilinear, Interpolation::bicubic}) {
    // Resized then cut; both sides stretched; padded, for the crop is larger; one pixel; not
    // resized at all.
    const int64_t sizes[][2] = {{20, 16}, {0, 16}, {9, 16}, {5, 1}, {16, 16}};
    for (const auto& [resize, crop] : sizes) {
      Preprocessing preprocessing;
      preprocessing.resize = resize;
      preprocessing.crop = crop;
      preprocessing.interpolation = interpolation;
      list.push_back(preprocessing);
    }
  }
  return list;
}

}  // namespace

TEST_CASE("evaluation views have the bits of the data room's") {
  for (const int64_t channels : {int64_t{3}, int64_t{1}}) {
    const std::vector<Image> images = pictures(channels);
    for (const Preprocessing& preprocessing : preprocessings()) {
      std::vector<PackedView> packed;
      std::vector<Image> views;
      for (const Image& image : images) {
        packed.push_back(pack_view(image, eval_geometry(image.width, image.height, preprocessing),
                                   preprocessing.interpolation));
        views.push_back(eval_view(image, preprocessing));
      }
      INFO("resize " << preprocessing.resize << ", crop " << preprocessing.crop);
      CHECK(different(rendered(packed, preprocessing, channels), views, preprocessing) == 0);
    }
  }
}

// Training views of all pictures, by the device and by the data room from the same draws.
struct TrainingViews {
  int different = 0, flips = 0;
  std::set<size_t> changes;  // how many a picture had
};
TrainingViews training_views(const std::vector<Image>& images, const Preprocessing& preprocessing,
                             const Augmentation& augmentation) {
  TrainingViews result;
  std::vector<PackedView> packed;
  std::vector<Image> views;
  for (size_t i = 0; i < images.size(); ++i) {
    const RngKey key{5, 3, static_cast<uint32_t>(i)};
    RandomStream here(key), there(key);
    const ViewGeometry geometry =
        train_geometry(images[i].width, images[i].height, preprocessing, augmentation, there);
    result.flips += geometry.flip_horizontal + geometry.flip_vertical;
    const int64_t side = preprocessing.crop;
    packed.push_back(pack_view(images[i], geometry, preprocessing.interpolation,
                               draw_changes(augmentation, side, side, there)));
    result.changes.insert(packed.back().changes.size());
    views.push_back(train_view(images[i], preprocessing, augmentation, here));
    CHECK(here.uniform() == there.uniform());
  }
  result.different = different(rendered(packed, preprocessing, 3), views, preprocessing);
  return result;
}

TEST_CASE("training views have the bits of the data room's, from the same draws") {
  const std::vector<Image> images = pictures(3);
  Augmentation augmentation;
  augmentation.vertical_flip = true;
  int flips = 0;
  for (const bool random_crop : {true, false}) {
    augmentation.random_resized_crop = random_crop;
    for (const Preprocessing& preprocessing : preprocessings()) {
      const TrainingViews views = training_views(images, preprocessing, augmentation);
      flips += views.flips;
      INFO("resize " << preprocessing.resize << ", crop " << preprocessing.crop);
      CHECK(views.different == 0);
    }
  }
  CHECK(flips > 0);
}

TEST_CASE("training views with colour jitter and RandAugment have the bits of the data room's") {
  Augmentation augmentation;
  augmentation.random_resized_crop = true;
  augmentation.brightness = augmentation.contrast = augmentation.saturation = 0.4;
  augmentation.hue = 0.2;
  augmentation.randaugment_ops = 2;
  Preprocessing preprocessing;
  preprocessing.crop = 24;
  const TrainingViews views = training_views(pictures(3), preprocessing, augmentation);
  CHECK(views.changes.size() > 1);  // what is the identity is no step
  CHECK(views.different == 0);
}

// Whether a change of every picture, by itself, gives the data room's bytes.
void check_change(const std::string& name, const PictureChange& change, int64_t channels) {
  Preprocessing preprocessing;
  std::vector<Image> views;
  for (const int64_t side : {1, 2, 3, 16, 37}) {
    preprocessing.resize = preprocessing.crop = side;
    views.clear();
    std::vector<PackedView> packed;
    for (uint64_t seed = 0; seed < 3; ++seed) {
      Image image = picture(side, side, channels, seed);
      if (seed == 2) {  // dark and flat, so that tables stretch
        for (uint8_t& p : image.pixels) p = static_cast<uint8_t>(20 + p % 50);
      }
      packed.push_back(pack_view(image, eval_geometry(side, side, preprocessing),
                                 preprocessing.interpolation, {change}));
      views.push_back(changed(image, change));
    }
    CAPTURE(name);
    CAPTURE(side);
    CHECK(different(rendered(packed, preprocessing, channels), views, preprocessing) == 0);
  }
}

TEST_CASE("each change of colour or geometry has the bytes of the data room's") {
  for (const int64_t channels : {int64_t{3}, int64_t{1}}) {
    for (const double factor : {0.0, 0.37, 1.0, 1.63}) {
      check_change("brightness", brightness_change(factor), channels);
      check_change("contrast", contrast_change(factor), channels);
      check_change("saturation", saturation_change(factor), channels);
      check_change("sharpness", sharpness_change(factor), channels);
      check_change("hue", hue_change((factor - 0.8) / 2), channels);
    }
    for (int op = 0; op < kRandOps; ++op) {
      for (const bool negative : {false, true}) {
        check_change(text("RandAugment's ", op),
                     change_of(static_cast<RandOp>(op), 17, negative, 37, 37), channels);
      }
    }
  }
}

TEST_CASE("bf16 views are the f32 ones, rounded once") {
  Preprocessing preprocessing;
  preprocessing.resize = 20;
  preprocessing.crop = 16;
  std::vector<PackedView> packed;
  for (const Image& image : pictures(3)) {
    packed.push_back(pack_view(image, eval_geometry(image.width, image.height, preprocessing),
                               preprocessing.interpolation));
  }
  const Tensor rounded = cast(rendered(packed, preprocessing, 3), Dtype::bf16);
  const Tensor views = rendered(packed, preprocessing, 3, Dtype::bf16);
  CHECK(std::memcmp(rounded.raw(), views.raw(), views.bytes()) == 0);
}

TEST_CASE("a batch carries what its views read and no more") {
  Preprocessing preprocessing;
  preprocessing.resize = 0;
  preprocessing.crop = 8;
  const Image image = picture(100, 80, 3, 1);
  ViewGeometry geometry = eval_geometry(100, 80, preprocessing);
  CHECK(pack_view(image, geometry, Interpolation::bilinear).pixels.size() == 100 * 80 * 3);
  geometry = {10, 20, 30, 40, 8, 8, 0, 0, 8, 8};
  CHECK(pack_view(image, geometry, Interpolation::bilinear).pixels.size() == 30 * 40 * 3);
  CHECK(rendered({}, preprocessing, 3).numel() == 0);
}

TEST_CASE("what cannot be a view is refused") {
  const Image image = picture(10, 10, 3, 1);
  Preprocessing preprocessing;
  preprocessing.crop = 8;
  CHECK_THROWS_WITH_AS(
      pack_view(image, eval_geometry(11, 10, preprocessing), Interpolation::bilinear),
      doctest::Contains("does not lie inside 10 x 10"), Error);
  const std::vector<PackedView> views{
      pack_view(image, eval_geometry(10, 10, preprocessing), Interpolation::bilinear)};
  const PackedBatch batch = pack_batch(views, preprocessing, 3, false);
  CHECK_THROWS_WITH_AS(render(batch, Tensor({3}, Dtype::u8)),
                       doctest::Contains("bytes of the batch"), Error);
  CHECK_THROWS_WITH_AS(render(batch, batch.bytes, Dtype::i64), doctest::Contains("not i64"), Error);
}

}  // namespace graft::test
