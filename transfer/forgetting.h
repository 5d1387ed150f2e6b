// What a network has forgotten of its source task while it learnt another: accuracy on source
// images before and after, twice.
//
//   head     the source's own head, on the features of before and of after: what the source model
//            still does when only its features are exchanged. It also falls when nothing is lost
//            but the features have turned.
//   probe    a linear classifier fitted anew on either features, cross-validated: what they still
//            know. The fair one.
// Take images that the source did not train on, or "before" is too good.
#pragma once

#include <filesystem>
#include <functional>
#include <string>

#include "transfer/features.h"
#include "transfer/measure/statistics.h"

namespace graft {

struct ForgettingOptions {
  std::filesystem::path before, after;  // weights of one architecture; `before` with its head
  std::filesystem::path data;           // the source's classes
  std::string split;                    // of the data, as in read_images()
  uint64_t seed = 0;                    // of the probe's folds
  ExtractOptions reading;
  Device device;
  Dtype precision = Dtype::f32;
};

struct KeptAccuracy {
  Interval before, after;  // Wilson's
  // after - before, of the same images in pairs; reaches 3 / images at least (the rule of three).
  Interval change;
};
struct Forgetting {
  KeptAccuracy head, probe;
  int64_t images = 0, classes = 0;
};

// From whether each image was right before and after.
KeptAccuracy kept_accuracy(const std::vector<bool>& before, const std::vector<bool>& after);

// `keep_going` is told the images done of two passes; false ends the work, and the result has no
// images. Throws on weights of two architectures, a `before` without a head, classes it does not
// know or that have fewer than five images.
Forgetting measure_forgetting(const ForgettingOptions& options,
                              const std::function<bool(int64_t done, int64_t total)>& keep_going);

}  // namespace graft
