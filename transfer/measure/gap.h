// Did the transfer help? The negative-transfer gap, with an interval that does not cry wolf.
//
// The gap is the error on the target with the source minus the error without it, of one algorithm
// (Wang, Dai, Poczos and Carbonell, "Characterizing and Avoiding Negative Transfer", CVPR 2019):
// positive is harm. It is measured in pairs, both members of a pair with the same seed, split and
// budget.
//
// Traps. The plain paired t-test over seeds takes images for a part of nature: an image that one
// member of the pair happens to find easier counts once a seed that judges it, though it is one
// image, and with few images the test finds differences that are none. So the variance is that of
// both, of the seeds and of the images (two-way clusters: Cameron, Gelbach and Miller, "Robust
// Inference With Multiway Clustering", 2011, without the term that they subtract, which only makes
// it larger), with Satterthwaite's degrees of freedom, few where the seeds matter. And when hardly
// an image is judged differently, no deviation is left to see: the interval then still reaches
// 3 / images, the rule of three (Hanley and Lippman-Hand, 1983). tests/gap_test.cpp simulates all
// that. What stays given is the collection of images that trained: the answer is about models
// trained on it.
#pragma once

#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "transfer/measure/statistics.h"

namespace graft {

// A pair: with the source and without it, trained and judged alike.
struct JudgedPair {
  std::vector<int64_t> images;                     // that judged both: any numbers, each once
  std::vector<uint8_t> wrong_with, wrong_without;  // 1 or 0, of each image
};
// The error with minus the error without, each pair counting the same. Needs two pairs at least.
Interval gap_of(std::span<const JudgedPair> pairs, double confidence = 0.95);

// helps      the whole interval is below 0
// harms      the whole interval is above 0
// neutral    the whole interval lies within -margin..margin: whatever the difference, it is too
//            small to matter. This is looked at first.
// undecided  none of these
enum class Answer : uint8_t { helps, neutral, harms, undecided };
Answer answer_of(const Interval& gap, double margin);
std::string name_of(Answer answer);
// The fewest pairs, at most `most`, that would be answered if the further ones were like those
// there are, judged by the same images. None: more images are what helps.
std::optional<int64_t> pairs_needed(std::span<const JudgedPair> pairs, double margin,
                                    int64_t most = 50);

}  // namespace graft
