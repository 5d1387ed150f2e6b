// How sure a score of a set of rows is: the bootstrap without replacement.
//
// The score is taken again of random parts of the rows, of each stratum four fifths. m of n rows,
// drawn without replacement, vary around the whole by (1/m - 1/n) s^2, the whole around the truth
// by s^2 / n: for m = 4n/5 twice as far (m out of n: Politis and Romano 1994, Bickel, Goetze and
// van Zwet 1997; deleting many at random: Shao and Wu 1989).
//
// Why not n rows with replacement (Efron 1979): that draws rows twice, and scores that look for
// structure in features (H-score, LogME, MMD, neighbours) take a row and its copy for structure: on
// such resamples they are larger than they are. Why not halves: where features are about as many as
// rows, a half shows nothing of what the whole shows; LogME then called three of four equal pairs
// different.
#pragma once

#include "transfer/measure/statistics.h"

namespace graft {

struct Bootstrap {
  double value = 0;           // of all rows
  std::vector<double> drawn;  // of each part
};

// `score` of the rows whose numbers it is given, ascending. stratum_of: of each row, from 0; sizes
// of parts are rounded up or down as drawn, but never to none. The same strata and key draw the
// same parts.
Bootstrap bootstrap(std::span<const int64_t> stratum_of,
                    const std::function<double(const std::vector<int64_t>&)>& score, RngKey key,
                    int64_t draws = 100);

// The value and t deviations of the draws, made as wide as those of the whole, to both sides.
Interval interval_of(const Bootstrap& score, double confidence = 0.95);
// a - b, of scores over the same rows and draws.
Interval difference_of(const Bootstrap& a, const Bootstrap& b, double confidence = 0.95);

}  // namespace graft
