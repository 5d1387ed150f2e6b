// Classification metrics from a confusion matrix. Conventions are scikit-learn's with
// zero_division=0.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

namespace graft {

// counts[actual * classes + predicted]
class ConfusionMatrix {
 public:
  explicit ConfusionMatrix(int64_t classes = 0);
  // Throws on a class outside 0..classes-1.
  void add(int64_t actual, int64_t predicted, int64_t count = 1);
  int64_t classes() const { return classes_; }
  int64_t count(int64_t actual, int64_t predicted) const;
  int64_t total() const;

 private:
  int64_t classes_;
  std::vector<int64_t> counts_;
};

struct ClassMetrics {
  int64_t count = 0;      // samples of this class
  int64_t predicted = 0;  // samples taken for this class
  double precision = 0;   // right among those predicted; 0 when never predicted
  double recall = 0;      // right among those that are; 0 for a class without samples
  double f1 = 0;          // 2 right / (count + predicted); 0 when both are 0
};

struct Metrics {
  int64_t samples = 0;
  double accuracy = 0;
  double balanced_accuracy = 0;       // mean recall of the classes that have samples
  double macro_f1 = 0;                // mean F1 of the classes that have samples or predictions
  std::optional<double> positive_f1;  // F1 of the positive class, where there are two classes
  std::vector<ClassMetrics> per_class;
  // What --metric f1 means: positive_f1 for two classes, macro_f1 for more.
  double f1() const { return positive_f1.value_or(macro_f1); }
};

// All zero for an empty matrix. `positive` is the class that positive_f1 is about.
Metrics metrics_of(const ConfusionMatrix& confusion, int64_t positive = 1);

}  // namespace graft
