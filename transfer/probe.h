// What features know about a task, without training the network: a linear probe and nearest
// neighbours, fitted on some rows and judged on others.
//
// The probe is multinomial logistic regression by L-BFGS; its penalty is chosen by cross-validation
// within the training rows, so that the judging rows choose nothing. (S. Kornblith et al., "Do
// better ImageNet models transfer better?", CVPR 2019; neighbours vote by cosine similarity, as in
// Z. Wu et al., "Unsupervised feature learning via non-parametric instance discrimination", 2018.)
// Accuracies have Wilson's intervals, balanced accuracies and differences percentile bootstraps
// over the judging rows: they say what other images of the same source would do to the number, not
// what other training rows would.
#pragma once

#include "transfer/feature_file.h"
#include "transfer/measure/logistic.h"
#include "transfer/measure/statistics.h"

namespace graft {

struct ProbeOptions {
  int64_t folds = 5;  // of the training rows
  std::vector<double> l2 = default_l2_candidates();
  int64_t neighbours = 20;
  uint64_t seed = 0;  // of folds and bootstraps
};

struct ProbeScore {
  Interval accuracy, balanced_accuracy;
  std::vector<int64_t> predicted;  // class of each judging row
};

struct ProbeResult {
  int64_t train = 0, test = 0, width = 0;
  std::vector<std::string> class_names;
  double l2 = 0;  // the chosen one
  CrossValidation validation;
  ProbeScore logistic, nearest;
  double largest_class = 0;  // accuracy of always naming the training rows' largest class
  Interval difference;       // of accuracy, logistic - nearest, paired
};

// The first rows of every class, in an order drawn from the seed, are kept out: `part` of them, at
// least one of each class that has two.
struct SplitTable {
  FeatureTable train, test;
};
SplitTable split_table(const FeatureTable& table, double part, uint64_t seed);

// Classes are matched by name. Throws Error when the tables' widths or classes differ, or the
// training rows have a single class.
ProbeResult probe(const FeatureTable& train, const FeatureTable& test, const ProbeOptions& options);

}  // namespace graft
