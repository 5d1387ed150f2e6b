// Weights that a test and tests/data/make_model_goldens.py make alike from a hash of the tensor's
// name and the element's index in the file's layout, so that goldens hold results only.
#pragma once

#include <map>
#include <string>
#include <vector>

#include "layers/module.h"

namespace graft::test {

// `count` numbers in [-1, 1).
std::vector<double> hashed(const std::string& name, int64_t count);

// Fills every parameter and buffer. `damped`: suffixes of batch norm weights, and the factor by
// which those are smaller.
void fill_with_hashed_weights(Module& module, const std::map<std::string, double>& damped);

}  // namespace graft::test
