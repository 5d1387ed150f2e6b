// Patterns over the names of parameters and modules.
#pragma once

#include <string>

namespace graft {

// Whether a pattern names this parameter or module or something above it: "layer1" matches
// "layer1.0.conv1.weight" but not "layer10.0.conv1.weight". * stands for any characters (dots too),
// ? for one.
bool matches(const std::string& pattern, const std::string& name);

}  // namespace graft
