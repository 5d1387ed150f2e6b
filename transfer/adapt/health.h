// Whether an adaptation is well: what goes wrong shows in the target's predictions and features
// before it shows in an accuracy that nobody can see without labels.
//
// Alarms:
//   one class      the share of the most predicted class is nearer to 1 than to the largest share
//                  that a class has in the source
//   lopsided       the entropy of the mean prediction is less than half that of the source's
//                  classes
//   contraction    the target's features lie closer together than a quarter of their largest
//                  spread so far: the domains look alike because everything does
//   forgetting     held-out source accuracy is 0.1 below its best so far
#pragma once

#include <cstdint>
#include <string>
#include <vector>

namespace graft {

struct DomainView;

struct Health {
  // Held-out accuracy of a fresh linear classifier that tells the domains' features apart (as many
  // rows of each); 0.5: they look alike. The method's own domain head is no measure: it plays.
  double domain_accuracy = 0;
  double balance = 0;        // entropy of the mean target prediction over log(classes)
  double largest_share = 0;  // part of the target that is taken for largest_class
  int64_t largest_class = 0;
  double spread = 0;                // root of the mean variance of the target's features
  std::vector<std::string> alarms;  // "one class: 93 % of the target are taken for 2", ...
};

// What health is compared with.
struct HealthBaseline {
  double largest_spread = 0;        // of the epochs before; 0: this is the first
  double best_source_accuracy = 0;  // of the epochs before
};

Health health_of(const DomainView& source, const DomainView& target,
                 const HealthBaseline& baseline);

}  // namespace graft
